//! Words that say what, and whose.

/// Who: a slot of a table and the generation of its use. 16 + 40 bits, so that 8 remain to say what it owns.
///
/// ```text
/// 55      40 39                                0
/// [ index  ][ epoch, counts the uses of the slot ]
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owner(u64);

impl Owner {
    const BITS: u32 = 56;
    const EPOCH: u64 = (1 << 40) - 1;

    pub(crate) const fn new(index: u32, epoch: u64) -> Self {
        Self(((index as u64) & 0xffff) << 40 | (epoch & Self::EPOCH))
    }

    pub(crate) const fn index(self) -> u32 {
        ((self.0 >> 40) & 0xffff) as u32
    }

    pub(crate) const fn epoch(self) -> u64 {
        self.0 & Self::EPOCH
    }
}

/// A tagged word: 8 bits say what, 56 bits say whose, or how much.
///
/// ```text
/// 63   60 59    56 55                            0
/// [ kind ][ flags ][ Owner, or a number            ]
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const ZERO: Self = Self(0);

    pub(crate) const fn of(kind: u64, owner: Owner) -> Self {
        Self(kind << 60 | owner.0)
    }

    pub(crate) const fn number(kind: u64, number: u64) -> Self {
        Self(kind << 60 | (number & ((1 << Owner::BITS) - 1)))
    }

    pub(crate) const fn kind(self) -> u64 {
        self.0 >> 60
    }

    pub(crate) const fn owner(self) -> Owner {
        Owner(self.0 & ((1 << Owner::BITS) - 1))
    }

    pub(crate) const fn value(self) -> u64 {
        self.0 & ((1 << Owner::BITS) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_kind_and_owner_apart() {
        let owner = Owner::new(511, (1 << 40) - 1);
        let word = Word::of(15, owner);
        assert_eq!((word.kind(), word.owner().index(), word.owner().epoch()), (15, 511, (1 << 40) - 1));
        assert_eq!(Owner::new(1, 1 << 40).epoch(), 0, "an epoch wraps inside its own bits");
    }
}

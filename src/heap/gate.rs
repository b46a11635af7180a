//! What a context's slot says of its cache: whether the owner is inside, its spare, and who takes it away. The protocol is told in
//! [`cache`](super::cache).

use crate::format::{ContextSlot, Handle, Word, class, revoked};
use crate::heap::block::{self, Block};
use crate::segment::arena::Arena;
use crate::sync::Ordering;
use crate::sys::crash::point;

/// What `ContextSlot::gate` says: inside, or the [`Handle`] of the spare, or that there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate(Handle);

impl Gate {
    pub(super) const INSIDE: Self = Self(Handle::from_word(0));
    /// Outside, without a spare.
    pub(crate) const BARE: Self = Self(Handle::from_word(u64::MAX));

    pub(crate) fn of(slot: &ContextSlot) -> Self {
        // SYNC(gate)
        Self(Handle::from_word(slot.gate.load(Ordering::Acquire)))
    }

    /// Outside, with a spare.
    #[inline(always)]
    pub(super) const fn at(spare: Handle) -> Self {
        Self(spare)
    }

    /// What it says, if that is a spare.
    #[inline(always)]
    pub(super) const fn handle(self) -> Handle {
        self.0
    }

    pub(crate) const fn word(self) -> u64 {
        self.0.word()
    }

    pub(crate) fn is_outside(self) -> bool {
        self != Self::INSIDE
    }

    /// Whether there is no spare, as the owner sees it.
    #[inline(always)]
    pub(super) fn is_bare(self) -> bool {
        self.0.word() == Self::BARE.0.word()
    }

    /// The spare, if there is one that may be a block: a foreign hand may have written there.
    pub(crate) fn spare(self, arena: &Arena) -> Option<Block> {
        (self.is_outside()).then(|| block_named(arena, self.0)).flatten()
    }
}

/// The block that a word of a context's slot names, if that may be one.
fn block_named(arena: &Arena, handle: Handle) -> Option<Block> {
    let class = usize::from(handle.class());
    (class < class::COUNT).then_some(())?;
    let handle = Handle::new(handle.class(), handle.granule());
    Some(Block { handle, start: arena.block_within(handle.granule(), arena.reach(class))? })
}

/// The spare of the context `slot`, unless a thief has taken it, or the owner is inside.
pub(crate) fn spare(arena: &Arena, slot: &ContextSlot) -> Option<Block> {
    let spare = Gate::of(slot).spare(arena);
    let revoked = Word(slot.revoked.load(Ordering::Acquire)).kind();
    spare.filter(|_| !matches!(revoked, revoked::EMPTIED | revoked::FORGET))
}

/// Ends the theft that `word`, read from `slot`'s `revoked`, tells of: the thief is dead. The spare is the owner's or the thief's,
/// as the module says, and the context may go on. To be called before anybody looks for what the thief owned.
pub(crate) fn settle(arena: &Arena, slot: &ContextSlot, word: Word) {
    let thief = word.owner();
    // Acquire of `revoked` (the caller's) shows the theft's number, and the 0 in `stolen` that came before TAKEN. What came
    // after, a kill leaves behind.
    let number = revoked::PARTLY | slot.thefts.load(Ordering::Relaxed);
    let then = match word.kind() {
        revoked::TAKING => Word::ZERO,
        revoked::TAKEN => {
            let owner = Word(slot.owner.load(Ordering::Acquire)).owner();
            let stolen = Handle::from_word(slot.stolen.load(Ordering::Acquire));
            if let Some(spare) = block_named(arena, stolen)
                && block::change(spare.header(), block::stolen(thief), block::owned(owner))
            {
                point!("settle: spare");
            }
            Word::number(revoked::VERIFY, number)
        }
        revoked::EMPTIED => Word::number(revoked::FORGET, number),
        _ => return,
    };
    let _ = slot.revoked.compare_exchange(word.0, then.0, Ordering::AcqRel, Ordering::Relaxed);
}

/// As [`settle`], whatever `slot` says. Under the control lock: who is at a theft has that too, so whoever left one is dead, or still
/// free to begin (`TAKING`, which anybody may refuse).
pub(crate) fn settle_any(arena: &Arena, slot: &ContextSlot) {
    settle(arena, slot, Word(slot.revoked.load(Ordering::Acquire)));
}

//! How values lie in the rows of a ring; what the words mean is `queue::value`'s.

/// The largest value: a row of sixteen lines. What is larger is cheaper to hand over as a record.
pub(crate) const MAX_VALUE_BYTES: usize = 1016;

const LINE_WORDS: usize = 8;

/// How values lie in rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// Words of a value, at least 1.
    words: usize,
}

impl Shape {
    /// For values of so many bytes.
    pub(crate) const fn of(bytes: usize) -> Self {
        let words = bytes.div_ceil(8);
        Self { words: if words == 0 { 1 } else { words } }
    }

    /// Words of a value.
    pub(crate) const fn words(self) -> usize {
        self.words
    }

    pub(crate) const fn values_per_row(self) -> usize {
        let fit = (LINE_WORDS - 1) / self.words;
        if fit == 0 { 1 } else { fit }
    }

    pub(crate) const fn row_words(self) -> usize {
        (1 + self.words).next_multiple_of(LINE_WORDS)
    }

    /// Words of a ring that so many values may be in at once.
    pub(crate) const fn ring_words(self, capacity: u64) -> u64 {
        let per_row = self.values_per_row() as u64;
        (capacity + per_row - 1).div_ceil(per_row) * self.row_words() as u64
    }

    pub(crate) const fn row_start(self, position: u64) -> u64 {
        position - position % self.values_per_row() as u64
    }

    /// Where the row of `position` begins in a ring of so many words, which is at least a row.
    #[allow(clippy::cast_possible_truncation)] // less than the words
    pub(crate) const fn offset(self, words: usize, position: u64) -> usize {
        let row = (position / self.values_per_row() as u64) % (words / self.row_words()) as u64;
        row as usize * self.row_words()
    }
}

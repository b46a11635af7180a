//! Where the tables of a segment lie.

use super::class;
use super::class::LISTS;
use super::rows::Shape;
use super::tables::{ContextSlot, Header, Magazine, Recent, SpscHeader};
use super::units::{
    CHANNELS, CONTEXTS, GRANULE, HINT_BLOCK, INDEX_CELLS, MAGAZINE_ENTRIES, MAGAZINES_PER_UNIT, MAGAZINES_SPARE,
    MAX_CAPACITY, MAX_UNITS, MIN_CAPACITY, PAGE, PROCESSES, UNIT,
};

/// Where the tables of a segment with so many data units lie. All offsets in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) units: u32,
    pub(crate) magazines: u32,
    pub(crate) hint_roots: u64,
    /// Words in one list's root.
    pub(crate) root_words: u32,
    pub(crate) directory: u64,
    pub(crate) unit_table: u64,
    pub(crate) hints: u64,
    pub(crate) magazine_table: u64,
    pub(crate) data: u64,
    pub(crate) total: u64,
}

const PROCESS_TABLE: u64 = 4096;
const CONTEXT_TABLE: u64 = PROCESS_TABLE + PROCESSES as u64 * 64;
const INDEX: u64 = CONTEXT_TABLE + CONTEXTS as u64 * 128;
const HINT_ROOTS: u64 = INDEX + INDEX_CELLS as u64 * 4;

/// Bytes of one block of the hint tree: per list 64 leaf words, then one summary word per list.
pub(crate) const HINT_BLOCK_BYTES: u64 = (LISTS as u64 * 65 * 8).next_multiple_of(PAGE);

impl Geometry {
    pub(crate) const PROCESS_TABLE: u64 = PROCESS_TABLE;
    pub(crate) const CONTEXT_TABLE: u64 = CONTEXT_TABLE;
    pub(crate) const INDEX: u64 = INDEX;

    #[allow(clippy::cast_possible_truncation)] // 224 GiB of units keep every product below 2^32
    pub(crate) const fn for_units(units: u32) -> Self {
        let magazines = (units as u64 * MAGAZINES_PER_UNIT + MAGAZINES_SPARE).next_multiple_of(HINT_BLOCK as u64);
        let hint_blocks = magazines / HINT_BLOCK as u64;
        let root_words = hint_blocks.div_ceil(64);
        let directory = (HINT_ROOTS + LISTS as u64 * root_words * 8).next_multiple_of(PAGE);
        let unit_table = directory + CHANNELS as u64 * 256;
        let hints = (unit_table + units as u64 * 8).next_multiple_of(PAGE);
        let magazine_table = hints + hint_blocks * HINT_BLOCK_BYTES;
        let data = (magazine_table + magazines * size_of::<Magazine>() as u64).next_multiple_of(UNIT);
        Self {
            units,
            magazines: magazines as u32,
            hint_roots: HINT_ROOTS,
            root_words: root_words as u32,
            directory,
            unit_table,
            hints,
            magazine_table,
            data,
            total: data + units as u64 * UNIT,
        }
    }

    /// The one geometry whose segment has this size, if there is one: the inverse of `for_units(..).total`, which grows
    /// strictly with the number of units.
    pub(crate) fn for_total(total: u64) -> Option<Self> {
        let mut low = u32::try_from(MIN_CAPACITY / UNIT).ok()?;
        let mut high = MAX_UNITS;
        while low < high {
            let middle = low.midpoint(high);
            if Self::for_units(middle).total < total {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(Self::for_units(low)).filter(|g| g.total == total)
    }

    /// What is backed at creation: the header and the fixed tables, whatever the capacity.
    pub(crate) const fn fixed(&self) -> u64 {
        self.directory
    }

    /// Stands for every size and offset that the code relies on, so that two builds that disagree never share a segment.
    pub(crate) fn layout_hash() -> u64 {
        let sample = Self::for_units(1 << 14);
        let facts = [
            GRANULE,
            UNIT,
            PROCESSES.into(),
            CONTEXTS.into(),
            CHANNELS.into(),
            MAGAZINE_ENTRIES.into(),
            LISTS as u64,
            HINT_BLOCK_BYTES,
            sample.directory,
            sample.unit_table,
            sample.hints,
            sample.magazine_table,
            sample.data,
            size_of::<SpscHeader>() as u64,
            std::mem::offset_of!(ContextSlot, stolen) as u64,
            std::mem::offset_of!(Header, units_freed) as u64,
            std::mem::offset_of!(Header, magazine_limit) as u64,
            std::mem::offset_of!(Recent, searched) as u64,
            Shape::of(8).ring_words(1024),
            u64::from(class::granules(class::COUNT - 1)),
        ];
        facts
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, fact| (hash ^ fact).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23))
    }
}

const _: () = assert!(Geometry::for_units(MAX_UNITS).total <= GRANULE << 32 && MAX_UNITS as u64 * UNIT == MAX_CAPACITY);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_names_one_geometry_or_none() {
        for units in [4, 5, 16, 1000, 16384, 1 << 20] {
            let geometry = Geometry::for_units(units);
            assert_eq!(Geometry::for_total(geometry.total), Some(geometry));
            assert_eq!(Geometry::for_total(geometry.total + 1), None);
            assert_eq!(Geometry::for_total(geometry.total - 4096), None);
        }
        assert_eq!(Geometry::for_total(0), None);
        assert_eq!(Geometry::for_total(u64::MAX), None);
        assert!(Geometry::for_units(16384).fixed() < 512 << 10);
    }
}

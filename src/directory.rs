//! The directory: channel ids to queues, and who holds which end.
//!
//! Promises: an id leads to at most one live channel; a role is one cell with its holder's name; every question and change is
//! made under the control lock, which each function takes as proof. Only [`dismantle`] goes without: nobody but the one
//! process that an entry names as `BUSY` changes it. Refuses: to keep counts: who is attached is what the cells say.
//!
//! # Layout
//! An open-addressed index (hash of the id -> entry number + 1; a hint that [`rebuild_index`] makes anew) over an array of
//! entries. Entries with the same id may stand side by side while a removed channel still has endpoints.
//! ```text
//! state   0 free | BUSY process | LIVE generation | REMOVED generation
//! ```
//!
//! # If a process dies
//! | create: after | what is left | repaired by |
//! |---|---|---|
//! | the block is allocated | owned by the dead | the header scan |
//! | `BUSY(me)`, storage noted | the block owned by the dead, or `STORAGE(entry)` | [`settle`] has the entry dismantled |
//! | `LIVE`, before the index | a live channel nobody finds, role held by the dead | the next control lock rebuilds the index |
//!
//! | dismantle: after | what is left | repaired by |
//! |---|---|---|
//! | `BUSY(me)` | queue partly drained | [`settle`] has it dismantled again: each record is taken as a consumer would |
//! | the storage is `OWNED(me)` | owned by the dead | the header scan; the entry no longer finds its `STORAGE` |
//!
//! A role cell of a dead process is vacated by [`settle`] after the look at the window; killed in between, it is found again.

use crate::arena::Arena;
use crate::attachment::Control;
use crate::heap;
use crate::heap::block::{self, Block, Handle, Meta, state};
use crate::heap::cache::Cache;
use crate::layout::{CHANNELS, DirectoryEntry, HELD_BY, INDEX_CELLS, Owner, Word, entry};
use crate::queue::spsc::{self, Ring};
use crate::queue::value::{self, Shape};
use crate::sync::{AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::memory::NotBacked;
use crate::sys::task;
use crate::wait::{self, flags};

/// Most slots of a channel.
pub(crate) const MAX_CAPACITY: usize = 1 << 24;
/// Bytes of a type tag that are kept.
pub(crate) const TAG_BYTES: usize = 128;
const TOMBSTONE: u32 = u32::MAX;

/// One end of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Producer,
    Consumer,
}

impl From<Side> for crate::error::Side {
    fn from(side: Side) -> Self {
        match side {
            Side::Producer => Self::Producer,
            Side::Consumer => Self::Consumer,
        }
    }
}

impl Side {
    /// The bit of `DirectoryEntry::seen`.
    pub(crate) const fn seen(self) -> u32 {
        match self {
            Self::Producer => 1,
            Self::Consumer => 2,
        }
    }

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Producer => Self::Consumer,
            Self::Consumer => Self::Producer,
        }
    }
}

/// How a channel carries its elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    /// One in each record.
    Records,
    /// Any number in each record.
    Slices,
    /// One in each slot.
    Values,
}

impl Form {
    /// The option bits of an entry.
    const fn bits(self) -> u32 {
        match self {
            Self::Records => 0,
            Self::Slices => entry::SLICE,
            Self::Values => entry::VALUES,
        }
    }

    /// `None` if no channel has these bits.
    const fn from_bits(options: u32) -> Option<Self> {
        match options & (entry::SLICE | entry::VALUES) {
            0 => Some(Self::Records),
            entry::SLICE => Some(Self::Slices),
            entry::VALUES => Some(Self::Values),
            _ => None,
        }
    }
}

/// What a channel carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    pub(crate) size: u64,
    pub(crate) align: u32,
    pub(crate) form: Form,
    /// At most [`TAG_BYTES`].
    pub(crate) tag: String,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { size, align, form, tag } = self;
        match form {
            Form::Records => write!(f, "{tag} ({size} bytes, align {align})"),
            Form::Slices => write!(f, "[{tag}] ({size} bytes, align {align})"),
            Form::Values => write!(f, "{tag} by value ({size} bytes, align {align})"),
        }
    }
}

/// How many words a ring of so many slots has, and the shape of its values, if it holds values; `None` if those are too large.
fn ring_words(form: Form, size: u64, slots: u64) -> Option<(u64, Option<Shape>)> {
    match form {
        Form::Records | Form::Slices => Some((slots, None)),
        Form::Values => {
            let bytes = usize::try_from(size).ok().filter(|bytes| *bytes <= value::MAX_BYTES)?;
            let shape = Shape::of(bytes);
            Some((shape.ring_words(slots), Some(shape)))
        }
    }
}

/// What a channel is made with, if it has to be made.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) kind: Kind,
    pub(crate) capacity_log2: u32,
    pub(crate) persistent: bool,
}

impl Spec {
    /// Bytes of the block that holds the queue, behind its header.
    pub(crate) fn storage_bytes(&self) -> u64 {
        let words = ring_words(self.kind.form, self.kind.size, 1 << self.capacity_log2).map_or(0, |(words, _)| words);
        // One granule holds the block's header alone; see `Arena::queue`.
        48 + size_of::<crate::layout::SpscHeader>() as u64 + 8 * words
    }
}

/// A channel and its generation, as found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ChannelRef {
    pub(crate) index: u32,
    pub(crate) generation: u64,
}

impl ChannelRef {
    fn owner(self) -> Owner {
        Owner::new(self.index, self.generation)
    }
}

/// Why an end was not attached.
#[derive(Debug)]
pub(crate) enum Refused {
    /// There is no such channel: bring storage.
    Missing,
    /// The storage was brought for nothing.
    Kind(Kind),
    /// The role is held.
    Taken {
        channel: ChannelRef,
        holder: Owner,
        thread: u32,
    },
    Full,
    /// The system has no memory for more entries.
    NotBacked,
    Corrupted,
}

pub(crate) fn cell(entry: &DirectoryEntry, side: Side) -> &AtomicU64 {
    match side {
        Side::Producer => &entry.producer,
        Side::Consumer => &entry.consumer,
    }
}

/// Who holds this end.
pub(crate) fn holder(entry: &DirectoryEntry, side: Side) -> Option<Owner> {
    let word = Word(cell(entry, side).load(Ordering::Acquire));
    (word.kind() == HELD_BY).then_some(word.owner())
}

/// Whether the channel stays without endpoints.
pub(crate) fn is_persistent(entry: &DirectoryEntry) -> bool {
    entry.options.load(Ordering::Relaxed) & entry::PERSISTENT != 0
}

/// Whether the id no longer leads here.
pub(crate) fn is_removed(entry: &DirectoryEntry) -> bool {
    state_of(entry).kind() == entry::REMOVED
}

fn state_of(entry: &DirectoryEntry) -> Word {
    Word(entry.state.load(Ordering::Acquire))
}

fn hash(id: i64) -> u32 {
    let mixed = id.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u32::try_from(((mixed >> 32) ^ (mixed >> 47)) % u64::from(INDEX_CELLS)).unwrap_or(0)
}

fn probes(id: i64) -> impl Iterator<Item = u32> {
    let start = hash(id);
    (0..INDEX_CELLS).map(move |i| (start + i) % INDEX_CELLS)
}

/// The live channel `id`.
pub(crate) fn find(control: &Control<'_>, id: i64) -> Option<ChannelRef> {
    let arena = control.arena();
    for probe in probes(id) {
        match arena.index_cell(probe)?.load(Ordering::Relaxed) {
            0 => return None,
            TOMBSTONE => {}
            number => {
                let Some(entry) = arena.directory_entry(number - 1) else { continue };
                let state = state_of(entry);
                if state.kind() == entry::LIVE && entry.id.load(Ordering::Relaxed).cast_signed() == id {
                    return Some(ChannelRef { index: number - 1, generation: state.value() });
                }
            }
        }
    }
    None
}

fn insert(arena: &Arena, id: i64, index: u32) {
    for (distance, probe) in probes(id).enumerate() {
        let Some(cell) = arena.index_cell(probe) else { return };
        if matches!(cell.load(Ordering::Relaxed), 0 | TOMBSTONE) {
            cell.store(index + 1, Ordering::Release);
            if distance > 64 {
                rebuild_index(arena);
            }
            return;
        }
    }
}

fn remove_from_index(arena: &Arena, id: i64, index: u32) {
    for probe in probes(id) {
        let Some(cell) = arena.index_cell(probe) else { return };
        match cell.load(Ordering::Relaxed) {
            0 => return,
            number if number == index + 1 => {
                // The end of a chain needs no tombstone.
                let next = arena.index_cell((probe + 1) % INDEX_CELLS).map_or(0, |c| c.load(Ordering::Relaxed));
                cell.store(if next == 0 { 0 } else { TOMBSTONE }, Ordering::Release);
                return;
            }
            _ => {}
        }
    }
}

/// Every entry in use.
pub(crate) fn entries(arena: &Arena) -> impl Iterator<Item = (u32, &DirectoryEntry)> {
    (0..arena.header().directory_top.load(Ordering::Acquire).min(CHANNELS))
        .filter_map(|index| Some((index, arena.directory_entry(index)?)))
        .filter(|(_, entry)| state_of(entry) != Word::ZERO)
}

/// Makes the index anew from the entries. The caller is inside the control lock.
pub(crate) fn rebuild_index(arena: &Arena) {
    arena.header().directory_cursor.store(0, Ordering::Relaxed);
    for cell in (0..INDEX_CELLS).filter_map(|i| arena.index_cell(i)) {
        cell.store(0, Ordering::Relaxed);
    }
    point!("index: zeroed");
    for (index, entry) in entries(arena).filter(|(_, entry)| state_of(entry).kind() == entry::LIVE) {
        let id = entry.id.load(Ordering::Relaxed).cast_signed();
        for probe in probes(id) {
            let Some(cell) = arena.index_cell(probe) else { break };
            if cell.load(Ordering::Relaxed) == 0 {
                cell.store(index + 1, Ordering::Release);
                break;
            }
        }
    }
    point!("index: rebuilt");
}

/// What the channel carries; `None` if the entry contradicts itself.
pub(crate) fn kind(entry: &DirectoryEntry) -> Option<Kind> {
    let bytes: Vec<u8> = entry.tag.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    let len = (entry.tag_len.load(Ordering::Relaxed) as usize).min(bytes.len());
    Some(Kind {
        size: entry.element_size.load(Ordering::Relaxed),
        align: entry.element_align.load(Ordering::Relaxed),
        form: Form::from_bits(entry.options.load(Ordering::Relaxed))?,
        tag: String::from_utf8_lossy(&bytes[..len]).into_owned(),
    })
}

fn set_kind(entry: &DirectoryEntry, kind: &Kind) {
    entry.element_size.store(kind.size, Ordering::Relaxed);
    entry.element_align.store(kind.align, Ordering::Relaxed);
    let mut bytes = [0_u8; TAG_BYTES];
    let len = kind.tag.len().min(TAG_BYTES);
    bytes[..len].copy_from_slice(&kind.tag.as_bytes()[..len]);
    entry.tag_len.store(u32::try_from(len).unwrap_or(0), Ordering::Relaxed);
    for (word, chunk) in entry.tag.iter().zip(bytes.chunks_exact(8)) {
        word.store(u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8])), Ordering::Relaxed);
    }
}

/// The ring of the channel in `entry`; `None` if the entry leads outside the data, or contradicts itself.
pub(crate) fn ring(arena: &Arena, entry: &DirectoryEntry) -> Option<Ring> {
    let log2 = entry.capacity_log2.load(Ordering::Relaxed);
    let slots = 1_u64.checked_shl(log2).filter(|slots| *slots <= MAX_CAPACITY as u64)?;
    let form = Form::from_bits(entry.options.load(Ordering::Relaxed))?;
    let (words, shape) = ring_words(form, entry.element_size.load(Ordering::Relaxed), slots)?;
    let (header, words) = arena.queue(entry.storage.load(Ordering::Relaxed), words)?;
    Some(Ring { header, words, capacity: slots, shape })
}

/// Takes the `side` of the channel `id` for this process.
pub(crate) fn attach(
    control: &Control<'_>,
    me: Owner,
    id: i64,
    side: Side,
    spec: &Spec,
    storage: &mut Option<Block>,
) -> Result<(ChannelRef, Ring), Refused> {
    let arena = control.arena();
    let channel = match find(control, id) {
        Some(channel) => channel,
        None => create(arena, me, id, spec, storage)?,
    };
    let entry = arena.directory_entry(channel.index).ok_or(Refused::Corrupted)?;
    let theirs = kind(entry).ok_or(Refused::Corrupted)?;
    if theirs != spec.kind {
        return Err(Refused::Kind(theirs));
    }
    if let Some(holder) = holder(entry, side) {
        let thread = match side {
            Side::Producer => entry.producer_thread.load(Ordering::Relaxed),
            Side::Consumer => entry.consumer_thread.load(Ordering::Relaxed),
        };
        return Err(Refused::Taken { channel, holder, thread });
    }
    let ring = ring(arena, entry).ok_or(Refused::Corrupted)?;
    match side {
        Side::Producer => spsc::clear_beyond(ring),
        Side::Consumer => {
            ring.header.to_producer.fetch_and(!flags::GONE, Ordering::AcqRel);
            point!("attach: returned");
        }
    }
    let thread = task::thread_id();
    match side {
        Side::Producer => entry.producer_thread.store(thread, Ordering::Relaxed),
        Side::Consumer => entry.consumer_thread.store(thread, Ordering::Relaxed),
    }
    cell(entry, side).store(Word::of(HELD_BY, me).0, Ordering::Release);
    point!("attach: role");
    entry.seen.fetch_or(side.seen(), Ordering::AcqRel);
    point!("attach: seen");
    if control.is_fenced() {
        ring.header.to_producer.fetch_or(flags::FENCED, Ordering::AcqRel);
        ring.header.to_consumer.fetch_or(flags::FENCED, Ordering::AcqRel);
    }
    tell(arena, ring);
    wait::announce(&arena.header().directory_version);
    Ok((channel, ring))
}

/// Tells both ends of a channel that the other one has come or gone.
fn tell(arena: &Arena, ring: Ring) {
    // SYNC(directory): before they are woken, for that is when they look.
    arena.header().directory_version.fetch_add(1, Ordering::Release);
    point!("tell: raised");
    wait::wake(arena, &ring.header.to_producer);
    wait::wake(arena, &ring.header.to_consumer);
}

/// Makes the channel `id` in the storage brought along.
fn create(arena: &Arena, me: Owner, id: i64, spec: &Spec, storage: &mut Option<Block>) -> Result<ChannelRef, Refused> {
    let Some(granule) = storage.map(|block| block.handle.granule()) else { return Err(Refused::Missing) };
    let (index, entry) = free_entry(arena)?;
    let channel = ChannelRef { index, generation: entry.generation.load(Ordering::Relaxed).wrapping_add(1) };
    entry.state.store(Word::of(entry::BUSY, me).0, Ordering::Release);
    point!("create: busy");
    entry.generation.store(channel.generation, Ordering::Relaxed);
    entry.id.store(id.cast_unsigned(), Ordering::Relaxed);
    entry.capacity_log2.store(spec.capacity_log2, Ordering::Relaxed);
    let options = spec.kind.form.bits() + u32::from(spec.persistent) * entry::PERSISTENT;
    entry.options.store(options, Ordering::Relaxed);
    entry.seen.store(0, Ordering::Relaxed);
    entry.producer.store(0, Ordering::Relaxed);
    entry.consumer.store(0, Ordering::Relaxed);
    set_kind(entry, &spec.kind);
    point!("create: written");
    entry.storage.store(granule, Ordering::Release);
    point!("create: storage");
    let ring = ring(arena, entry).ok_or(Refused::Corrupted)?;
    clear(ring);
    point!("create: emptied");
    let block = arena.block(granule).ok_or(Refused::Corrupted)?;
    block.state.store(Word::of(state::STORAGE, channel.owner()).0, Ordering::Release);
    point!("create: block");
    *storage = None;
    entry.state.store(Word::number(entry::LIVE, channel.generation).0, Ordering::Release);
    point!("create: live");
    insert(arena, id, index);
    point!("create: indexed");
    Ok(channel)
}

/// Empties a ring nobody uses yet.
fn clear(ring: Ring) {
    let header = ring.header;
    header.head.store(0, Ordering::Relaxed);
    header.to_producer.store(0, Ordering::Relaxed);
    header.to_consumer.store(0, Ordering::Relaxed);
    for word in ring.words {
        word.store(0, Ordering::Relaxed);
    }
}

fn free_entry(arena: &Arena) -> Result<(u32, &DirectoryEntry), Refused> {
    let cursor = &arena.header().directory_cursor;
    loop {
        let top = arena.header().directory_top.load(Ordering::Acquire).min(CHANNELS);
        let free = (cursor.load(Ordering::Relaxed)..top)
            .filter_map(|index| Some((index, arena.directory_entry(index)?)))
            .find(|(_, entry)| state_of(entry) == Word::ZERO);
        if let Some((index, entry)) = free {
            cursor.store(index + 1, Ordering::Relaxed);
            return Ok((index, entry));
        }
        cursor.store(top, Ordering::Relaxed);
        match arena.grow_directory() {
            Ok(Some(_)) => {}
            // One that was dismantled meanwhile may lie before the cursor.
            Ok(None) => {
                let mut all = (0..top).filter_map(|index| Some((index, arena.directory_entry(index)?)));
                return all.find(|(_, entry)| state_of(entry) == Word::ZERO).ok_or(Refused::Full);
            }
            Err(NotBacked) => return Err(Refused::NotBacked),
        }
    }
}

/// Leaves the `side` of a channel that this process holds; dismantles the channel if that was the last end and it does not
/// persist.
pub(crate) fn detach(control: Control<'_>, cache: &Cache, channel: ChannelRef, side: Side) {
    let arena = cache.arena();
    let Some(entry) = arena.directory_entry(channel.index) else { return };
    if entry.generation.load(Ordering::Relaxed) != channel.generation || holder(entry, side) != Some(cache.me()) {
        return;
    }
    vacate_role(arena, entry, side);
    finish(control, cache, channel.index, entry);
}

/// The end of a change: takes the channel out of the directory if nobody is in it any more, tells those who wait for changes,
/// and dismantles it outside the lock.
fn finish(control: Control<'_>, cache: &Cache, index: u32, entry: &DirectoryEntry) {
    let is_deserted = desert(&control, cache.me(), index, entry);
    wait::announce(&control.arena().header().directory_version);
    drop(control);
    if is_deserted {
        dismantle(cache, index, || true);
    }
}

/// Makes the channels' what `gone` own in their windows.
///
/// Nobody of `gone` may be able to come into a block any more, by allocating or by receiving: it is dead, or has neither
/// contexts nor endpoints. Else a record that was received since we read its slot, and has come back to its sender another
/// way, would be taken for a queued one. That is also why a producer that leaves keeps its name on what it has sent.
pub(crate) fn disown(control: &Control<'_>, gone: &[Owner]) {
    for (index, entry) in entries(control.arena()).filter(|(_, entry)| state_of(entry).kind() != entry::BUSY) {
        disown_window(control.arena(), Spot::at(index), entry, gone, || true);
    }
}

/// A place on the way through all queues: an entry, and how far in its queue. Fits into a note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spot {
    pub(crate) index: u32,
    /// One past the last position that was looked at, modulo 2^40; 0 for none.
    seen: u64,
}

impl Spot {
    const SEEN: u32 = 40;

    pub(crate) const fn at(index: u32) -> Self {
        Self { index, seen: 0 }
    }

    pub(crate) fn from_number(number: u64) -> Self {
        Self { index: u32::try_from(number >> Self::SEEN).unwrap_or(CHANNELS), seen: Self::wrap(number) }
    }

    pub(crate) fn number(self) -> u64 {
        u64::from(self.index) << Self::SEEN | self.seen
    }

    const fn wrap(position: u64) -> u64 {
        position & ((1 << Self::SEEN) - 1)
    }

    fn after(self, position: u64) -> Self {
        Self { seen: Self::wrap(position + 1), ..self }
    }

    /// Where to go on in `ring`: at the head, if that is further by now.
    fn position(self, ring: Ring) -> u64 {
        let head = ring.head();
        let ahead = Self::wrap(self.seen.wrapping_sub(head));
        if self.seen == 0 || ahead > ring.capacity { head } else { head.saturating_add(ahead) }
    }
}

/// How many records are looked at between two questions whether to go on. Few in tests for kills, so that what is rare is common.
const STRIDE: u64 = if cfg!(feature = "crash-points") { 4 } else { 256 };

/// From `spot` on. `go_on` is asked now and then; where it says no, the answer is where to go on.
fn disown_window(
    arena: &Arena,
    spot: Spot,
    entry: &DirectoryEntry,
    gone: &[Owner],
    go_on: impl Fn() -> bool,
) -> Option<Spot> {
    let ring = ring(arena, entry)?;
    let channel = ChannelRef { index: spot.index, generation: entry.generation.load(Ordering::Relaxed) };
    for (position, granule) in spsc::records_from(ring, spot.position(ring)) {
        if let Some(block) = arena.block(granule) {
            let state = Word(block.state.load(Ordering::Acquire));
            if state.kind() == state::OWNED && gone.contains(&state.owner()) {
                // Fails if the consumer takes it at this moment: then it is the consumer's.
                block::change(block, state, Word::of(state::QUEUED, channel.owner()));
                point!("reap: queued");
            }
        }
        if position % STRIDE == STRIDE - 1 && !go_on() {
            return Some(spot.after(position));
        }
    }
    None
}

/// Empties the role cells of `gone`, which are disowned; says how many those were.
fn vacate(arena: &Arena, entry: &DirectoryEntry, gone: &[Owner]) -> usize {
    let is_gone = |side: &Side| holder(entry, *side).is_some_and(|who| gone.contains(&who));
    let sides = [Side::Producer, Side::Consumer].into_iter().filter(is_gone);
    sides.map(|side| vacate_role(arena, entry, side)).count()
}

/// Empties a role cell whose holder is leaving, or dead and disowned.
fn vacate_role(arena: &Arena, entry: &DirectoryEntry, side: Side) {
    let ring = ring(arena, entry);
    // A persistent channel queues for a consumer to come.
    if let Some(ring) = ring
        && side == Side::Consumer
        && !is_persistent(entry)
    {
        ring.header.to_producer.fetch_or(flags::GONE, Ordering::AcqRel);
        point!("vacate: gone");
    }
    cell(entry, side).store(0, Ordering::Release);
    point!("vacate: cell");
    if let Some(ring) = ring {
        tell(arena, ring);
    }
}

/// Takes a channel that nobody is attached to out of the directory, unless it is to stay. If true, it is this process's to
/// [`dismantle`].
fn desert(control: &Control<'_>, me: Owner, index: u32, entry: &DirectoryEntry) -> bool {
    let stays = match state_of(entry).kind() {
        entry::LIVE => is_persistent(entry),
        entry::REMOVED => false,
        _ => true,
    };
    let is_deserted = !stays && holder(entry, Side::Producer).is_none() && holder(entry, Side::Consumer).is_none();
    if is_deserted {
        seize(control, me, index, entry);
    }
    is_deserted
}

fn seize(control: &Control<'_>, me: Owner, index: u32, entry: &DirectoryEntry) {
    entry.state.store(Word::of(entry::BUSY, me).0, Ordering::Release);
    point!("dismantle: busy");
    remove_from_index(control.arena(), entry.id.load(Ordering::Relaxed).cast_signed(), index);
    point!("dismantle: unindexed");
}

/// Frees what is queued, the storage, and the entry of a channel that is `BUSY` with this process. `go_on` is asked now and then;
/// where it says no, the rest is left to the next reaper, as a removed channel that nobody is in, and the answer is false.
pub(crate) fn dismantle(cache: &Cache, index: u32, go_on: impl Fn() -> bool) -> bool {
    let arena = cache.arena();
    let Some(entry) = arena.directory_entry(index) else { return true };
    let channel = ChannelRef { index, generation: entry.generation.load(Ordering::Relaxed) };
    let granule = entry.storage.load(Ordering::Acquire);
    let owned = Word::of(state::STORAGE, channel.owner());
    if let Some(block) = arena.block(granule)
        && block.state.load(Ordering::Acquire) == owned.0
    {
        if let Some(ring) = ring(arena, entry)
            && !drain(arena, cache, ring, go_on)
        {
            entry.state.store(Word::number(entry::REMOVED, channel.generation).0, Ordering::Release);
            point!("dismantle: left");
            return false;
        }
        point!("dismantle: drained");
        if block::change(block, owned, block::owned(cache.me())) {
            point!("dismantle: owned");
            free_block(arena, cache, granule);
        }
    }
    point!("dismantle: freed");
    entry.storage.store(0, Ordering::Release);
    point!("dismantle: no storage");
    entry.state.store(0, Ordering::Release);
    arena.header().directory_cursor.fetch_min(index, Ordering::Relaxed);
    true
}

/// Frees every queued record, as a consumer that drops what it receives; or as many as `go_on` lets.
fn drain(arena: &Arena, cache: &Cache, ring: Ring, go_on: impl Fn() -> bool) -> bool {
    for (position, granule) in spsc::records(ring) {
        let block = arena.block(granule);
        if let Some(block) = block {
            block.state.store(block::owned(cache.me()).0, Ordering::Release);
        }
        point!("drain: owned");
        ring.header.head.store(position + 1, Ordering::Release);
        point!("drain: head");
        if block.is_some() {
            free_block(arena, cache, granule);
        }
        if position % STRIDE == STRIDE - 1 && !go_on() {
            return false;
        }
    }
    true
}

/// Frees a block that this process has taken, if its header and its unit agree on what it is.
fn free_block(arena: &Arena, cache: &Cache, granule: u32) {
    let Some(block) = arena.block(granule) else { return };
    let class = Meta::unpack(block.meta.load(Ordering::Relaxed)).class;
    if block::is_at(arena, granule, class) {
        heap::free(cache, Handle::new(class, granule));
    }
}

/// Takes the id away from its channel at once; the channel goes when its last endpoint does. False if there is none.
pub(crate) fn remove(control: Control<'_>, cache: &Cache, id: i64) -> bool {
    let arena = cache.arena();
    let Some(channel) = find(&control, id) else { return false };
    let Some(entry) = arena.directory_entry(channel.index) else { return false };
    entry.state.store(Word::number(entry::REMOVED, channel.generation).0, Ordering::Release);
    point!("remove: state");
    remove_from_index(arena, id, channel.index);
    point!("remove: unindexed");
    // Who waits for a peer that can't come any more wakes up.
    if let Some(ring) = ring(arena, entry) {
        tell(arena, ring);
    }
    finish(control, cache, channel.index, entry);
    true
}

/// What is left to do about a channel that somebody dead may have been in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Settled {
    Done,
    /// Nobody is in it, or it was never finished: it is this process's to [`dismantle`].
    Deserted,
    /// The lock was held for long enough: go on from there.
    Partly(Spot),
}

/// Makes what `gone` have queued in a channel the channel's, and vacates their roles, counting them in `roles`. Whoever holds the
/// control lock may do it, be there a reaper at work elsewhere or not: once they are dead, it may be done at any time, and again.
pub(crate) fn settle(control: &Control<'_>, me: Owner, spot: Spot, gone: &[Owner], roles: &mut usize) -> Settled {
    let arena = control.arena();
    let Some(entry) = arena.directory_entry(spot.index) else { return Settled::Done };
    let state = state_of(entry);
    match state.kind() {
        entry::LIVE | entry::REMOVED => {}
        entry::BUSY if gone.contains(&state.owner()) => {
            seize(control, me, spot.index, entry);
            return Settled::Deserted;
        }
        _ => return Settled::Done,
    }
    // Every window: their records stay where they had left their role, too.
    if let Some(spot) = disown_window(arena, spot, entry, gone, || !control.is_overdue()) {
        return Settled::Partly(spot);
    }
    *roles += vacate(arena, entry, gone);
    if desert(control, me, spot.index, entry) { Settled::Deserted } else { Settled::Done }
}

/// Vacates the roles of the dead in one channel, for one who wants to come in.
pub(crate) fn bereave(control: Control<'_>, cache: &Cache, channel: ChannelRef, is_dead: impl Fn(Owner) -> bool) {
    let arena = cache.arena();
    let Some(entry) = arena.directory_entry(channel.index) else { return };
    let holders = [holder(entry, Side::Producer), holder(entry, Side::Consumer)];
    let gone: Vec<Owner> = holders.into_iter().flatten().filter(|who| is_dead(*who)).collect();
    disown_window(arena, Spot::at(channel.index), entry, &gone, || true);
    vacate(arena, entry, &gone);
    finish(control, cache, channel.index, entry);
}

/// Tells those who wait for changes.
pub(crate) fn announce(arena: &Arena) {
    wait::announce(&arena.header().directory_version);
}

/// Whether `who` holds any end of any channel.
pub(crate) fn has_role(control: &Control<'_>, who: Owner) -> bool {
    let holds = |entry: &DirectoryEntry, side| holder(entry, side) == Some(who);
    entries(control.arena()).any(|(_, entry)| holds(entry, Side::Producer) || holds(entry, Side::Consumer))
}

/// What a channel is, and who is in it.
pub(crate) struct Facts {
    pub(crate) id: i64,
    pub(crate) live: bool,
    pub(crate) kind: Option<Kind>,
    pub(crate) persistent: bool,
    pub(crate) producer: Option<Owner>,
    pub(crate) consumer: Option<Owner>,
    pub(crate) ring: Option<Ring>,
    pub(crate) storage: u32,
}

/// Every channel that is live, or removed and still in use.
pub(crate) fn list<'a>(control: &'a Control<'_>) -> impl Iterator<Item = Facts> + 'a {
    let arena = control.arena();
    entries(arena).filter(|(_, e)| matches!(state_of(e).kind(), entry::LIVE | entry::REMOVED)).map(|(_, entry)| Facts {
        id: entry.id.load(Ordering::Relaxed).cast_signed(),
        live: state_of(entry).kind() == entry::LIVE,
        kind: kind(entry),
        persistent: is_persistent(entry),
        producer: holder(entry, Side::Producer),
        consumer: holder(entry, Side::Consumer),
        ring: ring(arena, entry),
        storage: entry.storage.load(Ordering::Relaxed),
    })
}

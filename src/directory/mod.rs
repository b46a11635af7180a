//! The directory: channel ids to queues, and who holds which end.
//!
//! Promises: an id leads to at most one channel; a role is one cell with its holder's name; leaving a role needs no lock. Every other
//! question and change is made under the control lock, which each function takes as proof. Only [`dismantle`] goes without:
//! nobody but the one process that an entry names as `BUSY` changes it. Refuses: to keep counts: who is attached, and whether
//! anybody is, is what the cells say.
//!
//! # Layout
//! An open-addressed index (hash of the id -> entry number + 1; a hint that [`rebuild_index`] makes anew) over an array of
//! entries. Entries with the same id may stand side by side while a removed channel still has endpoints.
//! ```text
//! state   0 free | BUSY process | LIVE generation | REMOVED generation
//! role    0 nobody's | HELD_BY process | LEFT process
//! ```
//! The index has no tombstones: what is taken out leaves a gap that the rest of its run closes. So a search is as short as in an index
//! made anew, however many ids have come and gone.
//!
//! # Ownership
//! A role cell is its holder's from `HELD_BY` until that one stores 0, or whoever has the control lock does when the holder is dead. The
//! storage stays as long as a role cell is not 0: `LEFT` says that the role is given up, and that its last holder still rings the bells,
//! which lie in the storage. Nobody takes a role that is `LEFT` by somebody alive.
//!
//! # Desertion
//! A channel that nobody holds a role of is *deserted*, unless it is live and persistent. That is seen from the words that are there
//! anyway, so nobody can die, or be kept out by a lock, before it is said. Lists do not show it, and its id is free. Whoever has the
//! control lock may take it out, in four steps:
//! 1. [`retire`]: the id no longer leads there. From here on nobody can come in.
//! 2. [`freeze`]: what is queued becomes the channel's, whoever sent it: `OWNED(x)` -> `QUEUED`. A long ring takes several turns, between
//!    which the lock is given up; the entry notes how far they came, so that who goes on need not be who began.
//! 3. [`seize`]: `BUSY(me)`, which takes a [`Frozen`] as proof of the first two.
//! 4. [`dismantle`], without the lock: the records are freed, then the storage, then the entry.
//!
//! *Two ends leave at once*: each clears its own cell, then looks at the other's, both SeqCst (`SYNC(leave)`). Of the two stores one is
//! the later in the one order of all these; the look behind it finds both cells empty. Both may find that: the lock lets one of them come
//! first, and the other finds the entry changed. One that sees the other `LEFT` has nothing to do: the other looks after it has cleared
//! that. `remove` is the same with the state in place of one cell. Who finds both empty and does not get the lock leaves the channel as
//! it is.
//!
//! *Why the window is frozen first.* A record's header names its sender as long as it is queued. A reaper takes the names of the dead off
//! what is queued, and later frees what still bears one; a window that a living process empties meanwhile, without the lock, is not the
//! reaper's to walk through: its storage may go at any moment. So no such window may name anybody but who empties it. Nobody is in a
//! deserted channel, so nothing is received there, and what its last ends did is seen with their empty cells: a name found in its window
//! is that of a queued record, and the compare-exchange can't meet the same name on a record that has been received and come back.
//!
//! *No window names a victim when a reaper looks at the headers*, wherever other reapers stopped before. Of each entry, once the channels
//! pass was there, whoever made it:
//! - `LIVE`, or `REMOVED` with somebody in it: the victims' names were taken off. Who comes in later puts in what bears its own name:
//!   what a process holds does. A consumer writes its own. None of these is a victim, for the victims are dead, and nobody takes the
//!   place of one who is being reaped (`participant::adopt` wants the reaper's lock, and what it takes over is looked through from the
//!   start).
//! - deserted: frozen as far as the entry says, and the pass goes on only when it is seized. What is frozen stays so, for nobody is in
//!   it, or can come in.
//! - `BUSY` with somebody alive: being made, and empty; or frozen, with at most one name in its window, of who empties it.
//! - `BUSY` with a victim: half made if the storage does not say `STORAGE(entry)`; there is nothing to walk through, and the
//!   ring's words are of whatever was there before. Else it was being emptied, and the record at the head may name the victim: it
//!   becomes `REMOVED` again, and is frozen once more, from the head on.
//! - `BUSY` with one that died since the victims were named: the next reaper's, which begins at the start for it.
//!
//! # If a process dies
//! | create: after | what is left | repaired by |
//! |---|---|---|
//! | the block is allocated, and emptied | owned by the dead | the header scan |
//! | `BUSY(me)`, storage noted | the block owned by the dead, or `STORAGE(entry)` | [`settle`] frees the entry, or has it dismantled |
//! | `LIVE`, before the index | a live channel nobody finds | the next control lock rebuilds the index |
//! | in the index, before the role | a deserted channel, or one that persists | whoever comes there |
//!
//! | attach: after | what is left | repaired by |
//! |---|---|---|
//! | the role | a role of the dead; `GONE` as the last consumer left it | [`relieve`]; the producer hears at once that nobody receives |
//! | `GONE` is cleared | a role of the dead | [`relieve`] sets it again |
//! | the slots beyond the window are cleared in part | a shorter run of them | the next producer |
//!
//! | leave: after | what is left | repaired by |
//! |---|---|---|
//! | `GONE` | a role of the dead | [`relieve`] |
//! | `LEFT` | nobody holds the role; a peer that was not woken looks around within a tick | [`relieve`] |
//! | 0 | a role that is free; maybe a deserted channel | whoever comes there |
//!
//! | taking out: after | what is left | repaired by |
//! |---|---|---|
//! | `REMOVED` | a deserted channel that the index still names | the next control lock rebuilds the index |
//! | frozen, or in part | a deserted channel | whoever comes there, from where the entry says |
//! | `BUSY(me)` | queue partly drained | [`settle`]: `REMOVED` again, and frozen again |
//! | the storage is `OWNED(me)` | owned by the dead | the header scan; the entry no longer finds its `STORAGE` |
//! | an index cell moved | an id that is listed twice, or not | the next control lock rebuilds the index |

use crate::format::{
    BlockHeader, CHANNELS, DirectoryEntry, HELD_BY, Handle, INDEX_CELLS, LEFT, MAX_VALUE_BYTES, Owner, Shape, Word,
    entry,
};
use crate::heap;
use crate::heap::block::{self, Block, Meta, state};
use crate::heap::cache::Cache;
use crate::membership::Control;
use crate::queue::ring::Ring;
use crate::queue::window;
use crate::segment::arena::Arena;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::sys::crash::point;
use crate::sys::memory::NotBacked;
use crate::sys::task;
use crate::wait::{self, EndKey, flags};
use std::marker::PhantomData;
use std::time::Duration;

/// Most slots of a channel.
pub(crate) const MAX_CAPACITY: usize = 1 << 24;
/// Bytes of a type tag that are kept.
pub(crate) const TAG_BYTES: usize = 128;

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

const SIDES: [Side; 2] = [Side::Producer, Side::Consumer];

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
            let bytes = usize::try_from(size).ok().filter(|bytes| *bytes <= MAX_VALUE_BYTES)?;
            let shape = Shape::of(bytes);
            Some((shape.ring_words(slots), Some(shape)))
        }
    }
}

/// What a channel is to be, and is made as, if it has to be made.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) kind: Kind,
    /// Any, if it is left out.
    pub(crate) capacity_log2: Option<u32>,
    /// Either, if it is left out.
    pub(crate) persistent: Option<bool>,
}

/// log2 of the slots of a channel that is made by one who has not said how many: 1024.
const DEFAULT_CAPACITY_LOG2: u32 = 10;

impl Spec {
    fn new_log2(&self) -> u32 {
        self.capacity_log2.unwrap_or(DEFAULT_CAPACITY_LOG2)
    }

    /// Of the channel, if it has to be made.
    fn slots(&self) -> u64 {
        1 << self.new_log2()
    }

    /// Bytes of the block that holds the queue, behind its header.
    pub(crate) fn storage_bytes(&self) -> u64 {
        let words = ring_words(self.kind.form, self.kind.size, self.slots()).map_or(0, |(words, _)| words);
        // One granule holds the block's header alone; see `Arena::queue`.
        48 + size_of::<crate::format::SpscHeader>() as u64 + 8 * words
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
    Kind {
        channel: ChannelRef,
        theirs: Kind,
    },
    /// It has another number of slots.
    Capacity {
        channel: ChannelRef,
        theirs: u64,
    },
    /// It is persistent, or is not.
    Persistence {
        channel: ChannelRef,
    },
    /// The role is held, or given up at this moment.
    Taken {
        channel: ChannelRef,
        holder: Owner,
        thread: u32,
        is_leaving: bool,
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
    // SYNC(leave): what the last holder did in the channel, `GONE` included.
    let word = Word(cell(entry, side).load(Ordering::Acquire));
    (word.kind() == HELD_BY).then_some(word.owner())
}

/// Who holds this end, or has left it and still rings the bells.
fn occupant(entry: &DirectoryEntry, side: Side) -> Option<Owner> {
    // SYNC(leave)
    let word = Word(cell(entry, side).load(Ordering::SeqCst));
    matches!(word.kind(), HELD_BY | LEFT).then_some(word.owner())
}

/// Everybody who is in a channel, or on the way out.
pub(crate) fn occupants(arena: &Arena, channel: ChannelRef) -> impl Iterator<Item = Owner> {
    let entry = arena.directory_entry(channel.index);
    entry.into_iter().flat_map(|entry| SIDES.into_iter().filter_map(|side| occupant(entry, side)))
}

/// Whether nobody holds a role of it, and it is not to stay; see the module.
fn is_deserted(entry: &DirectoryEntry) -> bool {
    // SYNC(leave): the state, too, for one that is removed while its last end leaves.
    let may_go = match Word(entry.state.load(Ordering::SeqCst)).kind() {
        entry::LIVE => !is_persistent(entry),
        entry::REMOVED => true,
        _ => false,
    };
    let is_held = |side| Word(cell(entry, side).load(Ordering::SeqCst)).kind() == HELD_BY;
    may_go && !SIDES.into_iter().any(is_held)
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

/// The channel that `id` leads to, if anybody is in it or it persists.
pub(crate) fn find(control: &Control<'_>, id: i64) -> Option<ChannelRef> {
    let (channel, entry) = find_entry(control.arena(), id)?;
    (!is_deserted(entry)).then_some(channel)
}

/// The entry that `id` leads to.
fn find_entry(arena: &Arena, id: i64) -> Option<(ChannelRef, &DirectoryEntry)> {
    for probe in probes(id) {
        let number = arena.index_cell(probe)?.load(Ordering::Relaxed);
        let index = number.checked_sub(1)?;
        let Some(entry) = arena.directory_entry(index) else { continue };
        let state = state_of(entry);
        if state.kind() == entry::LIVE && entry.id.load(Ordering::Relaxed).cast_signed() == id {
            return Some((ChannelRef { index, generation: state.value() }, entry));
        }
    }
    None
}

fn insert(arena: &Arena, id: i64, index: u32) {
    let mut cells = probes(id).map_while(|probe| arena.index_cell(probe));
    if let Some(cell) = cells.find(|cell| cell.load(Ordering::Relaxed) == 0) {
        cell.store(index + 1, Ordering::Release);
    }
}

/// Takes an entry out of the index. Those behind it, up to the next free cell, that would then be looked for in vain move into the gap.
fn remove_from_index(arena: &Arena, id: i64, index: u32) {
    let number_at = |probe: u32| arena.index_cell(probe).map_or(0, |cell| cell.load(Ordering::Relaxed));
    let set = |probe: u32, number: u32| {
        if let Some(cell) = arena.index_cell(probe) {
            cell.store(number, Ordering::Release);
        }
    };
    let mut run = probes(id).take_while(|probe| number_at(*probe) != 0);
    let Some(mut gap) = run.find(|probe| number_at(*probe) == index + 1) else { return };
    let start = gap;
    // Bounded, for a foreign hand may have left no free cell.
    for probe in (1..INDEX_CELLS).map(|distance| (start + distance) % INDEX_CELLS) {
        let number = number_at(probe);
        if number == 0 {
            break;
        }
        let Some(entry) = arena.directory_entry(number - 1) else { continue };
        let home = hash(entry.id.load(Ordering::Relaxed).cast_signed());
        // Whether its search, which begins at home, passes the gap.
        let ahead = |to: u32| (to + INDEX_CELLS - home) % INDEX_CELLS;
        if ahead(gap) < ahead(probe) {
            set(gap, number);
            point!("index: moved");
            gap = probe;
        }
    }
    set(gap, 0);
}

/// Every entry in use.
fn entries(arena: &Arena) -> impl Iterator<Item = (u32, &DirectoryEntry)> {
    entries_from(arena, 0)
}

/// As [`entries`], from the entry `from` on.
fn entries_from(arena: &Arena, from: u32) -> impl Iterator<Item = (u32, &DirectoryEntry)> {
    (from..arena.directory_top())
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
        insert(arena, entry.id.load(Ordering::Relaxed).cast_signed(), index);
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

/// Empties the ring in a block that is to become a channel's storage: before the lock is taken, for a long one takes its time.
pub(crate) fn prepare(arena: &Arena, storage: &Block, spec: &Spec) {
    let words = ring_words(spec.kind.form, spec.kind.size, spec.slots()).map_or(0, |(words, _)| words);
    let Some((header, words)) = arena.queue(storage.handle.granule(), words) else { return };
    header.head.store(0, Ordering::Relaxed);
    header.batch.store(0, Ordering::Relaxed);
    header.to_producer.store(0, Ordering::Relaxed);
    header.to_consumer.store(0, Ordering::Relaxed);
    for word in words {
        word.store(0, Ordering::Relaxed);
    }
    point!("create: emptied");
}

/// Takes the `side` of the channel `id` for this process. `storage` is [prepared](prepare). A deserted channel that the id led to makes
/// way, and is noted in `deserted`, to be [taken out](take_out). A new producer clears what lies beyond the window before it sends.
pub(crate) fn attach(
    control: &Control<'_>,
    me: Owner,
    id: i64,
    side: Side,
    spec: &Spec,
    storage: &mut Option<Block>,
    deserted: &mut Vec<u32>,
) -> Result<(ChannelRef, Ring), Refused> {
    let arena = control.arena();
    if let Some((channel, entry)) = find_entry(arena, id).filter(|(_, entry)| is_deserted(entry)) {
        retire(control, channel.index, entry);
        deserted.push(channel.index);
    }
    let channel = match find(control, id) {
        Some(channel) => channel,
        None => create(arena, me, id, spec, storage)?,
    };
    let entry = arena.directory_entry(channel.index).ok_or(Refused::Corrupted)?;
    let theirs = kind(entry).ok_or(Refused::Corrupted)?;
    if theirs != spec.kind {
        return Err(Refused::Kind { channel, theirs });
    }
    if let Some(holder) = occupant(entry, side) {
        let thread = thread_of(entry, side).load(Ordering::Relaxed);
        let is_leaving = self::holder(entry, side).is_none();
        return Err(Refused::Taken { channel, holder, thread, is_leaving });
    }
    let ring = ring(arena, entry).ok_or(Refused::Corrupted)?;
    if spec.capacity_log2.is_some_and(|log2| 1 << log2 != ring.capacity) {
        return Err(Refused::Capacity { channel, theirs: ring.capacity });
    }
    if spec.persistent.is_some_and(|persistent| persistent != is_persistent(entry)) {
        return Err(Refused::Persistence { channel });
    }
    thread_of(entry, side).store(task::thread_id(), Ordering::Relaxed);
    cell(entry, side).store(Word::of(HELD_BY, me).0, Ordering::SeqCst);
    point!("attach: role");
    entry.seen.fetch_or(side.seen(), Ordering::AcqRel);
    point!("attach: seen");
    if side == Side::Consumer {
        // Only now: killed before, it leaves a producer that hears that nobody receives; and from here on it has a role that somebody
        // vacates.
        ring.header.to_producer.fetch_and(!flags::GONE, Ordering::AcqRel);
        point!("attach: returned");
    }
    if control.is_fenced() {
        ring.header.to_producer.fetch_or(flags::FENCED, Ordering::AcqRel);
        ring.header.to_consumer.fetch_or(flags::FENCED, Ordering::AcqRel);
    }
    tell(arena, channel.index, ring);
    wait::announce(&arena.header().directory_version);
    Ok((channel, ring))
}

fn thread_of(entry: &DirectoryEntry, side: Side) -> &AtomicU32 {
    match side {
        Side::Producer => &entry.producer_thread,
        Side::Consumer => &entry.consumer_thread,
    }
}

/// Tells both ends of a channel that the other one has come or gone.
fn tell(arena: &Arena, index: u32, ring: Ring) {
    // SYNC(directory): before they are woken, for that is when they look.
    arena.header().directory_version.fetch_add(1, Ordering::Release);
    point!("tell: raised");
    wait::wake(arena, &ring.header.to_producer, EndKey::new(index, false));
    wait::wake(arena, &ring.header.to_consumer, EndKey::new(index, true));
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
    entry.capacity_log2.store(spec.new_log2(), Ordering::Relaxed);
    let options = spec.kind.form.bits() + u32::from(spec.persistent == Some(true)) * entry::PERSISTENT;
    entry.options.store(options, Ordering::Relaxed);
    entry.seen.store(0, Ordering::Relaxed);
    entry.frozen.store(0, Ordering::Relaxed);
    entry.producer.store(0, Ordering::Relaxed);
    entry.consumer.store(0, Ordering::Relaxed);
    set_kind(entry, &spec.kind);
    point!("create: written");
    entry.storage.store(granule, Ordering::Release);
    point!("create: storage");
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

fn free_entry(arena: &Arena) -> Result<(u32, &DirectoryEntry), Refused> {
    let cursor = &arena.header().directory_cursor;
    loop {
        let top = arena.directory_top();
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

/// Leaves the `side` of a channel that this process holds; true if the channel is deserted, and to be [taken out](take_out). Needs no lock:
/// whoever has that may be stopped.
pub(crate) fn release(arena: &Arena, me: Owner, channel: ChannelRef, side: Side) -> bool {
    let Some(entry) = arena.directory_entry(channel.index) else { return false };
    if entry.generation.load(Ordering::Relaxed) != channel.generation || holder(entry, side) != Some(me) {
        return false;
    }
    let ring = ring(arena, entry);
    let cell = cell(entry, side);
    set_gone(entry, side, ring);
    // SYNC(leave), as the store below: all that this end did in the channel. The storage stays until the cell is empty.
    cell.store(Word::of(LEFT, me).0, Ordering::SeqCst);
    point!("detach: left");
    if let Some(ring) = ring {
        tell(arena, channel.index, ring);
    }
    cell.store(0, Ordering::SeqCst);
    point!("detach: released");
    announce(arena);
    is_deserted(entry) && occupant(entry, side.other()).is_none()
}

/// As a consumer goes: a producer is to send no more, unless the channel persists and queues for a consumer to come.
fn set_gone(entry: &DirectoryEntry, side: Side, ring: Option<Ring>) {
    if let Some(ring) = ring
        && side == Side::Consumer
        && !is_persistent(entry)
    {
        ring.header.to_producer.fetch_or(flags::GONE, Ordering::AcqRel);
        point!("vacate: gone");
    }
}

/// Takes the channel in `index` out of the directory if it is deserted, in turns, and frees what was in it. `go_on` is asked now and
/// then. False if it said no, or the control lock was not to be had again in `patience`: then the rest is left to whoever comes there.
pub(crate) fn take_out(
    control: Control<'_>,
    cache: &Cache,
    index: u32,
    patience: Duration,
    go_on: impl Fn() -> bool,
) -> bool {
    let mut control = control;
    loop {
        match clear_out(&control, cache.me(), index) {
            Settled::Done => return true,
            Settled::Seized(seized) => {
                control.release();
                return dismantle(cache, seized, go_on);
            }
            Settled::Partly(_) if !go_on() => return false,
            Settled::Partly(_) => {}
        }
        control = match control.breathe(patience) {
            Ok(control) => control,
            Err(_) => return false,
        };
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

/// Makes the channel's what `gone` own in its window, from `spot` on. `go_on` is asked now and then; where it says no, the answer is
/// where to go on.
///
/// Nobody of `gone` may be able to come into a block any more, by allocating or by receiving. Else a record that was received since we
/// read its slot, and has come back to its sender another way, would be taken for a queued one. That is why a process that leaves keeps
/// its name on what it has sent: it is one that nobody has any more, and whoever takes the block writes its own over it.
fn disown_window(
    arena: &Arena,
    spot: Spot,
    entry: &DirectoryEntry,
    gone: &[Owner],
    go_on: impl Fn() -> bool,
) -> Option<Spot> {
    let ring = ring(arena, entry)?;
    let channel = ChannelRef { index: spot.index, generation: entry.generation.load(Ordering::Relaxed) };
    for (position, granule) in window::records_from(ring, spot.position(ring)) {
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

/// Empties the role cell of one who is dead.
fn vacate(arena: &Arena, index: u32, entry: &DirectoryEntry, side: Side) {
    let ring = ring(arena, entry);
    set_gone(entry, side, ring);
    cell(entry, side).store(0, Ordering::SeqCst);
    point!("vacate: cell");
    if let Some(ring) = ring {
        tell(arena, index, ring);
    }
}

/// A channel that is `BUSY` with this process, to be [dismantled](dismantle).
#[must_use]
#[derive(Debug)]
pub(crate) struct Seized {
    pub(crate) index: u32,
}

/// A removed channel that nobody is in, nor can come into, and whose window bears nobody's name. As long as the control lock is held,
/// nobody else seizes it.
struct Frozen<'a> {
    held: PhantomData<&'a Control<'a>>,
    index: u32,
    entry: &'a DirectoryEntry,
}

/// Makes this process the one that takes out the channel in `index`, if it is deserted and nobody is on the way out. `Partly` if its window
/// is not frozen yet when the lock is overdue: ask again, and it goes on from there.
fn clear_out(control: &Control<'_>, me: Owner, index: u32) -> Settled {
    let Some(entry) = control.arena().directory_entry(index).filter(|entry| is_deserted(entry)) else {
        return Settled::Done;
    };
    if state_of(entry).kind() == entry::LIVE {
        retire(control, index, entry);
    }
    if SIDES.into_iter().any(|side| occupant(entry, side).is_some()) {
        // It looks here again when it is out; if it dies before, a reaper does.
        return Settled::Done;
    }
    match freeze(control, index, entry) {
        Some(frozen) => Settled::Seized(seize(frozen, me)),
        None => Settled::Partly(Spot::at(index)),
    }
}

/// Takes the id away from a channel. The caller has seen that it is live.
fn retire(control: &Control<'_>, index: u32, entry: &DirectoryEntry) {
    // Nothing is frozen as long as somebody may come in.
    entry.frozen.store(0, Ordering::Relaxed);
    // SYNC(leave)
    entry.state.store(Word::number(entry::REMOVED, entry.generation.load(Ordering::Relaxed)).0, Ordering::SeqCst);
    point!("remove: state");
    remove_from_index(control.arena(), entry.id.load(Ordering::Relaxed).cast_signed(), index);
    point!("remove: unindexed");
}

/// Makes what is queued in a removed channel that nobody is in the channel's, whoever sent it; see the module. `None` if the lock is
/// overdue before that is done.
fn freeze<'a>(control: &'a Control<'a>, index: u32, entry: &'a DirectoryEntry) -> Option<Frozen<'a>> {
    let arena = control.arena();
    if storage(arena, index, entry).is_some()
        && let Some(ring) = ring(arena, entry)
    {
        let noted = entry.frozen.load(Ordering::Relaxed);
        // What a foreign hand may have noted is nowhere.
        let from = if noted > ring.head().saturating_add(ring.capacity) { 0 } else { noted };
        for (position, granule) in window::records_from(ring, from) {
            let Some(block) = arena.block(granule) else { continue };
            let state = Word(block.state.load(Ordering::Acquire));
            if state.kind() == state::OWNED {
                block::change(block, state, queued_in(index, entry));
                point!("freeze: queued");
            }
            if position % STRIDE == STRIDE - 1 && control.is_overdue() {
                entry.frozen.store(position + 1, Ordering::Relaxed);
                point!("freeze: noted");
                return None;
            }
        }
    }
    point!("freeze: done");
    Some(Frozen { held: PhantomData, index, entry })
}

fn queued_in(index: u32, entry: &DirectoryEntry) -> Word {
    Word::of(state::QUEUED, Owner::new(index, entry.generation.load(Ordering::Relaxed)))
}

/// The block that holds the channel's queue, if it says so: that of a channel half made or half gone does not.
fn storage<'a>(arena: &'a Arena, index: u32, entry: &DirectoryEntry) -> Option<&'a BlockHeader> {
    let says = Word::of(state::STORAGE, Owner::new(index, entry.generation.load(Ordering::Relaxed)));
    let block = arena.block(entry.storage.load(Ordering::Acquire))?;
    (block.state.load(Ordering::Acquire) == says.0).then_some(block)
}

fn seize(frozen: Frozen<'_>, me: Owner) -> Seized {
    let Frozen { held: PhantomData, index, entry } = frozen;
    entry.state.store(Word::of(entry::BUSY, me).0, Ordering::Release);
    point!("dismantle: busy");
    Seized { index }
}

/// Frees what is queued, the storage, and the entry of a channel. `go_on` is asked now and then; where it says no, the rest is left to
/// whoever comes there, as a removed channel that nobody is in, and the answer is false.
pub(crate) fn dismantle(cache: &Cache, seized: Seized, go_on: impl Fn() -> bool) -> bool {
    let arena = cache.arena();
    let Seized { index } = seized;
    let Some(entry) = arena.directory_entry(index) else { return true };
    if let Some(block) = storage(arena, index, entry) {
        if let Some(ring) = ring(arena, entry)
            && !drain(arena, cache, ring, go_on)
        {
            // Frozen still: what is left was not touched.
            let generation = entry.generation.load(Ordering::Relaxed);
            entry.state.store(Word::number(entry::REMOVED, generation).0, Ordering::Release);
            point!("dismantle: left");
            return false;
        }
        point!("dismantle: drained");
        let says = Word(block.state.load(Ordering::Acquire));
        if says.kind() == state::STORAGE && block::change(block, says, block::owned(cache.me())) {
            point!("dismantle: owned");
            free_block(arena, cache, entry.storage.load(Ordering::Acquire));
        }
    }
    point!("dismantle: freed");
    free_entry_of(arena, index, entry);
    true
}

/// The entry is nobody's any more.
fn free_entry_of(arena: &Arena, index: u32, entry: &DirectoryEntry) {
    entry.storage.store(0, Ordering::Release);
    point!("dismantle: no storage");
    entry.state.store(0, Ordering::Release);
    arena.header().directory_cursor.fetch_min(index, Ordering::Relaxed);
}

/// Frees every queued record, as a consumer that drops what it receives; or as many as `go_on` lets.
fn drain(arena: &Arena, cache: &Cache, ring: Ring, go_on: impl Fn() -> bool) -> bool {
    for (position, granule) in window::records(ring) {
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
        heap::free_found(cache, Handle::new(class, granule));
    }
}

/// Takes the id away from its channel at once; the channel goes when its last endpoint does. Says where it stands if nobody is in it, and
/// whether the id led to one that was not deserted.
pub(crate) fn remove(control: &Control<'_>, id: i64) -> (Option<u32>, bool) {
    let arena = control.arena();
    let Some((channel, entry)) = find_entry(arena, id) else { return (None, false) };
    let was_there = !is_deserted(entry);
    retire(control, channel.index, entry);
    // Who waits for a peer that can't come any more wakes up.
    if let Some(ring) = ring(arena, entry) {
        tell(arena, channel.index, ring);
    }
    announce(arena);
    (is_deserted(entry).then_some(channel.index), was_there)
}

/// What is left to do about a channel.
#[derive(Debug)]
pub(crate) enum Settled {
    Done,
    /// Nobody is in it: it is this process's to [`dismantle`].
    Seized(Seized),
    /// The lock was held for long enough: go on from there.
    Partly(Spot),
}

/// Makes what `gone` have queued in a channel the channel's, and vacates their roles, counting them in `roles`. Whoever holds the
/// control lock may do it, be there a reaper at work elsewhere or not: once they are dead, it may be done at any time, and again.
pub(crate) fn settle(control: &Control<'_>, me: Owner, spot: Spot, gone: &[Owner], roles: &mut usize) -> Settled {
    match relieve(control, me, spot.index, &|who| gone.contains(&who), roles) {
        Settled::Done => {}
        to_do => return to_do,
    }
    let arena = control.arena();
    let Some(entry) = arena.directory_entry(spot.index) else { return Settled::Done };
    if !matches!(state_of(entry).kind(), entry::LIVE | entry::REMOVED) {
        return Settled::Done;
    }
    // Every window: their records stay where they had left their role, too. And whether they hold one or not: a role that is taken from the
    // dead first may be somebody's by now, whose records bear another name.
    disown_window(arena, spot, entry, gone, || !control.is_overdue()).map_or(Settled::Done, Settled::Partly)
}

/// Vacates the roles of those who `are_gone` in the channel in `index`, counting them in `roles`, and makes this process the one that
/// takes it out if nobody is left, or if one of them was at that. Their names stay on what is queued, if somebody is left.
pub(crate) fn relieve(
    control: &Control<'_>,
    me: Owner,
    index: u32,
    are_gone: &dyn Fn(Owner) -> bool,
    roles: &mut usize,
) -> Settled {
    let arena = control.arena();
    let Some(entry) = arena.directory_entry(index) else { return Settled::Done };
    let state = state_of(entry);
    match state.kind() {
        entry::LIVE | entry::REMOVED => {
            for side in SIDES.into_iter().filter(|side| occupant(entry, *side).is_some_and(are_gone)) {
                vacate(arena, index, entry, side);
                *roles += 1;
            }
        }
        entry::BUSY if are_gone(state.owner()) => {
            remove_from_index(arena, entry.id.load(Ordering::Relaxed).cast_signed(), index);
            if storage(arena, index, entry).is_none() {
                // Half made, or half gone; the block is the dead one's, or nobody's any more.
                free_entry_of(arena, index, entry);
                return Settled::Done;
            }
            // The first in its window may bear the name of the one who was emptying it.
            entry.frozen.store(0, Ordering::Relaxed);
            let generation = entry.generation.load(Ordering::Relaxed);
            entry.state.store(Word::number(entry::REMOVED, generation).0, Ordering::Release);
            point!("settle: removed");
        }
        _ => return Settled::Done,
    }
    clear_out(control, me, index)
}

/// The first entry that [`relieve`] has something to do for, as far as can be seen without the lock.
pub(crate) fn first_to_relieve(arena: &Arena, are_gone: &dyn Fn(Owner) -> bool) -> Option<u32> {
    let is_to_relieve = |entry: &DirectoryEntry| {
        let state = state_of(entry);
        let mut occupants = SIDES.into_iter().filter_map(|side| occupant(entry, side)).peekable();
        match state.kind() {
            entry::BUSY => are_gone(state.owner()),
            _ if occupants.peek().is_some() => occupants.any(are_gone),
            _ => is_deserted(entry),
        }
    };
    entries(arena).find(|(_, entry)| is_to_relieve(entry)).map(|(index, _)| index)
}

/// Tells those who wait for changes.
pub(crate) fn announce(arena: &Arena) {
    wait::announce(&arena.header().directory_version);
}

/// What a channel is, and who is in it.
pub(crate) struct Facts {
    /// Of its entry; they come in this order.
    pub(crate) index: u32,
    pub(crate) id: i64,
    /// Its id leads to it, and it is not deserted.
    pub(crate) live: bool,
    pub(crate) kind: Option<Kind>,
    pub(crate) persistent: bool,
    pub(crate) producer: Option<Owner>,
    pub(crate) consumer: Option<Owner>,
    pub(crate) ring: Option<Ring>,
    pub(crate) storage: u32,
}

/// Every channel that is live, or removed and not taken out yet.
pub(crate) fn list<'a>(control: &'a Control<'_>) -> impl Iterator<Item = Facts> + 'a {
    list_from(control, 0)
}

/// As [`list`], from the entry `from` on.
pub(crate) fn list_from<'a>(control: &'a Control<'_>, from: u32) -> impl Iterator<Item = Facts> + 'a {
    let arena = control.arena();
    let is_channel = |entry: &DirectoryEntry| matches!(state_of(entry).kind(), entry::LIVE | entry::REMOVED);
    entries_from(arena, from).filter(move |(_, entry)| is_channel(entry)).map(|(index, entry)| Facts {
        index,
        id: entry.id.load(Ordering::Relaxed).cast_signed(),
        live: state_of(entry).kind() == entry::LIVE && !is_deserted(entry),
        kind: kind(entry),
        persistent: is_persistent(entry),
        producer: holder(entry, Side::Producer),
        consumer: holder(entry, Side::Consumer),
        ring: ring(arena, entry),
        storage: entry.storage.load(Ordering::Relaxed),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::process::attachment::{self, Hold};
    use crate::segment::Wish;
    use std::collections::BTreeMap;

    fn open(name: &str) -> Hold {
        let (capacity, mode) = (Some(1 << 20), 0o600);
        let wish = Wish { capacity, create_new: false, must_exist: false, persist: false, mode, dumped: false };
        attachment::open(name, &wish).unwrap()
    }

    /// Cells looked at to find it; a search for what is not there ends at the first free one.
    fn steps(arena: &Arena, id: i64, index: u32) -> usize {
        probes(id).position(|probe| arena.index_cell(probe).unwrap().load(Ordering::Relaxed) == index + 1).unwrap()
    }

    fn taken_cells(arena: &Arena) -> Vec<bool> {
        (0..INDEX_CELLS).map(|i| arena.index_cell(i).unwrap().load(Ordering::Relaxed) != 0).collect()
    }

    /// Against a map, at every load, with ids that crowd around the index's end; by the number of steps it is as good as new throughout.
    #[test]
    fn an_index_does_not_wear_out() {
        let hold = open(&format!("ipc-buffer-test-index-{}", std::process::id()));
        let control = hold.control().unwrap();
        let arena = control.arena();
        while arena.grow_directory().unwrap().is_some() {}
        let mut free: Vec<u32> = (0..CHANNELS).collect();
        let mut here: BTreeMap<i64, u32> = BTreeMap::new();
        let mut state = 7_u64;
        let mut random = |limit: usize| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            usize::try_from(state >> 33).unwrap() % limit
        };
        let crowd: Vec<i64> = (0..).filter(|id| hash(*id) >= INDEX_CELLS - 3 || hash(*id) < 2).take(60).collect();
        for round in 0..60_000_usize {
            // Fuller and emptier in turn.
            let is_filling = round / 20_000 % 2 == 0;
            let id = if random(8) == 0 { crowd[random(crowd.len())] } else { i64::try_from(random(40_000)).unwrap() };
            let goes = here.contains_key(&id) || !is_filling && random(4) > 0;
            let goes = if here.contains_key(&id) {
                Some(id)
            } else {
                goes.then(|| here.range(id..).next()).flatten().map(|(id, _)| *id)
            };
            if let Some(id) = goes {
                let index = here.remove(&id).unwrap();
                remove_from_index(arena, id, index);
                arena.directory_entry(index).unwrap().state.store(0, Ordering::Relaxed);
                free.push(index);
            } else if let Some(index) = free.pop() {
                let entry = arena.directory_entry(index).unwrap();
                entry.id.store(id.cast_unsigned(), Ordering::Relaxed);
                // Never deserted, to be found.
                entry.options.store(entry::PERSISTENT, Ordering::Relaxed);
                entry.state.store(Word::number(entry::LIVE, 1).0, Ordering::Relaxed);
                insert(arena, id, index);
                here.insert(id, index);
            }
            assert_eq!(find(&control, id).map(|channel| channel.index), here.get(&id).copied());
            if round % 5000 == 4999 {
                assert!(here.iter().all(|(id, index)| find(&control, *id).unwrap().index == *index), "round {round}");
                let before: usize = here.iter().map(|(id, index)| steps(arena, *id, *index)).sum();
                let cells = taken_cells(arena);
                rebuild_index(arena);
                let after: usize = here.iter().map(|(id, index)| steps(arena, *id, *index)).sum();
                assert_eq!((before, cells), (after, taken_cells(arena)), "round {round}: {} ids", here.len());
            }
        }
        assert!(!here.is_empty());
        for index in here.into_values() {
            arena.directory_entry(index).unwrap().state.store(0, Ordering::Relaxed);
        }
        rebuild_index(arena);
    }

    /// A foreign hand has emptied its cell, and the entry is another channel's by now.
    #[test]
    fn an_end_whose_role_was_taken_away_gives_up_nobody_elses() {
        let name = format!("ipc-buffer-test-generation-{}", std::process::id());
        let hold = open(&name);
        let ctx = Buffer::options().open(&name).unwrap().context().unwrap();
        let old = ctx.producer::<u64>(1).unwrap();
        let entry = hold.arena().directory_entry(0).unwrap();
        entry.producer.store(0, Ordering::SeqCst);
        drop(ctx.producer::<u64>(1).unwrap());
        let new = ctx.producer::<u64>(2).unwrap();
        assert_eq!(entry.id.load(Ordering::Relaxed), 2, "in the place of the old one");
        drop(old);
        assert_eq!(holder(entry, Side::Producer), Some(hold.me()));
        drop(new);
        assert_eq!(holder(entry, Side::Producer), None);
    }
}

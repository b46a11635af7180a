//! A heap in shared memory that processes open by name, with typed channels that hand records over without copying.
//!
//! A [`Buffer`] is one named segment. Each thread that works with it has a [`ThreadContext`], which allocates [`Record`]s of
//! any size and attaches to [`Channel`]s by number. Sending gives a record to whoever receives it, in whatever process,
//! without touching its bytes. Everything is released by `Drop`; what a killed process held is given back by the others.
//!
//! ```
//! use bytemuck::{Pod, Zeroable};
//! use ipc_buffer::{Buffer, Layout};
//!
//! #[repr(C)]
//! #[derive(Clone, Copy, Pod, Zeroable, Layout)]
//! struct Sample {
//!     t_ns: u64,
//!     value: f64,
//! }
//!
//! # let name = format!("doc-lib-{}", std::process::id());
//! # let hub = name.as_str();
//! // One process...
//! let buffer = Buffer::open(hub)?;
//! let ctx = buffer.context()?;
//! let mut readings = ctx.producer::<Sample>(1)?;
//! readings.send(ctx.record(Sample { t_ns: 7, value: 1.5 })?)?;
//!
//! # let here = std::thread::spawn({ let hub = hub.to_owned(); move || -> Result<(), ipc_buffer::Error> { let hub = &hub;
//! // ...and another: the same calls, the other end.
//! let buffer = Buffer::open(hub)?;
//! let ctx = buffer.context()?;
//! for reading in ctx.consumer::<Sample>(1)? {
//!     assert_eq!(reading.value, 1.5);
//! }
//! # Ok(()) } });
//! # readings.wait_for_consumer(std::time::Duration::from_secs(30))?;
//! # drop(readings);
//! # here.join().unwrap()?;
//! # Ok::<(), ipc_buffer::Error>(())
//! ```
//!
//! # What travels
//! Plain data: any [`bytemuck::Pod`] type, or a slice of one. Nothing a peer writes can make an invalid value, and nothing in
//! a record can point anywhere. Both ends of a channel must agree on the type: for a struct that derives [`Layout`], on the names, types
//! and offsets of its fields; for any other, on its name, size and alignment; or on a [tag](ChannelOptions::type_tag) of their own.
//!
//! A channel carries [`Record`]s, or small values by value ([`ValueChannel`]): see [`Message`]. Many at once are a batch, for which
//! one store does ([`Channel::send_batch`], [`Channel::recv_batch`]).
//!
//! # Waiting
//! `try_send` and `try_recv` never wait for the other end; `send` and `recv` do, with a timeout or deadline if you like, by their
//! [`WaitStrategy`]; a [`Select`] waits for the first of many ends. A wait ends when there is something to do, or when the other
//! end has left, or was killed. Who sleeps takes no processor time, and costs who does not sleep nothing.
//!
//! # Who is trusted
//! Everyone who may open the segment may write its bytes. What this library reads there is checked before it is used as a
//! place, a class or a length, so that a corrupted segment gives errors and wrong data, but no access outside of it. Two
//! processes that follow the protocol never see each other's records; one that does not can spoil what is in the buffer.
//! Permission bits ([`BufferOptions::mode`]) say who may come in.
//!
//! # Waiting and awaiting
//! `send` and `recv` block, with timeouts and deadlines if wanted; [`Select`] waits for the first of many ends; [`WaitStrategy`] says
//! whether to look or to sleep meanwhile. With the feature `async` everything can be awaited, on any runtime: `recv_async`,
//! `send_async`, `stream` and `sink` of a [`Channel`]. Such a future stays in its thread, as its endpoint does: it belongs in a runtime
//! of one thread, in a `LocalSet` or its like (in a runtime of many threads, too), or in `block_on`. What is received may go to
//! any task.
//!
//! # When processes die or fork
//! No signal handler is needed or installed. Each process holds a lock that the kernel drops when it dies, however it dies; who
//! notices gives back what it held: see [`Buffer::reap`], and [`docs::guarantees`] for what a
//! crash can and cannot do. Children made by `fork` open the buffer anew;
//! handles made before answer `Forked` and do nothing when dropped.
//!
//! # Where it runs
//! 64-bit Linux 5.10 or later: the README says on which kernels the tests were run, and nothing older was tried. Shared memory is
//! `/dev/shm`, whose size is the limit (64 MiB in many containers): memory is reserved before it is used, so a full one is an
//! error and not a crash.

#![warn(clippy::cast_possible_truncation)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("ipc-buffer needs 64-bit Linux: byte leases (F_OFD_SETLK), shared futexes and fallocate");

pub mod docs;

// Layers, from the top down: each knows only what stands below it (tests/layers.rs).
// What users hold: typed, RAII.
mod buffer;
mod channel;
mod inspect;
mod record;
// This process's and this thread's side of a segment.
mod process;
// What the dead have left.
mod recovery;
// Which channels there are, and who is attached.
mod directory;
mod membership;
// Mechanism: offsets and words, knows nothing of types.
mod heap;
mod queue;
mod wait;
// The bytes: mapping and leases, and what lies where.
mod error;
mod format;
mod segment;
// The doors: kernel and atomics.
mod sync;
mod sys;

/// Places to be killed at, for tests of this crate.
#[cfg(feature = "crash-points")]
#[doc(hidden)]
pub mod crash_points {
    pub use crate::sys::crash::{ALL, arm, arm_stop, disarm, passed};
}

/// What the code that `#[derive(Layout)]` writes needs.
#[doc(hidden)]
pub mod __private {
    pub use crate::channel::tag::{Field, Struct};
    pub use inventory::submit;
}

pub use buffer::{Buffer, BufferOptions, ChannelInfo, ThreadContext, name_from_path};
pub use channel::{
    Channel, ChannelOptions, Consumer, IntoIter, Iter, Layout, Message, Peek, PeekBatch, Producer, Role, Select,
    Selectable, TryIter, ValueChannel,
};
#[cfg(feature = "async")]
pub use channel::{RecvFut, RecvStream, SendFut, SendSink};
pub use error::{
    AllocError, AttachError, BufferError, Error, OpenError, PeerError, RecvError, RecvTimeoutError, SendError,
    SendTimeoutError, Side, TryRecvError, TrySendError, Unsent,
};
pub use inspect::{Audit, ClassStats, Owned, Queued, Stats};
pub use record::{Payload, Record, RecordUninit, Within};
pub use recovery::Reaped;
pub use wait::WaitStrategy;

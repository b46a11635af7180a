//! A heap in shared memory that processes open by name, with typed channels that hand records over without copying.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("ipc-buffer needs 64-bit Linux: byte leases (F_OFD_SETLK), shared futexes and fallocate");

mod arena;
mod attachment;
mod audit;
mod buffer;
mod channel;
mod context;
mod directory;
mod error;
mod heap;
mod layout;
mod local;
mod participant;
mod queue;
mod record;
mod recovery;
mod segment;
mod sync;
mod sys;
mod wait;

pub use audit::{Audit, Owned, Queued};
pub use buffer::{Buffer, BufferOptions, ChannelInfo, name_from_path};
pub use channel::{Channel, ChannelOptions, Consumer, IntoIter, Iter, Producer, Role, TryIter};
pub use context::ThreadContext;
pub use error::{
    AllocError, AttachError, BufferError, Error, OpenError, RecvError, RecvTimeoutError, SendError, SendTimeoutError,
    TryRecvError, TrySendError,
};
pub use record::{Payload, Record, RecordUninit};
pub use recovery::Reaped;

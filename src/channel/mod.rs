//! Channels: what users hold of one, and what it does in their stead.

// First, so that its page begins with `send` and `recv`.
mod typed;

mod batch;
pub(crate) mod endpoint;
#[cfg(feature = "async")]
mod future;
mod iter;
mod message;
mod options;
mod peek;
mod ready;
mod select;
pub(crate) mod tag;

pub use endpoint::{Consumer, Producer, Role};
#[cfg(feature = "async")]
pub use future::{RecvFut, RecvStream, SendFut, SendSink};
pub use iter::{IntoIter, Iter, TryIter};
pub use message::Message;
pub use options::ChannelOptions;
pub use peek::{Peek, PeekBatch};
pub use select::{Select, Selectable};
pub use tag::Layout;
pub use typed::{Channel, ValueChannel};

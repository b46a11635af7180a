//! Iterating over what a channel receives.

use crate::channel::endpoint::Consumer;
use crate::channel::message::Message;
use crate::channel::typed::Channel;
use crate::error::RecvError;
use crate::record::{Payload, Record};

impl<T: ?Sized + Payload, M: Message> Channel<T, Consumer, M> {
    /// Receives until the producer has left and everything is drained, waiting for each. Skips what is
    /// [`Corrupted`](RecvError::Corrupted).
    ///
    /// # Panics
    /// The iterator panics if the endpoint's context is closed, or was made before this process was forked off: that is not the end
    /// of the records. Mind `buffer.context()?.consumer(1)?` in one expression: its context is closed at the end of it.
    ///
    /// ```
    /// # let name = format!("doc-chan-iter-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// drop(tx);
    /// let all: Vec<u8> = rx.iter().map(|record| *record).collect();
    /// assert_eq!(all, [5]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn iter(&mut self) -> Iter<'_, T, M> {
        Iter(self)
    }

    /// Receives what is queued now, without waiting.
    ///
    /// ```
    /// # let name = format!("doc-chan-try-iter-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(rx.try_iter().count(), 1);
    /// assert_eq!(rx.try_iter().count(), 0, "and the producer is still there");
    /// # drop(tx);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn try_iter(&mut self) -> TryIter<'_, T, M> {
        TryIter(self)
    }
}

/// Records, or values, until the producer has left; see [`Channel::iter`].
///
/// ```
/// # let name = format!("doc-iter-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
/// tx.send(ctx.record(5)?)?;
/// drop(tx);
/// for record in &mut rx {
///     assert_eq!(*record, 5);
/// }
/// // The endpoint is still ours: the next producer can come.
/// assert!(!rx.has_producer());
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct Iter<'a, T: ?Sized + Payload, M: Message = Record<T>>(&'a mut Channel<T, Consumer, M>);

/// Records, or values, queued now; see [`Channel::try_iter`].
///
/// ```
/// # let name = format!("doc-try-iter-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
/// for i in 0..10 {
///     tx.send(ctx.record(i)?)?;
/// }
/// let first: Vec<u8> = rx.try_iter().take(3).map(|record| *record).collect();
/// assert_eq!((first.as_slice(), rx.len()), (&[0, 1, 2][..], 7));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct TryIter<'a, T: ?Sized + Payload, M: Message = Record<T>>(&'a mut Channel<T, Consumer, M>);

/// Records, or values, until the producer has left; owns the endpoint.
///
/// ```
/// # let name = format!("doc-into-iter-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// let mut tx = ctx.producer::<u8>(1)?;
/// let mut records: ipc_buffer::IntoIter<u8> = ctx.consumer(1)?.into_iter();
/// tx.send(ctx.record(5)?)?;
/// assert_eq!(records.next().as_deref(), Some(&5));
/// drop(records);
/// assert!(!tx.has_consumer(), "the endpoint went with it");
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
pub struct IntoIter<T: ?Sized + Payload, M: Message = Record<T>>(Channel<T, Consumer, M>);

impl<T: ?Sized + Payload, M: Message> Iterator for Iter<'_, T, M> {
    type Item = M;
    fn next(&mut self) -> Option<M> {
        next(self.0)
    }
}

impl<T: ?Sized + Payload, M: Message> Iterator for TryIter<'_, T, M> {
    type Item = M;
    fn next(&mut self) -> Option<M> {
        self.0.try_recv().ok()
    }
}

impl<T: ?Sized + Payload, M: Message> Iterator for IntoIter<T, M> {
    type Item = M;
    fn next(&mut self) -> Option<M> {
        next(&mut self.0)
    }
}

/// The next; what is corrupted is skipped.
fn next<T: ?Sized + Payload, M: Message>(channel: &mut Channel<T, Consumer, M>) -> Option<M> {
    loop {
        match channel.recv() {
            Ok(message) => return Some(message),
            Err(error) if error.ends(channel.id()) => return None,
            Err(_) => {}
        }
    }
}

impl RecvError {
    /// Whether this is the end of iterating the channel `id`, or else something to skip.
    ///
    /// # Panics
    /// If it is neither: a loop would end as if all were well.
    pub(crate) fn ends(self, id: i64) -> bool {
        match self {
            RecvError::Corrupted => false,
            RecvError::Disconnected => true,
            RecvError::ContextClosed | RecvError::Forked | RecvError::Evicted => {
                panic!("iterating channel {id}: {self}")
            }
        }
    }
}

impl<T: ?Sized + Payload, M: Message> IntoIterator for Channel<T, Consumer, M> {
    type Item = M;
    type IntoIter = IntoIter<T, M>;
    fn into_iter(self) -> IntoIter<T, M> {
        IntoIter(self)
    }
}

impl<'a, T: ?Sized + Payload, M: Message> IntoIterator for &'a mut Channel<T, Consumer, M> {
    type Item = M;
    type IntoIter = Iter<'a, T, M>;
    fn into_iter(self) -> Iter<'a, T, M> {
        self.iter()
    }
}

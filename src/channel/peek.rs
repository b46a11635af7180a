//! Looking at what is queued without taking it.
//!
//! # Ownership
//! What is looked at stays queued: it is the channel's, and only this end can take it away. So it stays where it is as long as this end
//! stays attached: a look borrows the endpoint, and keeps its context open.
//!
//! # If a process dies
//! A look writes nothing. Killed while it looks, a process has received nothing.

use crate::channel::endpoint::{Consumer, deadline};
use crate::channel::message::{Message, NoMessage};
use crate::channel::typed::Channel;
use crate::error::{RecvError, RecvTimeoutError, TryRecvError};
use crate::process::local::StayOpen;
use crate::record::{Payload, Record};
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

/// The next record, or value, looked at and not received; see [`Channel::try_peek`]. Dropped, it stays queued.
///
/// ```
/// # let name = format!("doc-peek-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Payload, Peek};
/// fn is_large<T: Payload>(next: &Peek<'_, T>) -> bool {
///     next.capacity_bytes() > 1000
/// }
/// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
/// tx.send(ctx.record(5)?)?;
/// assert!(!is_large(&rx.try_peek()?));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct Peek<'a, T: ?Sized + Payload, M: Message = Record<T>> {
    channel: &'a mut Channel<T, Consumer, M>,
    message: ManuallyDrop<M>,
    _open: StayOpen,
}

/// The next few, looked at and not received; see [`Channel::try_peek_batch`]. Dropped, all stay queued.
///
/// ```
/// # let name = format!("doc-peek-batch-type-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Payload, PeekBatch};
/// fn bytes<T: Payload>(batch: &PeekBatch<'_, T>) -> usize {
///     batch.iter().map(|record| record.capacity_bytes()).sum()
/// }
/// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
/// tx.send_batch([ctx.record(5)?, ctx.record(6)?])?;
/// assert!(bytes(&rx.try_peek_batch(10)?) >= 16);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct PeekBatch<'a, T: ?Sized + Payload, M: Message = Record<T>> {
    channel: &'a mut Channel<T, Consumer, M>,
    messages: Vec<ManuallyDrop<M>>,
    _open: StayOpen,
}

impl<T: ?Sized + Payload, M: Message> Channel<T, Consumer, M> {
    /// Looks at the next record or value, if one is queued, and leaves it there. It is received by [`Peek::take`], or by the next receive.
    /// So who is killed over its work on a message has not received it: the next consumer of a [persistent](crate::ChannelOptions::persistent)
    /// channel gets it again.
    ///
    /// ```
    /// # let name = format!("doc-try-peek-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(**rx.try_peek()?, 5);
    /// let next = rx.try_peek()?;
    /// // ... the work ...
    /// let record = next.take()?;
    /// assert_eq!((*record, rx.len()), (5, 0));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv); what is `Corrupted` is gone past.
    pub fn try_peek(&mut self) -> Result<Peek<'_, T, M>, TryRecvError> {
        let message = self.look()?;
        Ok(self.peeked(message))
    }

    /// [`try_peek`](Self::try_peek), waiting until something is queued.
    ///
    /// ```
    /// # let name = format!("doc-peek-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u64>(1)?, ctx.value_consumer::<u64>(1)?);
    /// tx.send_batch([1, 2])?;
    /// drop(tx);
    /// while let Ok(next) = rx.peek() {
    ///     println!("working on {}", *next);
    ///     next.take()?;
    /// }
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn peek(&mut self) -> Result<Peek<'_, T, M>, RecvError> {
        let endpoint = Rc::clone(&self.endpoint);
        let message = endpoint.wait_to_recv(None, || self.look()).unwrap_or(Err(RecvError::Disconnected))?;
        Ok(self.peeked(message))
    }

    /// [`try_peek`](Self::try_peek), waiting up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-peek-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::Duration;
    /// let mut rx = ctx.value_consumer::<u64>(1)?;
    /// let wait = Duration::from_millis(1);
    /// assert_eq!(rx.peek_timeout(wait).unwrap_err(), RecvTimeoutError::Timeout(wait));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn peek_timeout(&mut self, timeout: Duration) -> Result<Peek<'_, T, M>, RecvTimeoutError> {
        let endpoint = Rc::clone(&self.endpoint);
        let found = endpoint.wait_to_recv(deadline(timeout), || self.look());
        let message = found.ok_or(RecvTimeoutError::Timeout(timeout))??;
        Ok(self.peeked(message))
    }

    /// Looks at what is queued, `max` at most, and leaves it there. What of it was dealt with is received by [`PeekBatch::take`].
    ///
    /// ```
    /// # let name = format!("doc-peek-batch-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u64>(1)?, ctx.value_consumer::<u64>(1)?);
    /// tx.send_batch([5, 6, 7])?;
    /// let batch = rx.try_peek_batch(100)?;
    /// let small = batch.iter().take_while(|value| **value < 7).count();
    /// assert_eq!(batch.take(small)?, [5, 6]);
    /// assert_eq!(rx.recv()?, 7);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_recv_batch`](Self::try_recv_batch).
    pub fn try_peek_batch(&mut self, max: usize) -> Result<PeekBatch<'_, T, M>, TryRecvError> {
        let mut messages = Vec::new();
        if max > 0 {
            messages.push(self.look()?);
        }
        let mut at = self.endpoint.end.at();
        while messages.len() < max.min(self.capacity()) {
            at.step();
            let Some(Ok(message)) = M::peek(&self.endpoint, &at) else { break };
            messages.push(message);
        }
        let open = self.endpoint.local.stay_open();
        Ok(PeekBatch { channel: self, messages, _open: open })
    }

    fn peeked(&mut self, message: ManuallyDrop<M>) -> Peek<'_, T, M> {
        let open = self.endpoint.local.stay_open();
        Peek { channel: self, message, _open: open }
    }

    /// The next that is queued, left where it is.
    fn look(&self) -> Result<ManuallyDrop<M>, TryRecvError> {
        match self.look_once() {
            Some(result) => Ok(result?),
            None if self.endpoint.is_calm() => Err(TryRecvError::Empty),
            None => {
                self.endpoint.nothing_queued()?;
                // It may have sent and left since we looked.
                Ok(self.look_once().unwrap_or(Err(RecvError::Disconnected))?)
            }
        }
    }

    fn look_once(&self) -> Option<Result<ManuallyDrop<M>, RecvError>> {
        let found = M::peek(&self.endpoint, &self.endpoint.end.at())?;
        Some(found.map_err(|NoMessage| self.skip()))
    }
}

/// Why what was looked at is not received: only this end takes anything away.
fn gone(error: TryRecvError) -> RecvError {
    match error {
        TryRecvError::Recv(error) => error,
        TryRecvError::Empty => RecvError::Corrupted,
    }
}

impl<T: ?Sized + Payload, M: Message> Peek<'_, T, M> {
    /// Receives it.
    ///
    /// ```
    /// # let name = format!("doc-peek-take-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(*rx.peek()?.take()?, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Forked` and `Evicted`; `Corrupted`, if another process has meanwhile written what no sender writes.
    pub fn take(self) -> Result<M, RecvError> {
        self.channel.try_recv().map_err(gone)
    }
}

impl<T: ?Sized + Payload, M: Message> PeekBatch<'_, T, M> {
    /// How many there are.
    ///
    /// ```
    /// # let name = format!("doc-peek-batch-len-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u64>(1)?, ctx.value_consumer::<u64>(1)?);
    /// tx.send_batch(0..5)?;
    /// assert_eq!(rx.try_peek_batch(3)?.len(), 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there are none: only if none were asked for.
    ///
    /// ```
    /// # let name = format!("doc-peek-batch-empty-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut rx = ctx.value_consumer::<u64>(1)?;
    /// assert!(rx.try_peek_batch(0)?.is_empty());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Each, in the order in which they were sent.
    ///
    /// ```
    /// # let name = format!("doc-peek-batch-iter-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u64>(1)?, ctx.value_consumer::<u64>(1)?);
    /// tx.send_batch(0..5)?;
    /// assert_eq!(rx.try_peek_batch(5)?.iter().sum::<u64>(), 10);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &M> {
        self.messages.iter().map(|message| &**message)
    }

    /// Receives the first `count` of them by one store, or all, if there are fewer; the rest stays queued.
    ///
    /// ```
    /// # let name = format!("doc-peek-batch-take-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u64>(1)?, ctx.value_consumer::<u64>(1)?);
    /// tx.send_batch(0..5)?;
    /// rx.try_peek_batch(5)?.take(2)?;
    /// assert_eq!(rx.recv()?, 2);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Peek::take`].
    pub fn take(self, count: usize) -> Result<Vec<M>, RecvError> {
        let count = count.min(self.messages.len());
        self.channel.try_recv_batch(count).map_err(gone)
    }
}

impl<T: ?Sized + Payload, M: Message> Deref for Peek<'_, T, M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.message
    }
}

impl<T: ?Sized + Payload, M: Message + fmt::Debug> fmt::Debug for Peek<'_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peek").field(&*self.message).finish()
    }
}

impl<T: ?Sized + Payload, M: Message + fmt::Debug> fmt::Debug for PeekBatch<'_, T, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

//! Batches: many messages for one publication.
//!
//! One store publishes a batch, one store receives it, and the other end is woken once. See `queue::spsc` for what a kill inside
//! one leaves. The caller's code never runs between its stores: what it gives is collected first.

use crate::channel::endpoint::{Consumer, Producer, deadline};
use crate::channel::message::{Message, NoMessage};
use crate::channel::typed::Channel;
use crate::error::{RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};
use crate::record::Payload;
use crate::sys::crash::point;
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::vec;

impl<T: ?Sized + Payload, M: Message> Channel<T, Producer, M> {
    /// Queues all of the records or values if there are free slots, in order, and never waits. What fits is published together: the
    /// consumer sees none of it, or all; killed meanwhile, this process has sent none of it, or all.
    ///
    /// Takes everything out of `items` before the first is queued, without copying if it is a `Vec`.
    ///
    /// ```
    /// # let name = format!("doc-try-send-batch-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, TrySendError};
    /// let mut tx = ctx.value_producer_with::<u32>(1, &ChannelOptions::new().capacity(4))?;
    /// let Err(TrySendError::Full(rest)) = tx.try_send_batch(0..6) else { panic!("it has four slots") };
    /// assert_eq!((tx.len(), rest), (4, vec![4, 5]));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`try_send`](Self::try_send), each with all that was not sent: `Full` with what has found no slot; `ForeignRecord`
    /// with the first record of another buffer and what comes after it.
    pub fn try_send_batch(&mut self, items: impl IntoIterator<Item = M>) -> Result<(), TrySendError<Vec<M>>> {
        let items: Vec<M> = items.into_iter().collect();
        self.try_send_rest(items.into_iter()).map_err(|refused| refused.map(Iterator::collect))
    }

    /// Queues all of the records or values, in order, waiting for free slots. What fits at a time is published together.
    ///
    /// ```
    /// # let name = format!("doc-send-batch-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u32>(1)?, ctx.consumer::<u32>(1)?);
    /// let records = (0..3).map(|i| ctx.record(i)).collect::<Result<Vec<_>, _>>()?;
    /// tx.send_batch(records)?;
    /// assert!(rx.try_iter().map(|record| *record).eq(0..3));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`send`](Self::send), each with all that was not sent.
    pub fn send_batch(&mut self, items: impl IntoIterator<Item = M>) -> Result<(), SendError<Vec<M>>> {
        self.send_all(items, None).map_err(|error| error.without_timeout().map(Iterator::collect))
    }

    /// [`send_batch`](Self::send_batch), waiting up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-send-batch-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::Duration;
    /// let mut tx = ctx.value_producer_with::<u32>(1, &ChannelOptions::new().capacity(4))?;
    /// let late = tx.send_batch_timeout(0..6, Duration::from_millis(1));
    /// let Err(SendTimeoutError::Timeout(rest)) = late else { panic!("it has four slots") };
    /// assert_eq!(rest, [4, 5]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send_batch`](Self::send_batch), and `Timeout`.
    pub fn send_batch_timeout(
        &mut self,
        items: impl IntoIterator<Item = M>,
        timeout: Duration,
    ) -> Result<(), SendTimeoutError<Vec<M>>> {
        self.send_all(items, deadline(timeout)).map_err(|error| error.map(Iterator::collect))
    }

    /// [`send_batch`](Self::send_batch), waiting until `deadline`.
    ///
    /// ```
    /// # let name = format!("doc-send-batch-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::{Duration, Instant};
    /// let mut tx = ctx.value_producer_with::<u32>(1, &ChannelOptions::new().capacity(4))?;
    /// let late = tx.send_batch_deadline(0..6, Instant::now() + Duration::from_millis(1));
    /// let Err(SendTimeoutError::Timeout(rest)) = late else { panic!("it has four slots") };
    /// assert_eq!(rest, [4, 5]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send_batch`](Self::send_batch), and `Timeout`.
    pub fn send_batch_deadline(
        &mut self,
        items: impl IntoIterator<Item = M>,
        deadline: Instant,
    ) -> Result<(), SendTimeoutError<Vec<M>>> {
        self.send_all(items, Some(deadline)).map_err(|error| error.map(Iterator::collect))
    }

    fn send_all(
        &mut self,
        items: impl IntoIterator<Item = M>,
        deadline: Option<Instant>,
    ) -> Result<(), SendTimeoutError<vec::IntoIter<M>>> {
        let items: Vec<M> = items.into_iter().collect();
        let Err(refused) = self.try_send_rest(items.into_iter()) else { return Ok(()) };
        let endpoint = Rc::clone(&self.endpoint);
        endpoint.wait_to_send(refused, deadline, |rest| self.try_send_rest(rest))
    }

    /// Queues what there is room for; gives back the rest.
    fn try_send_rest(&self, mut items: vec::IntoIter<M>) -> Result<(), TrySendError<vec::IntoIter<M>>> {
        let endpoint = &*self.endpoint;
        while !items.as_slice().is_empty() {
            match M::push_batch(items.as_slice(), endpoint) {
                Some(Ok((sent, rung))) => {
                    // They are the channel's now.
                    items.by_ref().take(sent).for_each(std::mem::forget);
                    if rung {
                        point!("send: before the wake");
                        endpoint.answer(sent);
                    }
                }
                Some(Err(why)) => return Err(endpoint.not_pushed(items, why)),
                None => return Err(TrySendError::ForeignRecord(items)),
            }
        }
        Ok(())
    }
}

impl<T: ?Sized + Payload, M: Message> Channel<T, Consumer, M> {
    /// Receives what is queued, `max` at most, and never waits. All of it is received by one store: killed meanwhile, this process
    /// has received none of it, or all.
    ///
    /// To stop at any point and leave the rest queued, use [`try_iter`](Self::try_iter), which receives one at a time.
    ///
    /// ```
    /// # let name = format!("doc-try-recv-batch-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u32>(1)?, ctx.value_consumer::<u32>(1)?);
    /// tx.send_batch(0..5)?;
    /// assert_eq!(rx.try_recv_batch(3)?, [0, 1, 2]);
    /// assert_eq!(rx.try_recv_batch(100)?, [3, 4]);
    /// assert!(rx.try_recv_batch(100).is_err(), "nothing is queued");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv); so there is at least one in a batch, unless `max` is 0. It ends before what is
    /// [`Corrupted`](RecvError::Corrupted).
    pub fn try_recv_batch(&mut self, max: usize) -> Result<Vec<M>, TryRecvError> {
        let mut batch = self.take_batch(max)?;
        if batch.is_empty() && max > 0 {
            self.endpoint.nothing_queued()?;
            // It may have sent and left since we looked.
            batch = self.take_batch(max)?;
            if batch.is_empty() {
                return Err(RecvError::Disconnected.into());
            }
        }
        Ok(batch)
    }

    /// Receives what is queued, if anything.
    fn take_batch(&self, max: usize) -> Result<Vec<M>, RecvError> {
        let mut batch = Vec::new();
        let mut at = self.endpoint.end.at();
        // No more than there can be: what comes behind the window is no message, whoever says so.
        while batch.len() < max.min(self.capacity()) {
            match M::take(&self.endpoint, &mut at) {
                Some(Ok(message)) => batch.push(message),
                Some(Err(NoMessage)) if batch.is_empty() => return Err(self.skip()),
                _ => break,
            }
            point!("recv batch: owned");
        }
        if !batch.is_empty() {
            self.received(at, batch.len());
        }
        Ok(batch)
    }

    /// Receives what is queued, `max` at most, waiting until something is.
    ///
    /// ```
    /// # let name = format!("doc-recv-batch-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.producer::<u32>(1)?, ctx.consumer::<u32>(1)?);
    /// tx.send_batch([ctx.record(5)?, ctx.record(6)?])?;
    /// for record in rx.recv_batch(64)? {
    ///     assert!(*record == 5 || *record == 6);
    /// }
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn recv_batch(&mut self, max: usize) -> Result<Vec<M>, RecvError> {
        self.recv_batch_until(max, None).unwrap_or(Err(RecvError::Disconnected))
    }

    /// [`recv_batch`](Self::recv_batch), waiting up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-recv-batch-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::Duration;
    /// let mut rx = ctx.value_consumer::<u32>(1)?;
    /// let wait = Duration::from_millis(1);
    /// assert_eq!(rx.recv_batch_timeout(64, wait), Err(RecvTimeoutError::Timeout(wait)));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn recv_batch_timeout(&mut self, max: usize, timeout: Duration) -> Result<Vec<M>, RecvTimeoutError> {
        let result = self.recv_batch_until(max, deadline(timeout)).ok_or(RecvTimeoutError::Timeout(timeout))?;
        Ok(result?)
    }

    /// [`recv_batch`](Self::recv_batch), waiting until `deadline`.
    ///
    /// ```
    /// # let name = format!("doc-recv-batch-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::{Duration, Instant};
    /// let mut rx = ctx.value_consumer::<u32>(1)?;
    /// let late = rx.recv_batch_deadline(64, Instant::now() + Duration::from_millis(1));
    /// assert!(matches!(late, Err(RecvTimeoutError::Timeout(_))));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn recv_batch_deadline(&mut self, max: usize, deadline: Instant) -> Result<Vec<M>, RecvTimeoutError> {
        let waited = deadline.saturating_duration_since(Instant::now());
        let result = self.recv_batch_until(max, Some(deadline)).ok_or(RecvTimeoutError::Timeout(waited))?;
        Ok(result?)
    }

    fn recv_batch_until(&mut self, max: usize, deadline: Option<Instant>) -> Option<Result<Vec<M>, RecvError>> {
        let endpoint = Rc::clone(&self.endpoint);
        endpoint.wait_to_recv(deadline, || self.try_recv_batch(max))
    }
}

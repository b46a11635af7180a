//! Channels: typed ends of queues, one thread each.
//!
//! # Ownership
//! An endpoint is its context's and its thread's. A queued record belongs to the channel; sending gives a record up, receiving
//! gives one out.
//!
//! # If a process dies
//! See `queue::spsc` for what happens to records, and `endpoint` for roles.

#![allow(unsafe_code)]

use crate::arena::Start;
use crate::endpoint::{Consumer, Endpoint, Producer, Role, deadline};
use crate::error::{AttachError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};
use crate::heap::block;
use crate::local::{Attached, Inert, Local};
use crate::options::ChannelOptions;
use crate::queue::spsc::{self, NotPushed};
use crate::record::{Payload, Record};
use crate::select::{self, Selectable};
use crate::sys::crash::point;
use std::fmt;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One end of a named, typed queue with one producer and one consumer: [`Channel<T, Producer>`](Producer) or
/// [`Channel<T, Consumer>`](Consumer).
///
/// Made by [`ThreadContext::producer`](crate::ThreadContext::producer) and
/// [`consumer`](crate::ThreadContext::consumer); stays in that thread, and works as long as that context is open. Dropping it
/// releases the role: the peer then gets `Disconnected` (a consumer after it has received everything queued), and another
/// endpoint may take the role and go on. When both ends have left, the channel and what is queued in it are freed, unless it is
/// [`persistent`](ChannelOptions::persistent). So what a producer sends before any consumer has come is gone if it leaves, or is killed,
/// before one does: [wait for it](Channel::wait_for_consumer), or make the channel persistent.
///
/// If the process of one end is killed, the other end sees a peer that has left, within 250 ms if it waits; records that were
/// sent are still received, in order and once.
///
/// ```
/// # let name = format!("doc-channel-{}", std::process::id());
/// let buffer = ipc_buffer::Buffer::open(&name)?;
/// let ctx = buffer.context()?;
/// let mut tx = ctx.producer::<u64>(7)?;
/// let mut rx = ctx.consumer::<u64>(7)?;
/// tx.send(ctx.record(1)?)?;
/// tx.send(ctx.record(2)?)?;
/// drop(tx);
/// let all: Vec<u64> = rx.iter().map(|record| *record).collect();
/// assert_eq!(all, [1, 2]);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct Channel<T: ?Sized + Payload, R: Role> {
    endpoint: Rc<Endpoint>,
    role: PhantomData<R>,
    carries: PhantomData<Record<T>>,
}

impl<T: ?Sized + Payload, R: Role> fmt::Debug for Channel<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { id, side, .. } = &*self.endpoint;
        let attached = self.endpoint.is_attached();
        f.debug_struct("Channel").field("id", id).field("side", side).field("attached", &attached).finish()
    }
}

impl<T: ?Sized + Payload, R: Role> Drop for Channel<T, R> {
    fn drop(&mut self) {
        self.endpoint.detach();
    }
}

impl<T: ?Sized + Payload, R: Role> select::sealed::Sealed for Channel<T, R> {
    #[allow(private_interfaces)]
    fn end(&self) -> select::End {
        self.endpoint.clone()
    }
}

impl<T: ?Sized + Payload, R: Role> Selectable for Channel<T, R> {
    type Role = R;
}

impl<T: ?Sized + Payload, R: Role> Channel<T, R> {
    pub(crate) fn attach(local: &Rc<Local>, id: i64, options: &ChannelOptions) -> Result<Self, AttachError> {
        let endpoint = Endpoint::attach::<R>(local, id, &options.spec::<T>()?, options.strategy)?;
        Ok(Self { endpoint, role: PhantomData, carries: PhantomData })
    }

    /// The channel's id.
    ///
    /// ```
    /// # let name = format!("doc-chan-id-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// assert_eq!(ctx.producer::<u8>(i64::MIN)?.id(), i64::MIN);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn id(&self) -> i64 {
        self.endpoint.id
    }

    /// Records it can queue; fixed when the channel was created. 0 once the endpoint is detached.
    ///
    /// ```
    /// # let name = format!("doc-chan-capacity-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let tx = ctx.producer::<u8>(1)?;
    /// assert_eq!(tx.capacity(), 1024);
    /// drop(ctx);
    /// assert_eq!(tx.capacity(), 0, "its context has closed");
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn capacity(&self) -> usize {
        self.endpoint.end.ring().slots.len()
    }

    /// Records queued. The other end may change it at any time: what the producer sees can only shrink meanwhile, what the
    /// consumer sees only grow. Looks at every queued slot.
    ///
    /// ```
    /// # let name = format!("doc-chan-len-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// tx.send(ctx.record(1)?)?;
    /// tx.send(ctx.record(2)?)?;
    /// assert_eq!((tx.len(), rx.len()), (2, 2));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn len(&self) -> usize {
        spsc::window(self.endpoint.end.ring()).count()
    }

    /// Whether nothing is queued; see [`len`](Self::len).
    ///
    /// ```
    /// # let name = format!("doc-chan-empty-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut tx = ctx.producer::<u8>(1)?;
    /// assert!(tx.is_empty());
    /// tx.send(ctx.record(1)?)?;
    /// assert!(!tx.is_empty());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: ?Sized + Payload> Channel<T, Producer> {
    /// Queues the record if a slot is free, and never waits.
    ///
    /// ```
    /// # let name = format!("doc-try-send-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, TrySendError};
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// tx.try_send(ctx.record(1)?)?;
    /// tx.try_send(ctx.record(2)?)?;
    /// let Err(TrySendError::Full(record)) = tx.try_send(ctx.record(3)?) else { panic!("it has two slots") };
    /// assert_eq!(*record, 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// Each gives the record back: `Full`, `Disconnected` if the consumer has left (not before the first has come),
    /// `ForeignRecord` if it is another buffer's, `Forked`, `ContextClosed`.
    #[inline(always)]
    pub fn try_send(&mut self, record: Record<T>) -> Result<(), TrySendError<T>> {
        let endpoint = &*self.endpoint;
        if !record.belongs_to(endpoint.local.cache().tag()) {
            return Err(TrySendError::ForeignRecord(record));
        }
        match endpoint.end.push(record.granule()) {
            Ok(rung) => {
                record.into_granule();
                if rung {
                    point!("send: before the wake");
                    endpoint.answer();
                }
                Ok(())
            }
            Err(why) => Err(self.not_pushed(record, why)),
        }
    }

    #[cold]
    #[inline(never)]
    fn not_pushed(&self, record: Record<T>, why: NotPushed) -> TrySendError<T> {
        match (self.endpoint.check(), why) {
            (Err(Inert::Forked), _) => TrySendError::Forked(record),
            (Err(Inert::Closed), _) => TrySendError::ContextClosed(record),
            (Ok(()), NotPushed::Gone) => TrySendError::Disconnected(record),
            (Ok(()), NotPushed::Full) if self.endpoint.has_lost_peer() => TrySendError::Disconnected(record),
            (Ok(()), NotPushed::Full) => {
                self.endpoint.polled_in_vain();
                TrySendError::Full(record)
            }
        }
    }

    /// Queues the record, waiting for a free slot.
    ///
    /// ```
    /// # let name = format!("doc-send-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::ChannelOptions;
    /// let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().capacity(2))?;
    /// # let receiver = std::thread::spawn({ let buffer = buffer.clone(); move || -> Result<u64, ipc_buffer::Error> {
    /// #     let ctx = buffer.context()?;
    /// #     Ok(ctx.consumer::<u64>(1)?.iter().map(|record| *record).sum())
    /// # } });
    /// for i in 0..100 {
    ///     tx.send(ctx.record(i)?)?; // waits for a receiver in another thread, which frees the two slots
    /// }
    /// # drop(tx);
    /// # assert_eq!(receiver.join().unwrap()?, 4950);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_send`](Self::try_send) without `Full`. A consumer whose process is killed counts as one that has left: within 250 ms
    /// for a sender that waits, and for others when the channel is full, or anybody reaps (as [`has_consumer`](Self::has_consumer)
    /// does). What was sent meanwhile stays queued for the next consumer.
    #[inline(always)]
    pub fn send(&mut self, record: Record<T>) -> Result<(), SendError<T>> {
        match self.try_send(record) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(record)) => self.send_slow(record, None).map_err(|error| match error {
                SendTimeoutError::Timeout(record) | SendTimeoutError::Disconnected(record) => {
                    SendError::Disconnected(record)
                }
                SendTimeoutError::ForeignRecord(record) => SendError::ForeignRecord(record),
                SendTimeoutError::Forked(record) => SendError::Forked(record),
                SendTimeoutError::ContextClosed(record) => SendError::ContextClosed(record),
            }),
            Err(TrySendError::Disconnected(record)) => Err(SendError::Disconnected(record)),
            Err(TrySendError::ForeignRecord(record)) => Err(SendError::ForeignRecord(record)),
            Err(TrySendError::Forked(record)) => Err(SendError::Forked(record)),
            Err(TrySendError::ContextClosed(record)) => Err(SendError::ContextClosed(record)),
        }
    }

    /// Queues the record, waiting for a free slot up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-send-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::Duration;
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// tx.send_timeout(ctx.record(1)?, Duration::from_millis(1))?;
    /// tx.send_timeout(ctx.record(2)?, Duration::from_millis(1))?;
    /// let late = tx.send_timeout(ctx.record(3)?, Duration::from_millis(1));
    /// let Err(SendTimeoutError::Timeout(record)) = late else { panic!("it has two slots") };
    /// assert_eq!(*record, 3);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and `Timeout`.
    pub fn send_timeout(&mut self, record: Record<T>, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send_slow(record, deadline(timeout))
    }

    /// Queues the record, waiting for a free slot until `deadline`.
    ///
    /// ```
    /// # let name = format!("doc-send-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, SendTimeoutError};
    /// use std::time::{Duration, Instant};
    /// let mut tx = ctx.producer_with::<u8>(1, &ChannelOptions::new().capacity(2))?;
    /// let deadline = Instant::now() + Duration::from_millis(1);
    /// tx.send_deadline(ctx.record(1)?, deadline)?;
    /// tx.send_deadline(ctx.record(2)?, deadline)?;
    /// let late = tx.send_deadline(ctx.record(3)?, deadline);
    /// assert!(matches!(late, Err(SendTimeoutError::Timeout(_))));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send), and `Timeout`.
    pub fn send_deadline(&mut self, record: Record<T>, deadline: Instant) -> Result<(), SendTimeoutError<T>> {
        self.send_slow(record, Some(deadline))
    }

    #[cold]
    fn send_slow(&mut self, record: Record<T>, deadline: Option<Instant>) -> Result<(), SendTimeoutError<T>> {
        let endpoint = Rc::clone(&self.endpoint);
        let mut record = Some(record);
        let ready = || match self.try_send(record.take()?) {
            Ok(()) => Some(Ok(())),
            Err(TrySendError::Full(back)) => {
                record = Some(back);
                None
            }
            Err(TrySendError::Disconnected(back)) => Some(Err(SendTimeoutError::Disconnected(back))),
            Err(TrySendError::ForeignRecord(back)) => Some(Err(SendTimeoutError::ForeignRecord(back))),
            Err(TrySendError::Forked(back)) => Some(Err(SendTimeoutError::Forked(back))),
            Err(TrySendError::ContextClosed(back)) => Some(Err(SendTimeoutError::ContextClosed(back))),
        };
        match endpoint.wait_until(deadline, || endpoint.end.has_room(), ready) {
            Some(result) => result,
            None => record.map_or(Ok(()), |record| Err(SendTimeoutError::Timeout(record))),
        }
    }

    /// Whether a consumer is attached and alive now.
    ///
    /// ```
    /// # let name = format!("doc-has-consumer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let tx = ctx.producer::<u8>(1)?;
    /// assert!(!tx.has_consumer());
    /// let _rx = ctx.consumer::<u8>(1)?;
    /// assert!(tx.has_consumer());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn has_consumer(&self) -> bool {
        self.endpoint.has_live_peer()
    }

    /// Waits until a consumer is attached; false if none came in time.
    ///
    /// ```
    /// # let name = format!("doc-wait-consumer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let tx = ctx.producer::<u8>(1)?;
    /// assert!(!tx.wait_for_consumer(Duration::from_millis(1)));
    /// let _rx = ctx.consumer::<u8>(1)?;
    /// assert!(tx.wait_for_consumer(Duration::from_millis(1)));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn wait_for_consumer(&self, timeout: Duration) -> bool {
        self.endpoint.wait_for_peer(timeout)
    }
}

impl<T: ?Sized + Payload> Channel<T, Consumer> {
    /// Receives the next record if one is queued, and never waits.
    ///
    /// ```
    /// # let name = format!("doc-try-recv-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{RecvError, TryRecvError};
    /// let mut rx = ctx.consumer::<u8>(1)?;
    /// assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Empty);
    /// drop(ctx.producer::<u8>(1)?);
    /// assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::Disconnected));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Empty`; `Disconnected` if everything queued was received and the producer has left (not before the first has come);
    /// `Corrupted` if a slot held what no sender writes; `Forked`, `ContextClosed`.
    #[inline(always)]
    pub fn try_recv(&mut self) -> Result<Record<T>, TryRecvError> {
        let endpoint = &*self.endpoint;
        match endpoint.end.peek() {
            Some(granule) => self.take(granule).map_err(TryRecvError::Recv),
            None => self.nothing_queued(),
        }
    }

    #[inline(always)]
    fn take(&self, granule: u32) -> Result<Record<T>, RecvError> {
        let endpoint = &*self.endpoint;
        let cache = endpoint.local.cache();
        let arena = cache.arena();
        // A header that says neither "somebody's" nor "the channel's" was not queued by this library.
        let start = arena.start(granule).filter(|start| block::is_sendable(start.header()));
        // SAFETY: not ours yet, but queued for us: nobody else writes it. If it is no record, it is left to whoever it is.
        let record = start.and_then(|start| unsafe { Record::from_block(cache.tag(), arena, granule, start) });
        let header = start.filter(|_| record.is_some()).map(Start::header);
        let rung = endpoint.end.take(arena, cache.me(), header);
        if rung {
            point!("recv: before the wake");
            endpoint.answer();
        }
        record.ok_or(RecvError::Corrupted)
    }

    #[cold]
    #[inline(never)]
    fn nothing_queued(&self) -> Result<Record<T>, TryRecvError> {
        let endpoint = &*self.endpoint;
        endpoint.check().map_err(|inert| match inert {
            Inert::Forked => RecvError::Forked,
            Inert::Closed => RecvError::ContextClosed,
        })?;
        if endpoint.has_lost_peer() {
            // It may have sent and left since we looked.
            return match endpoint.end.peek() {
                Some(granule) => self.take(granule).map_err(TryRecvError::Recv),
                None => Err(RecvError::Disconnected.into()),
            };
        }
        endpoint.polled_in_vain();
        Err(TryRecvError::Empty)
    }

    /// Receives the next record, waiting for it. Before the first producer has come nobody is disconnected, so this waits for one
    /// to come, if need be for ever.
    ///
    /// ```
    /// # let name = format!("doc-recv-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let mut rx = ctx.consumer::<u64>(1)?;
    /// # let sender = std::thread::spawn({ let buffer = buffer.clone(); move || -> Result<(), ipc_buffer::Error> {
    /// #     let ctx = buffer.context()?;
    /// #     Ok(ctx.producer(1)?.send(ctx.record(5_u64)?)?)
    /// # } });
    /// // Another thread sends one record and leaves.
    /// assert_eq!(*rx.recv()?, 5);
    /// assert_eq!(rx.recv().unwrap_err(), ipc_buffer::RecvError::Disconnected);
    /// # sender.join().unwrap()?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv) without `Empty`. A producer whose process is killed counts as one that has left, within
    /// 250 ms.
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Record<T>, RecvError> {
        match self.try_recv() {
            Ok(record) => Ok(record),
            Err(TryRecvError::Recv(error)) => Err(error),
            Err(TryRecvError::Empty) => self.recv_slow(None).unwrap_or(Err(RecvError::Disconnected)),
        }
    }

    /// Receives the next record, waiting for it up to `timeout`.
    ///
    /// ```
    /// # let name = format!("doc-recv-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::Duration;
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// let wait = Duration::from_millis(1);
    /// assert_eq!(rx.recv_timeout(wait).unwrap_err(), RecvTimeoutError::Timeout(wait));
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(*rx.recv_timeout(wait)?, 5);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<Record<T>, RecvTimeoutError> {
        let result = self.recv_slow(deadline(timeout)).ok_or(RecvTimeoutError::Timeout(timeout))?;
        Ok(result?)
    }

    /// Receives the next record, waiting for it until `deadline`.
    ///
    /// ```
    /// # let name = format!("doc-recv-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::RecvTimeoutError;
    /// use std::time::{Duration, Instant};
    /// let (mut tx, mut rx) = (ctx.producer::<u8>(1)?, ctx.consumer::<u8>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// let deadline = Instant::now() + Duration::from_millis(1);
    /// assert_eq!(*rx.recv_deadline(deadline)?, 5);
    /// assert!(matches!(rx.recv_deadline(deadline), Err(RecvTimeoutError::Timeout(_))));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and `Timeout`.
    pub fn recv_deadline(&mut self, deadline: Instant) -> Result<Record<T>, RecvTimeoutError> {
        let waited = deadline.saturating_duration_since(Instant::now());
        let result = self.recv_slow(Some(deadline)).ok_or(RecvTimeoutError::Timeout(waited))?;
        Ok(result?)
    }

    #[cold]
    fn recv_slow(&mut self, deadline: Option<Instant>) -> Option<Result<Record<T>, RecvError>> {
        let endpoint = Rc::clone(&self.endpoint);
        let ready = || match self.try_recv() {
            Ok(record) => Some(Ok(record)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Recv(error)) => Some(Err(error)),
        };
        endpoint.wait_until(deadline, || endpoint.end.peek().is_some(), ready)
    }

    /// Receives until the producer has left and everything is drained, waiting for each record. Skips what is
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
    pub fn iter(&mut self) -> Iter<'_, T> {
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
    pub fn try_iter(&mut self) -> TryIter<'_, T> {
        TryIter(self)
    }

    /// Whether a producer is attached and alive now.
    ///
    /// ```
    /// # let name = format!("doc-has-producer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// assert!(!rx.has_producer());
    /// let _tx = ctx.producer::<u8>(1)?;
    /// assert!(rx.has_producer());
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn has_producer(&self) -> bool {
        self.endpoint.has_live_peer()
    }

    /// Waits until a producer is attached; false if none came in time.
    ///
    /// ```
    /// # let name = format!("doc-wait-producer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// assert!(!rx.wait_for_producer(Duration::from_millis(1)));
    /// let _tx = ctx.producer::<u8>(1)?;
    /// assert!(rx.wait_for_producer(Duration::from_millis(1)));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn wait_for_producer(&self, timeout: Duration) -> bool {
        self.endpoint.wait_for_peer(timeout)
    }
}

/// Records until the producer has left; see [`Channel::iter`].
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
pub struct Iter<'a, T: ?Sized + Payload>(&'a mut Channel<T, Consumer>);

/// Records queued now; see [`Channel::try_iter`].
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
pub struct TryIter<'a, T: ?Sized + Payload>(&'a mut Channel<T, Consumer>);

/// Records until the producer has left; owns the endpoint.
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
pub struct IntoIter<T: ?Sized + Payload>(Channel<T, Consumer>);

impl<T: ?Sized + Payload> Iterator for Iter<'_, T> {
    type Item = Record<T>;
    fn next(&mut self) -> Option<Record<T>> {
        next(self.0)
    }
}

impl<T: ?Sized + Payload> Iterator for TryIter<'_, T> {
    type Item = Record<T>;
    fn next(&mut self) -> Option<Record<T>> {
        self.0.try_recv().ok()
    }
}

impl<T: ?Sized + Payload> Iterator for IntoIter<T> {
    type Item = Record<T>;
    fn next(&mut self) -> Option<Record<T>> {
        next(&mut self.0)
    }
}

/// The next record; what is corrupted is skipped.
fn next<T: ?Sized + Payload>(channel: &mut Channel<T, Consumer>) -> Option<Record<T>> {
    loop {
        match channel.recv() {
            Ok(record) => return Some(record),
            Err(RecvError::Corrupted) => {}
            Err(RecvError::Disconnected) => return None,
            // Not "no more records": the loop would end as if all were well.
            Err(error @ (RecvError::ContextClosed | RecvError::Forked)) => {
                panic!("iterating channel {}: {error}", channel.id())
            }
        }
    }
}

impl<T: ?Sized + Payload> IntoIterator for Channel<T, Consumer> {
    type Item = Record<T>;
    type IntoIter = IntoIter<T>;
    fn into_iter(self) -> IntoIter<T> {
        IntoIter(self)
    }
}

impl<'a, T: ?Sized + Payload> IntoIterator for &'a mut Channel<T, Consumer> {
    type Item = Record<T>;
    type IntoIter = Iter<'a, T>;
    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

//! Channels: typed ends of queues, one thread each.
//!
//! # Ownership
//! An endpoint is its context's and its thread's. A queued record belongs to the channel; sending gives a record up, receiving
//! gives one out.
//!
//! # If a process dies
//! See `queue::spsc` for what happens to records and values, and `endpoint` for roles.

use crate::channel::endpoint::{Consumer, Endpoint, Producer, Role, deadline};
use crate::channel::message::Message;
use crate::channel::options::ChannelOptions;
use crate::error::{
    AttachError, PeerError, RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};
use crate::process::local::{Attached, Local};
use crate::queue::spsc::At;
use crate::record::{Payload, Record};
use crate::sys::crash::point;
use crate::wait::wakers;
use std::fmt;
use std::hint::spin_loop;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One end of a named, typed queue with one producer and one consumer: [`Channel<T, Producer>`](Producer) or
/// [`Channel<T, Consumer>`](Consumer). It carries [`Record`]s of `T`, unless the third
/// parameter says otherwise: see [`ValueChannel`] and [`Message`].
///
/// Made by [`ThreadContext::producer`](crate::ThreadContext::producer) and
/// [`consumer`](crate::ThreadContext::consumer), or their `value_` forms; stays in that thread, and works as long as that context is open. Dropping it
/// releases the role: the peer then gets `Disconnected` (a consumer after it has received everything queued), and another
/// endpoint may take the role and go on. When both ends have left, the channel and what is queued in it are freed, unless it is
/// [`persistent`](ChannelOptions::persistent). So what a producer sends before any consumer has come is gone if it leaves, or is killed,
/// before one does: [wait for it](Channel::wait_for_consumer), or make the channel persistent.
///
/// If the process of one end is killed, the other end sees a peer that has left, within 250 ms if it waits; what was sent is still
/// received, in order and once.
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
pub struct Channel<T: ?Sized + Payload, R: Role, M: Message = Record<T>> {
    pub(crate) endpoint: Rc<Endpoint>,
    role: PhantomData<R>,
    carries: PhantomData<(*const T, M)>,
}

/// One end of a channel that carries values of `T` by value; see [`Message`] for what that means, and [`Channel`] for what it does.
///
/// Made by [`ThreadContext::value_producer`](crate::ThreadContext::value_producer) and
/// [`value_consumer`](crate::ThreadContext::value_consumer).
///
/// ```
/// # let name = format!("doc-value-channel-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Producer, ValueChannel};
/// struct Sensor {
///     readings: ValueChannel<f32, Producer>,
/// }
/// let mut sensor = Sensor { readings: ctx.value_producer(1)? };
/// sensor.readings.send(0.5)?;
/// assert_eq!(ctx.value_consumer::<f32>(1)?.recv()?, 0.5);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub type ValueChannel<T, R> = Channel<T, R, T>;

impl<T: ?Sized + Payload, R: Role, M: Message> fmt::Debug for Channel<T, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { id, side, .. } = &*self.endpoint;
        let attached = self.endpoint.is_attached();
        f.debug_struct("Channel").field("id", id).field("side", side).field("attached", &attached).finish()
    }
}

impl<T: ?Sized + Payload, R: Role, M: Message> Drop for Channel<T, R, M> {
    fn drop(&mut self) {
        wakers::wake(self.endpoint.detach());
    }
}

impl<T: ?Sized + Payload, M: Message> Channel<T, Producer, M> {
    /// Queues the record or value if a slot is free, and never waits for one. (Where messages stream so fast that it pays, a side that
    /// has caught up with the other one looks away for up to two microseconds before it says so.)
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
    /// Each gives back what was not sent: `Full`, `Disconnected` if the consumer has left (not before the first has come),
    /// `ForeignRecord` if it is another buffer's, `Forked`, `ContextClosed`.
    #[inline(always)]
    pub fn try_send(&mut self, message: M) -> Result<(), TrySendError<M>> {
        let endpoint = &*self.endpoint;
        match message.push(endpoint) {
            Some(Ok(rung)) => {
                // It is the channel's now.
                std::mem::forget(message);
                if rung {
                    point!("send: before the wake");
                    endpoint.answer(1);
                }
                Ok(())
            }
            Some(Err(why)) => Err(endpoint.not_pushed(message, why)),
            None => Err(TrySendError::ForeignRecord(message)),
        }
    }

    /// Queues the record or value, waiting for a free slot.
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
    pub fn send(&mut self, message: M) -> Result<(), SendError<M>> {
        match self.try_send(message) {
            Ok(()) => Ok(()),
            Err(refused) => self.send_slow(refused, None).map_err(SendTimeoutError::without_timeout),
        }
    }

    /// Queues the record or value, waiting for a free slot up to `timeout`.
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
    pub fn send_timeout(&mut self, message: M, timeout: Duration) -> Result<(), SendTimeoutError<M>> {
        self.try_send(message).or_else(|refused| self.send_slow(refused, deadline(timeout)))
    }

    /// Queues the record or value, waiting for a free slot until `deadline`.
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
    pub fn send_deadline(&mut self, message: M, deadline: Instant) -> Result<(), SendTimeoutError<M>> {
        self.try_send(message).or_else(|refused| self.send_slow(refused, Some(deadline)))
    }

    #[cold]
    fn send_slow(&mut self, refused: TrySendError<M>, deadline: Option<Instant>) -> Result<(), SendTimeoutError<M>> {
        let endpoint = Rc::clone(&self.endpoint);
        endpoint.wait_to_send(refused, deadline, |message| self.try_send(message))
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

    /// Waits until a consumer is attached.
    ///
    /// ```
    /// # let name = format!("doc-wait-consumer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let tx = ctx.producer::<u8>(1)?;
    /// let nobody = tx.wait_for_consumer(Duration::from_millis(1)).unwrap_err();
    /// assert_eq!(nobody.to_string(), "channel 1 got no consumer within 1ms");
    /// let _rx = ctx.consumer::<u8>(1)?;
    /// tx.wait_for_consumer(Duration::from_millis(1))?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Timeout`; `Removed`, at once, if the id no longer leads to this channel; `Forked`, `Evicted`, `ContextClosed`.
    pub fn wait_for_consumer(&self, timeout: Duration) -> Result<(), PeerError> {
        self.endpoint.wait_for_peer(timeout)
    }
}

impl<T: ?Sized + Payload, M: Message> Channel<T, Consumer, M> {
    /// Receives the next record or value if one is queued, and never waits for one; but see [`try_send`](Channel::try_send).
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
    pub fn try_recv(&mut self) -> Result<M, TryRecvError> {
        match self.take() {
            Some(result) => result.map_err(TryRecvError::Recv),
            None => self.nothing_yet(),
        }
    }

    /// As [`try_recv`](Self::try_recv) when nothing was queued just now.
    #[inline(never)]
    fn nothing_yet(&self) -> Result<M, TryRecvError> {
        if self.endpoint.end.hesitate()
            && let Some(result) = self.take()
        {
            result.map_err(TryRecvError::Recv)
        } else if self.endpoint.is_calm() {
            Err(TryRecvError::Empty)
        } else {
            self.nothing_queued()
        }
    }

    /// Receives the next, if something is queued.
    #[inline(always)]
    fn take(&self) -> Option<Result<M, RecvError>> {
        let mut at = self.endpoint.end.at();
        let Ok(message) = M::take(&self.endpoint, &mut at)? else { return Some(Err(self.skip())) };
        point!("recv: owned");
        self.received(at, 1);
        Some(Ok(message))
    }

    /// Goes past what is no message.
    #[cold]
    #[inline(never)]
    pub(crate) fn skip(&self) -> RecvError {
        let mut at = self.endpoint.end.at();
        at.step();
        self.endpoint.skipped.set(self.endpoint.skipped.get() + 1);
        self.received(at, 1);
        RecvError::Corrupted
    }

    /// What lies before `at` has been taken, so many.
    #[inline(always)]
    pub(crate) fn received(&self, at: At, count: usize) {
        let endpoint = &*self.endpoint;
        if endpoint.end.receive(at) {
            point!("recv: before the wake");
            endpoint.answer(count);
        }
    }

    #[cold]
    #[inline(never)]
    fn nothing_queued(&self) -> Result<M, TryRecvError> {
        self.endpoint.nothing_queued()?;
        // It may have sent and left since we looked.
        self.take().unwrap_or(Err(RecvError::Disconnected)).map_err(TryRecvError::Recv)
    }

    /// Receives the next record or value, waiting for it. Before the first producer has come nobody is disconnected, so this waits for one
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
    pub fn recv(&mut self) -> Result<M, RecvError> {
        // Often the message is about to come: nothing is set up, asked or counted before these looks are over.
        let mut looks = self.endpoint.looks;
        loop {
            if let Some(result) = self.take() {
                return result;
            } else if looks == 0 {
                return self.recv_slow(None).unwrap_or(Err(RecvError::Disconnected));
            }
            looks -= 1;
            if !self.endpoint.end.hesitate() {
                spin_loop();
            }
        }
    }

    /// Receives the next record or value, waiting for it up to `timeout`.
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
    pub fn recv_timeout(&mut self, timeout: Duration) -> Result<M, RecvTimeoutError> {
        let result = self.recv_slow(deadline(timeout)).ok_or(RecvTimeoutError::Timeout(timeout))?;
        Ok(result?)
    }

    /// Receives the next record or value, waiting for it until `deadline`.
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
    pub fn recv_deadline(&mut self, deadline: Instant) -> Result<M, RecvTimeoutError> {
        let waited = deadline.saturating_duration_since(Instant::now());
        let result = self.recv_slow(Some(deadline)).ok_or(RecvTimeoutError::Timeout(waited))?;
        Ok(result?)
    }

    #[cold]
    fn recv_slow(&mut self, deadline: Option<Instant>) -> Option<Result<M, RecvError>> {
        let endpoint = Rc::clone(&self.endpoint);
        endpoint.wait_to_recv(deadline, || self.try_recv())
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

    /// Waits until a producer is attached.
    ///
    /// ```
    /// # let name = format!("doc-wait-producer-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use std::time::Duration;
    /// let rx = ctx.consumer::<u8>(1)?;
    /// assert!(rx.wait_for_producer(Duration::from_millis(1)).is_err());
    /// let _tx = ctx.producer::<u8>(1)?;
    /// rx.wait_for_producer(Duration::from_millis(1))?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`wait_for_consumer`](Channel::wait_for_consumer).
    pub fn wait_for_producer(&self, timeout: Duration) -> Result<(), PeerError> {
        self.endpoint.wait_for_peer(timeout)
    }
}

impl<T: ?Sized + Payload, R: Role, M: Message> Channel<T, R, M> {
    pub(crate) fn attach(local: &Rc<Local>, id: i64, options: &ChannelOptions) -> Result<Self, AttachError> {
        let endpoint = Endpoint::attach::<R>(local, id, &options.spec::<M>()?, options.strategy)?;
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

    /// Records, or values, it can queue; fixed when the channel was created. 0 once the endpoint is detached.
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
        self.endpoint.end.capacity()
    }

    /// Whether it stays without endpoints; see [`ChannelOptions::persistent`]. False once the endpoint is detached.
    ///
    /// ```
    /// # let name = format!("doc-chan-persistent-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{AttachError, ChannelOptions};
    /// let persistent = |yes| ChannelOptions::new().persistent(yes);
    /// let tx = ctx.producer_with::<u8>(1, &persistent(true))?;
    /// assert!(tx.is_persistent() && ctx.consumer::<u8>(1)?.is_persistent());
    /// let other = ctx.consumer_with::<u8>(1, &persistent(false)).unwrap_err();
    /// assert_eq!(other, AttachError::PersistenceMismatch { id: 1, asked: false });
    /// # drop(tx);
    /// # buffer.remove_channel(1)?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn is_persistent(&self) -> bool {
        self.endpoint.is_persistent()
    }

    /// Records, or values, ever sent through this channel, if this is a producer, or received, if a consumer: counted from 0 when the
    /// channel was made, whoever had the role, and also what was [`Corrupted`](RecvError::Corrupted).
    ///
    /// ```
    /// # let name = format!("doc-chan-position-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// let (mut tx, mut rx) = (ctx.value_producer::<u8>(1)?, ctx.value_consumer::<u8>(1)?);
    /// tx.send_batch(0..5)?;
    /// rx.recv()?;
    /// assert_eq!((tx.position(), rx.position()), (5, 1));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn position(&self) -> u64 {
        self.endpoint.end.position()
    }

    /// Records, or values, queued. The other end may change it at any time: what the producer sees can only shrink meanwhile, what the
    /// consumer sees only grow. The producer knows the number, the consumer searches for it: some 20 looks at most.
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
        self.endpoint.len()
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
        self.endpoint.is_empty()
    }
}

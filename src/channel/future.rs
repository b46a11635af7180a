//! Futures: receiving and sending that can be awaited, on any runtime.
//!
//! Promises: a future that is dropped loses nothing that was sent: it takes a message in the poll that returns it, and sends its own
//! in the poll that says so. It needs no particular runtime: it looks for a moment (`WaitStrategy`), with a turn for other tasks
//! between two looks, and then has itself woken by the `reactor`.
//!
//! # Ownership
//! An end has one future at a time, which borrows it. A future that is dropped, or has answered, is no longer parked; one that was
//! leaked is unparked with its end.
//!
//! A waker is cloned before, and woken or dropped after, everything else that a poll does (see `wakers`): it may close the context,
//! and with it detach the very end that is polled. Then the future answers so.

use crate::channel::endpoint::{Consumer, Endpoint, Producer};
use crate::channel::message::Message;
use crate::channel::ready::Ready;
use crate::channel::typed::Channel;
use crate::error::{RecvError, SendError, SendTimeoutError, TryRecvError};
use crate::process::reactor::{self, Watched};
use crate::record::{Payload, Record};
use crate::wait::wakers;
use crate::wait::{self, Bed, Waitable};
use futures_core::Stream;
use futures_sink::Sink;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

/// How far a future has got with waiting.
#[derive(Debug, Default)]
struct Pause {
    /// When it looked first.
    since: Option<Instant>,
    /// It has waited for a while: whatever changes, it wants to know.
    napped: bool,
}

/// An end of a channel that a stream or a sink has.
#[derive(Debug)]
enum Held<'a, C> {
    Borrowed(&'a mut C),
    Owned(C),
}

impl<C> Deref for Held<'_, C> {
    type Target = C;
    fn deref(&self) -> &C {
        match self {
            Self::Borrowed(channel) => channel,
            Self::Owned(channel) => channel,
        }
    }
}

impl<C> DerefMut for Held<'_, C> {
    fn deref_mut(&mut self) -> &mut C {
        match self {
            Self::Borrowed(channel) => channel,
            Self::Owned(channel) => channel,
        }
    }
}

impl Endpoint {
    /// One poll of a future that waits until `attempt` gives something.
    fn poll<R>(
        self: &Rc<Self>,
        cx: &Context<'_>,
        pause: &mut Pause,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Poll<R> {
        let Some(result) = attempt().or_else(|| self.wait_on(cx, pause, &mut attempt)) else { return Poll::Pending };
        let waker = self.unpark();
        *pause = Pause::default();
        wakers::let_go(waker);
        Poll::Ready(result)
    }

    /// Looks on for a moment, or parks.
    #[cold]
    fn wait_on<R>(
        self: &Rc<Self>,
        cx: &Context<'_>,
        pause: &mut Pause,
        mut attempt: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        if !self.parked.get() && self.strategy.looks_on(*pause.since.get_or_insert_with(Instant::now)) {
            let found = wait::look(self.pace(), &|| self.has_work(), &mut attempt);
            if found.is_none() {
                cx.waker().wake_by_ref();
            }
            return found;
        }
        let before = self.park(cx.waker().clone(), pause);
        let found = attempt();
        wakers::let_go(before);
        found
    }

    /// Has `waker` woken when this end may be ready; it is to be asked once more after this. Gives back who need not be woken any more.
    fn park(self: &Rc<Self>, waker: Waker, pause: &mut Pause) -> Option<Waker> {
        // Cloning it may have closed the context.
        let Some(hold) = self.local.hold().filter(|_| self.is_attached()) else { return Some(waker) };
        let Some(bed) = Bed::of_process(hold.arena(), hold.me().index()) else { return Some(waker) };
        let bell = self.own_bell();
        // Says when to get up, rung or not, if that is sooner than others do.
        let lie_down = |eager| {
            let more = wait::flags::HINT | if eager { wait::flags::EAGER } else { 0 };
            let known = wait::lie_down(&[Rc::clone(self) as Rc<dyn Ready>], |_| Some(bed), more);
            self.waits.disarm();
            (!eager || !known).then(|| Instant::now() + wait::nap())
        };
        // Before it is listed: without the name it would look as if it were rung.
        let due = if self.parked.get() { None } else { lie_down(pause.napped || !self.is_patient()) };
        let watched = Watched { key: self.key(), bell, channel: self.channel.index, peer: self.side.other() };
        let (news, before) = match reactor::park(&hold, bed, watched, waker, due) {
            Ok(parked) => parked,
            Err(waker) => {
                // There is no thread to be had. Then it looks on.
                wait::clear(bell, &self.waits);
                wakers::wake(Some(waker));
                return None;
            }
        };
        self.parked.set(true);
        if news.peer_died {
            self.check_peer();
        }
        if news.is_asked_to_reap {
            self.lend_a_hand();
        }
        if news.was_due {
            self.waits.have_napped();
            pause.napped = true;
        }
        if news.was_due || !bed.is_on(bell) {
            reactor::set_due(bed, self.key(), lie_down(pause.napped || !self.is_patient()));
        }
        before
    }

    /// Has nobody woken any more; says who was to be.
    pub(crate) fn unpark(&self) -> Option<Waker> {
        if !self.parked.get() {
            return None;
        }
        let waker = self.unlist();
        wait::clear(self.own_bell(), &self.waits);
        waker
    }

    /// As [`unpark`](Self::unpark), and leaves the bell alone.
    pub(crate) fn unlist(&self) -> Option<Waker> {
        if !self.parked.replace(false) {
            return None;
        }
        // Also where the context is about to close: who waited is to hear of it.
        let hold = self.local.hold_to_the_end()?;
        let bed = Bed::of_process(hold.arena(), hold.me().index())?;
        reactor::unpark(bed, self.key())
    }
}

impl<T: ?Sized + Payload, M: Message> Channel<T, Consumer, M> {
    /// [`recv`](Self::recv) that can be awaited. It takes a record in the poll that returns it, so dropping it earlier (a timeout, another
    /// branch of a `select!`) loses nothing.
    ///
    /// Like its channel it stays in its thread: await it in a runtime of one thread, in a `LocalSet` or its like, or in
    /// `block_on`; records may go to any task. What is queued is received without giving other tasks a turn, as with
    /// anything that is ready; a loop that never finds its channel empty should yield now and then.
    ///
    /// Waits as the channel's [`WaitStrategy`](crate::WaitStrategy) says, but while it looks, other tasks have their turns. After that a
    /// thread of this library, one per process and only there while it is needed, has the task woken.
    ///
    /// ```
    /// # let name = format!("doc-recv-async-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    /// # runtime.block_on(async {
    /// use std::time::Duration;
    /// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// let late = tokio::time::timeout(Duration::from_millis(1), rx.recv_async()).await;
    /// assert!(late.is_err());
    /// tx.send_async(ctx.record(5)?).await?;
    /// assert_eq!(*rx.recv_async().await?, 5);
    /// # Ok::<(), ipc_buffer::Error>(()) })?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`recv`](Self::recv). In a child made by `fork` nobody wakes the futures of its parent; polled there, they
    /// answer `Forked`.
    pub fn recv_async(&mut self) -> RecvFut<'_, T, M> {
        RecvFut { channel: self, pause: Pause::default() }
    }

    /// [`iter`](Self::iter) that can be awaited: receives until the producer has left and everything is drained. Each item is taken when
    /// it is given, so the stream may be dropped at any time.
    ///
    /// # Panics
    /// As [`iter`](Self::iter).
    ///
    /// ```
    /// # let name = format!("doc-stream-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// use futures_util::StreamExt;
    /// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// tx.send(ctx.record(5)?)?;
    /// tx.send(ctx.record(6)?)?;
    /// drop(tx);
    /// let all: Vec<u64> = rx.stream().map(|record| *record).collect().await;
    /// assert_eq!(all, [5, 6]);
    /// # Ok::<(), ipc_buffer::Error>(()) })?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn stream(&mut self) -> RecvStream<'_, T, M> {
        RecvStream { channel: Held::Borrowed(self), pause: Pause::default() }
    }

    /// [`stream`](Self::stream) that owns the endpoint.
    ///
    /// ```
    /// # let name = format!("doc-into-stream-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// use futures_util::{StreamExt, stream::select_all};
    /// let mut txs = [ctx.producer::<u64>(1)?, ctx.producer::<u64>(2)?];
    /// let rxs = [ctx.consumer::<u64>(1)?, ctx.consumer::<u64>(2)?];
    /// for tx in &mut txs {
    ///     tx.send(ctx.record(1)?)?;
    /// }
    /// drop(txs);
    /// assert_eq!(select_all(rxs.map(|rx| rx.into_stream())).count().await, 2);
    /// # Ok::<(), ipc_buffer::Error>(()) })?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn into_stream(self) -> RecvStream<'static, T, M> {
        RecvStream { channel: Held::Owned(self), pause: Pause::default() }
    }

    fn poll_recv(&mut self, cx: &Context<'_>, pause: &mut Pause) -> Poll<Result<M, RecvError>> {
        let endpoint = Rc::clone(&self.endpoint);
        endpoint.poll(cx, pause, || match self.try_recv() {
            Ok(record) => Some(Ok(record)),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Recv(error)) => Some(Err(error)),
        })
    }
}

impl<T: ?Sized + Payload, M: Message> Channel<T, Producer, M> {
    /// [`send`](Self::send) that can be awaited. The record is queued in the poll that says so; if the future is dropped earlier, the record
    /// is dropped with it, and was not sent. To keep it, await room by a [`sink`](Self::sink)'s `ready`, or try again with
    /// [`try_send`](Self::try_send).
    ///
    /// Where it may be awaited, and how it waits: see [`recv_async`](Channel::recv_async).
    ///
    /// ```
    /// # let name = format!("doc-send-async-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// use ipc_buffer::ChannelOptions;
    /// let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().capacity(2))?;
    /// let mut rx = ctx.consumer::<u64>(1)?;
    /// let send_all = async {
    ///     for i in 0..100 {
    ///         tx.send_async(ctx.record(i)?).await?; // waits for one of two slots
    ///     }
    ///     drop(tx);
    ///     Ok::<(), ipc_buffer::Error>(())
    /// };
    /// let receive_all = async {
    ///     let mut sum = 0;
    ///     while let Ok(record) = rx.recv_async().await {
    ///         sum += *record;
    ///     }
    ///     Ok(sum)
    /// };
    /// let ((), sum) = tokio::try_join!(send_all, receive_all)?;
    /// assert_eq!(sum, 4950);
    /// # Ok::<(), ipc_buffer::Error>(()) })?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`send`](Self::send).
    ///
    /// # Panics
    /// The future panics if it is polled again after it has answered.
    pub fn send_async(&mut self, message: M) -> SendFut<'_, T, M> {
        SendFut { channel: self, unsent: Some(message), pause: Pause::default() }
    }

    /// A [`Sink`] that sends. It keeps nothing back: `ready` waits for a free slot, `start_send` queues, and there is nothing to flush.
    /// Closing it does nothing either: the role is released when the endpoint is dropped.
    ///
    /// `ready` gives no error, so that none is without its record: an end that can't send any more is ready too, and `start_send`
    /// says why. Without `ready`, it takes a full channel for a disconnected one.
    ///
    /// ```
    /// # let name = format!("doc-sink-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// use futures_util::{SinkExt, StreamExt};
    /// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// tx.sink().send(ctx.record(5)?).await?;
    /// assert_eq!(rx.stream().next().await.as_deref(), Some(&5));
    /// # Ok::<(), ipc_buffer::Error>(()) })?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn sink(&mut self) -> SendSink<'_, T, M> {
        SendSink { channel: Held::Borrowed(self), pause: Pause::default() }
    }

    /// [`sink`](Self::sink) that owns the endpoint.
    ///
    /// ```
    /// # let name = format!("doc-into-sink-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// use futures_util::StreamExt;
    /// // Channel 1 is sent on to channel 2, until its producer leaves.
    /// let (mut tx, rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// let (forward_to, mut end) = (ctx.producer::<u64>(2)?, ctx.consumer::<u64>(2)?);
    /// tx.send(ctx.record(5)?)?;
    /// drop(tx);
    /// rx.into_stream().map(Ok).forward(forward_to.into_sink()).await?;
    /// assert_eq!(end.iter().map(|record| *record).sum::<u64>(), 5);
    /// # Ok::<(), ipc_buffer::Error>(()) })?;
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn into_sink(self) -> SendSink<'static, T, M> {
        SendSink { channel: Held::Owned(self), pause: Pause::default() }
    }
}

/// A record to come; see [`Channel::recv_async`].
///
/// ```
/// # let name = format!("doc-recv-fut-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// use ipc_buffer::{ChannelOptions, RecvFut};
/// let mut tx = ctx.producer::<u64>(1)?;
/// let mut rx = ctx.consumer::<u64>(1)?;
/// let next: RecvFut<'_, u64> = rx.recv_async();
/// tx.send(ctx.record(5)?)?;
/// assert_eq!(*next.await?, 5);
/// # Ok::<(), ipc_buffer::Error>(()) })?;
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct RecvFut<'a, T: ?Sized + Payload, M: Message = Record<T>> {
    channel: &'a mut Channel<T, Consumer, M>,
    pause: Pause,
}

impl<T: ?Sized + Payload, M: Message> Future for RecvFut<'_, T, M> {
    type Output = Result<M, RecvError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.channel.poll_recv(cx, &mut this.pause)
    }
}

impl<T: ?Sized + Payload, M: Message> Drop for RecvFut<'_, T, M> {
    fn drop(&mut self) {
        wakers::let_go(self.channel.endpoint.unpark());
    }
}

/// A record on its way; see [`Channel::send_async`].
///
/// ```
/// # let name = format!("doc-send-fut-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// let (mut tx, rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
/// drop(tx.send_async(ctx.record(5)?));
/// assert!(rx.is_empty(), "it was not polled, and its record is freed");
/// # Ok::<(), ipc_buffer::Error>(()) })?;
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct SendFut<'a, T: ?Sized + Payload, M: Message = Record<T>> {
    channel: &'a mut Channel<T, Producer, M>,
    /// Until it is sent.
    unsent: Option<M>,
    pause: Pause,
}

impl<T: ?Sized + Payload, M: Message> Future for SendFut<'_, T, M> {
    type Output = Result<(), SendError<M>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { channel, unsent, pause } = &mut *self;
        assert!(unsent.is_some(), "polled again after it has answered");
        let endpoint = Rc::clone(&channel.endpoint);
        let sent = endpoint.poll(cx, pause, || match channel.try_send(unsent.take()?) {
            Ok(()) => Some(Ok(())),
            Err(refused) => refused.unless_full().map_err(|back| *unsent = Some(back)).ok().map(Err),
        });
        sent.map_err(SendTimeoutError::without_timeout)
    }
}

// Nothing is pinned: the message is moved out.
impl<T: ?Sized + Payload, M: Message> Unpin for SendFut<'_, T, M> {}

impl<T: ?Sized + Payload, M: Message> Drop for SendFut<'_, T, M> {
    fn drop(&mut self) {
        wakers::let_go(self.channel.endpoint.unpark());
    }
}

/// Records, or values, until the producer has left; see [`Channel::stream`].
///
/// ```
/// # let name = format!("doc-recv-stream-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// use futures_util::StreamExt;
/// use ipc_buffer::{RecvStream, Record};
/// /// The sum of what will be received in pairs.
/// async fn products(readings: RecvStream<'_, u64>) -> u64 {
///     readings.chunks(2).map(|pair| pair.iter().map(|record| **record).product::<u64>()).fold(0, async |a, b| a + b).await
/// }
/// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
/// for i in 1..=4 {
///     tx.send(ctx.record(i)?)?;
/// }
/// drop(tx);
/// assert_eq!(products(rx.stream()).await, 1 * 2 + 3 * 4);
/// # Ok::<(), ipc_buffer::Error>(()) })?;
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct RecvStream<'a, T: ?Sized + Payload, M: Message = Record<T>> {
    channel: Held<'a, Channel<T, Consumer, M>>,
    pause: Pause,
}

impl<T: ?Sized + Payload, M: Message> Stream for RecvStream<'_, T, M> {
    type Item = M;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        let Self { channel, pause } = &mut *self;
        loop {
            match ready!(channel.poll_recv(cx, pause)) {
                Ok(message) => return Poll::Ready(Some(message)),
                Err(error) if error.ends(channel.id()) => return Poll::Ready(None),
                Err(_) => {}
            }
        }
    }
}

impl<T: ?Sized + Payload, M: Message> Unpin for RecvStream<'_, T, M> {}

impl<T: ?Sized + Payload, M: Message> Drop for RecvStream<'_, T, M> {
    fn drop(&mut self) {
        wakers::let_go(self.channel.endpoint.unpark());
    }
}

/// Sends what it is given; see [`Channel::sink`].
///
/// ```
/// # let name = format!("doc-send-sink-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(async {
/// use futures_util::SinkExt;
/// use ipc_buffer::{Record, SendSink};
/// struct Log {
///     lines: SendSink<'static, [u8]>,
/// }
/// let mut log = Log { lines: ctx.producer::<[u8]>(1)?.into_sink() };
/// log.lines.send(ctx.slice_from(b"started")?).await?;
/// assert_eq!(&*ctx.consumer::<[u8]>(1)?.recv()?, b"started");
/// # Ok::<(), ipc_buffer::Error>(()) })?;
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "sinks do nothing unless polled"]
pub struct SendSink<'a, T: ?Sized + Payload, M: Message = Record<T>> {
    channel: Held<'a, Channel<T, Producer, M>>,
    pause: Pause,
}

impl<T: ?Sized + Payload, M: Message> Sink<M> for SendSink<'_, T, M> {
    type Error = SendError<M>;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError<M>>> {
        let Self { channel, pause } = &mut *self;
        let endpoint = &channel.endpoint;
        endpoint.poll(cx, pause, || {
            // An end that was just found to have lost its consumer is ready too.
            (endpoint.is_ready() || endpoint.polled_in_vain()).then_some(Ok(()))
        })
    }

    fn start_send(mut self: Pin<&mut Self>, message: M) -> Result<(), SendError<M>> {
        self.channel.try_send(message).map_err(|refused| match refused.unless_full() {
            Ok(error) => error.without_timeout(),
            // It was ready because the consumer had left; a new one has come since. Or nobody asked.
            Err(unsent) => SendError::Disconnected(unsent),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError<M>>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), SendError<M>>> {
        Poll::Ready(Ok(()))
    }
}

impl<T: ?Sized + Payload, M: Message> Unpin for SendSink<'_, T, M> {}

impl<T: ?Sized + Payload, M: Message> Drop for SendSink<'_, T, M> {
    fn drop(&mut self) {
        wakers::let_go(self.channel.endpoint.unpark());
    }
}

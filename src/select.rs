//! Waiting for the first of many ends.
//!
//! # Ownership
//! A [`Select`] has nothing of its ends but weak references, so that they stay free to be used and dropped. It sleeps in the
//! beds of their contexts, one for each buffer, with that bed's name on every end's bell: one sleep, however many there are
//! (see `wait`).

use crate::endpoint::{Consumer, Producer, Role};
use crate::ready::Ready;
use crate::wait::{self, Wait, WaitStrategy};
use std::fmt;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

pub(crate) mod sealed {
    use crate::ready::Ready;
    use std::rc::Rc;

    /// What has an end to wait for.
    pub trait Sealed {
        #[allow(private_interfaces)]
        fn end(&self) -> Rc<dyn Ready>;
    }
}

/// What a [`Select`] can wait for: one end of a channel, of any type.
///
/// ```
/// # let name = format!("doc-selectable-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Consumer, Select, Selectable};
/// /// Whether anything can be received.
/// fn has_news(inbox: &impl Selectable<Role = Consumer>) -> bool {
///     let mut select = Select::new();
///     select.recv(inbox);
///     select.try_ready().is_some()
/// }
/// let mut tx = ctx.producer::<u64>(1)?;
/// let rx = ctx.consumer::<u64>(1)?;
/// assert!(!has_news(&rx));
/// tx.send(ctx.record(5)?)?;
/// assert!(has_news(&rx));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub trait Selectable: sealed::Sealed {
    /// [`Producer`] or [`Consumer`].
    type Role: Role;
}

/// Waits until one of many ends of channels is ready: those that receive for something to be received, those that send for
/// room, all of them for the news that their other end has left or was killed.
///
/// It says which end is ready and does nothing with it: the operation is yours, by one of the `try_` forms. Nobody can come
/// in between: an end that is ready stays so until its owner uses it (only "disconnected" may end by itself, when a new peer
/// attaches). Ends take turns, so that one that is always ready starves no other.
///
/// A `Select` does not borrow its ends: build it once and keep it beside them. One that is dropped is no longer waited for. All are
/// of one thread. There may be any number of them: a sleep is one system call for all, with some nanoseconds for each.
///
/// ```
/// # let name = format!("doc-select-{}", std::process::id());
/// # let buffer = ipc_buffer::Buffer::open(&name)?;
/// # let ctx = buffer.context()?;
/// use ipc_buffer::{Select, TryRecvError};
/// let (mut one, mut two) = (ctx.producer::<u64>(1)?, ctx.producer::<u64>(2)?);
/// let mut inputs = [ctx.consumer::<u64>(1)?, ctx.consumer::<u64>(2)?];
/// one.send(ctx.record(1)?)?;
/// two.send(ctx.record(2)?)?;
/// drop((one, two));
///
/// let mut select = Select::new();
/// for input in &inputs {
///     select.recv(input); // the first is number 0, the next number 1
/// }
/// let mut sum = 0;
/// while let Some(i) = select.ready() {
///     match inputs[i].try_recv() {
///         Ok(record) => sum += *record,
///         Err(TryRecvError::Empty) => {}
///         Err(_) => _ = select.remove(i), // no more from there
///     }
/// }
/// assert_eq!(sum, 3);
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
///
/// Ends may be of several buffers. If there are more than 128, or the system has no futex_waitv (Linux before 5.16, some
/// sandboxes), only the first buffer's news ends a sleep at once; that of the others comes up to 5 ms late.
///
/// ```
/// # let name = format!("doc-select-buffers-{}", std::process::id());
/// # use ipc_buffer::{Buffer, Select};
/// let contexts = [Buffer::open(&name)?.context()?, Buffer::open(&format!("{name}-too"))?.context()?];
/// let inputs = [contexts[0].consumer::<u64>(1)?, contexts[1].consumer::<u64>(1)?];
/// let mut select = Select::new();
/// for input in &inputs {
///     select.recv(input);
/// }
/// contexts[1].producer::<u64>(1)?.send(contexts[1].record(5)?)?;
/// assert_eq!(select.ready(), Some(1));
/// # Ok::<(), ipc_buffer::Error>(())
/// ```
pub struct Select {
    /// By number, ascending.
    ends: Vec<(usize, Weak<dyn Ready>)>,
    /// The number of the next end.
    next: usize,
    /// The end that was ready last; the one behind it is asked first.
    last: usize,
    strategy: WaitStrategy,
    /// When it last looked whether the peers live: whoever is busy with one of them hears of the others too.
    looked: Instant,
}

impl fmt::Debug for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Select").field("ends", &self.len()).field("strategy", &self.strategy).finish_non_exhaustive()
    }
}

impl Default for Select {
    fn default() -> Self {
        Self { ends: Vec::new(), next: 0, last: usize::MAX, strategy: WaitStrategy::default(), looked: Instant::now() }
    }
}

impl Select {
    /// Waits for nothing yet.
    ///
    /// ```
    /// assert_eq!(ipc_buffer::Select::new().ready(), None);
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How to wait, instead of [`Adaptive`](WaitStrategy::Adaptive); what the ends were told counts when they wait themselves.
    ///
    /// ```
    /// use ipc_buffer::{Select, WaitStrategy};
    /// let select = Select::new().wait_strategy(WaitStrategy::Block);
    /// # drop(select);
    /// ```
    #[must_use]
    pub fn wait_strategy(mut self, strategy: WaitStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Adds an end that receives; says its number. Numbers count up from 0 and are not used again.
    ///
    /// ```
    /// # let name = format!("doc-select-recv-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::Select;
    /// let (mut tx, mut rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// let mut select = Select::new();
    /// let news = select.recv(&rx);
    /// tx.send(ctx.record(5)?)?;
    /// assert_eq!(select.ready(), Some(news));
    /// assert_eq!(rx.try_recv().as_deref(), Ok(&5));
    /// assert_eq!(select.try_ready(), None);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn recv(&mut self, end: &impl Selectable<Role = Consumer>) -> usize {
        self.add(end.end())
    }

    /// Adds an end that sends; says its number.
    ///
    /// ```
    /// # let name = format!("doc-select-send-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// use ipc_buffer::{ChannelOptions, Select};
    /// let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().capacity(2))?;
    /// let mut select = Select::new();
    /// select.send(&tx);
    /// while select.try_ready().is_some() {
    ///     tx.try_send(ctx.record(5)?)?;
    /// }
    /// assert_eq!(tx.len(), 2);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn send(&mut self, end: &impl Selectable<Role = Producer>) -> usize {
        self.add(end.end())
    }

    fn add(&mut self, end: Rc<dyn Ready>) -> usize {
        let number = self.next;
        self.next += 1;
        self.ends.push((number, Rc::downgrade(&end)));
        number
    }

    /// Waits no more for the end of this number; false if it did not. An end that is dropped is removed by that.
    ///
    /// ```
    /// # let name = format!("doc-select-remove-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::Select;
    /// let (tx, rx) = (ctx.producer::<u64>(1)?, ctx.consumer::<u64>(1)?);
    /// let mut select = Select::new();
    /// let (inbox, outbox) = (select.recv(&rx), select.send(&tx));
    /// assert_eq!(select.ready(), Some(outbox));
    /// assert!(select.remove(outbox));
    /// drop(rx);
    /// assert!(select.is_empty() && !select.remove(inbox));
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn remove(&mut self, number: usize) -> bool {
        self.forget_dropped();
        let at = self.ends.binary_search_by_key(&number, |(number, _)| *number);
        at.map(|at| self.ends.remove(at)).is_ok()
    }

    /// Ends that are waited for.
    ///
    /// ```
    /// # let name = format!("doc-select-len-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::Select;
    /// let rx = ctx.consumer::<u64>(1)?;
    /// let mut select = Select::new();
    /// select.recv(&rx);
    /// assert_eq!(select.len(), 1);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn len(&self) -> usize {
        self.ends.iter().filter(|(_, end)| end.strong_count() > 0).count()
    }

    /// Whether there is nothing to wait for.
    ///
    /// ```
    /// assert!(ipc_buffer::Select::new().is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of an end that is ready now, in turn; never waits.
    ///
    /// ```
    /// # let name = format!("doc-select-try-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::Select;
    /// let (one, two) = (ctx.producer::<u64>(1)?, ctx.producer::<u64>(2)?);
    /// let mut select = Select::new();
    /// select.send(&one);
    /// select.send(&two);
    /// assert_eq!([select.try_ready(), select.try_ready(), select.try_ready()], [Some(0), Some(1), Some(0)]);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn try_ready(&mut self) -> Option<usize> {
        if self.looked.elapsed() >= wait::tick() {
            wait::look_around(&self.live(), wait::tick());
            self.looked = Instant::now();
        }
        // The turn passes from the end that was ready last to the next one.
        let turn = self.ends.partition_point(|(number, _)| *number <= self.last);
        let (before, after) = self.ends.split_at(turn);
        let is_ready = |end: &Weak<dyn Ready>| end.upgrade().is_some_and(|end| end.is_ready());
        let found = after.iter().chain(before).find(|(_, end)| is_ready(end)).map(|(number, _)| *number);
        self.last = found.unwrap_or(self.last);
        found
    }

    /// Waits for an end that is ready, and says its number. `None` if there is nothing to wait for any more.
    ///
    /// ```
    /// # let name = format!("doc-select-ready-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::{ChannelOptions, Select};
    /// let mut tx = ctx.producer_with::<u64>(1, &ChannelOptions::new().capacity(2))?;
    /// let mut rx = ctx.consumer::<u64>(1)?;
    /// let mut select = Select::new();
    /// let (inbox, outbox) = (select.recv(&rx), select.send(&tx));
    /// let (mut sent, mut received) = (0, 0);
    /// while received < 100 {
    ///     match select.ready() {
    ///         Some(i) if i == inbox => received += rx.try_iter().count(),
    ///         Some(i) if i == outbox => sent += usize::from(tx.try_send(ctx.record(1)?).is_ok()),
    ///         _ => break,
    ///     }
    /// }
    /// assert!(sent >= received && received >= 100);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn ready(&mut self) -> Option<usize> {
        self.wait(None)
    }

    /// Waits for an end that is ready, up to `timeout`. `None` if there was none in time, or if there is nothing to wait for any
    /// more: then it returns at once.
    ///
    /// ```
    /// # let name = format!("doc-select-timeout-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::Select;
    /// use std::time::Duration;
    /// let rx = ctx.consumer::<u64>(1)?;
    /// let mut select = Select::new();
    /// select.recv(&rx);
    /// assert_eq!(select.ready_timeout(Duration::from_millis(1)), None);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn ready_timeout(&mut self, timeout: Duration) -> Option<usize> {
        // Later than the clock can say is never.
        self.wait(Instant::now().checked_add(timeout))
    }

    /// Waits for an end that is ready, until `deadline`; see [`ready_timeout`](Self::ready_timeout).
    ///
    /// ```
    /// # let name = format!("doc-select-deadline-{}", std::process::id());
    /// # let buffer = ipc_buffer::Buffer::open(&name)?;
    /// # let ctx = buffer.context()?;
    /// # use ipc_buffer::Select;
    /// use std::time::{Duration, Instant};
    /// let rx = ctx.consumer::<u64>(1)?;
    /// let mut select = Select::new();
    /// select.recv(&rx);
    /// assert_eq!(select.ready_deadline(Instant::now() + Duration::from_millis(1)), None);
    /// # Ok::<(), ipc_buffer::Error>(())
    /// ```
    pub fn ready_deadline(&mut self, deadline: Instant) -> Option<usize> {
        self.wait(Some(deadline))
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Option<usize> {
        if let Some(number) = self.try_ready() {
            return Some(number);
        }
        self.forget_dropped();
        let ends = self.live();
        if ends.is_empty() {
            return None;
        }
        let strategy = self.strategy;
        // Many ends are a long look by themselves: so many fewer of them.
        let pace = u32::try_from(ends.len()).unwrap_or(u32::MAX).min(64);
        let wait = Wait { strategy, deadline, pace };
        wait::until(wait, &ends, || ends.iter().any(|end| end.has_work()), || self.try_ready())
    }

    fn forget_dropped(&mut self) {
        self.ends.retain(|(_, end)| end.strong_count() > 0);
    }

    fn live(&self) -> Vec<Rc<dyn Ready>> {
        self.ends.iter().filter_map(|(_, end)| end.upgrade()).collect()
    }
}

//! Waiting for the first of many ends.
//!
//! # Ownership
//! A [`Select`] has nothing of its ends but weak references, so that they stay free to be used and dropped. It sleeps in the
//! beds of their contexts, one for each buffer, with that bed's name on every end's bell: one sleep, however many there are
//! (see `wait`).
//!
//! # Many ends
//! Up to [`FEW`] ends are all looked at, each time, and bear the name while the thread sleeps. Of more, each is either a *candidate* or
//! *armed*. An armed end bears the name, was seen not to be ready after the barrier, and is not looked at until somebody says that
//! it may be: whoever rings, by a hint that the context passes on to the end; whoever of this thread writes another name on the
//! bell or takes it off (`recv`, another `Select`, a future), or leaves the channel. The end passes it on to each `Select` that
//! counts on being told ([`Waits`](crate::wait::Waits)), which has a candidate again. Candidates that were looked at in vain are
//! armed before a sleep, and when they are more than few. So an end is armed once for each time that it was rung, and
//! whatever happens to one costs nothing for the others.
//!
//! An armed end that has lost its name with nobody to say so (a ringer was killed before the hint) is found once a tick, when all ends are
//! looked at: for that, and whether their peers live.
//!
//! Armed ends that send are woken for the first free slot: what the peer would put off is found by looking at them, now and then.

use crate::channel::endpoint::{Consumer, Producer, Role};
use crate::channel::message::Message;
use crate::channel::ready::Ready;
use crate::channel::typed::Channel;
use crate::format::Owner;
use crate::process::local::Local;
use crate::record::Payload;
use crate::sys::crash::point;
use crate::sys::task;
use crate::wait::{self, Inbox, Wait, WaitStrategy};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

pub(crate) mod sealed {
    use crate::channel::ready::Ready;
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

impl<T: ?Sized + Payload, R: Role, M: Message> sealed::Sealed for Channel<T, R, M> {
    #[allow(private_interfaces)]
    fn end(&self) -> Rc<dyn Ready> {
        self.endpoint.clone()
    }
}

impl<T: ?Sized + Payload, R: Role, M: Message> Selectable for Channel<T, R, M> {
    type Role = R;
}

/// Waits until one of many ends of channels is ready: those that receive for something to be received, those that send for
/// room, all of them for the news that their other end has left or was killed.
///
/// It says which end is ready and does nothing with it: the operation is yours, by one of the `try_` forms. Nobody can come
/// in between: an end that is ready stays so until its owner uses it (only "disconnected" may end by itself, when a new peer
/// attaches). Ends take turns, so that one that is always ready starves no other.
///
/// A `Select` does not borrow its ends: build it once and keep it beside them. One that is dropped is no longer waited for. All are
/// of one thread. There may be any number of them: a sleep is one system call for all, and of many, only those are looked at whose
/// other ends did something.
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
    /// To be looked at, by number. Dropped ends may be among them.
    candidates: BTreeMap<usize, Weak<dyn Ready>>,
    /// Not to be looked at until the inbox says so.
    armed: BTreeMap<usize, Weak<dyn Ready>>,
    inbox: Rc<Inbox>,
    /// The contexts of all ends, and maybe of others that were removed.
    locals: Vec<Rc<Local>>,
    /// Candidates that bear the name since then, which their peers may not see before a nap is over.
    unsure: Option<(Instant, Vec<usize>)>,
    /// The number of the next end.
    next: usize,
    /// The end that was ready last; the one behind it is asked first.
    last: usize,
    strategy: WaitStrategy,
    /// By the coarse clock: when it last looked whether the peers live; whoever is busy with one of them hears of the others too.
    looked: Duration,
}

/// So many ends are sooner looked at than told of: a look takes a few nanoseconds, and a ring some 100 to 300 of both sides'.
const FEW: usize = 64;

impl fmt::Debug for Select {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Select").field("ends", &self.len()).field("strategy", &self.strategy).finish_non_exhaustive()
    }
}

impl Default for Select {
    fn default() -> Self {
        Self {
            candidates: BTreeMap::new(),
            armed: BTreeMap::new(),
            inbox: Rc::default(),
            locals: Vec::new(),
            unsure: None,
            next: 0,
            last: usize::MAX,
            strategy: WaitStrategy::default(),
            looked: task::coarse_clock(),
        }
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
        if !self.locals.iter().any(|local| Rc::ptr_eq(local, end.local())) {
            self.locals.retain(|local| local.check().is_ok());
            self.locals.push(Rc::clone(end.local()));
        }
        end.waits().watch(&self.inbox, number);
        self.candidates.insert(number, Rc::downgrade(&end));
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
        let end = self.candidates.remove(&number).or_else(|| self.armed.remove(&number));
        end.and_then(|end| end.upgrade()).map(|end| self.let_go(number, &end)).is_some()
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
        self.candidates.values().chain(self.armed.values()).filter(|end| end.strong_count() > 0).count()
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
        if wait::is_due(self.looked) {
            self.looked = task::coarse_clock();
            self.look_around();
        }
        if !self.armed.is_empty() {
            self.locals.iter().for_each(|local| local.take_hints());
            for number in self.inbox.borrow_mut().drain(..) {
                if let Some(end) = self.armed.remove(&number) {
                    self.candidates.insert(number, end);
                }
            }
        }
        self.find()
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
        // Those dropped are told of, or candidates, and have been taken out by now.
        if self.candidates.len() + self.armed.len() > FEW {
            return self.wait_for_many(deadline);
        }
        self.candidates.append(&mut self.armed);
        let ends = self.live();
        if ends.is_empty() {
            return None;
        }
        let wait = self.how(deadline, ends.len());
        wait::until(wait, &ends, || ends.iter().any(|end| end.has_work()), || self.try_ready())
    }

    /// As [`wait`](Self::wait), with names that stay.
    fn wait_for_many(&mut self, deadline: Option<Instant>) -> Option<usize> {
        let (locals, ends) = (self.locals.clone(), self.live());
        let wait = self.how(deadline, ends.len());
        let glance = || locals.iter().any(|local| local.has_hints()) || ends.iter().any(|end| end.has_work());
        if let ControlFlow::Break(result) = wait::look_on(wait, glance, || self.try_ready()) {
            return result;
        }
        drop(ends);
        loop {
            let words: Vec<_> = locals.iter().filter_map(|local| local.bed()).map(wait::Bed::read).collect();
            let found = self.try_ready().or_else(|| self.arm_all());
            point!("sleep: armed");
            let left = wait.left();
            // Without an open context there is nothing to wait for.
            if found.is_some() || left.is_zero() || words.is_empty() {
                return found;
            }
            wait::sleep_on(&words, left.min(wait::longest_sleep(self.candidates.is_empty())));
            point!("sleep: woken");
        }
    }

    fn how(&self, deadline: Option<Instant>, ends: usize) -> Wait {
        // Many ends are a long look by themselves: so many fewer of them.
        let pace = u32::try_from(ends).unwrap_or(u32::MAX).clamp(1, 64);
        Wait { strategy: self.strategy, deadline, pace }
    }

    /// The candidate that is ready, the next behind the last that was. Takes out those dropped; arms those looked at in vain, if they are more
    /// than few.
    fn find(&mut self) -> Option<usize> {
        let many = self.candidates.len() > FEW;
        let (mut found, mut in_vain, mut dropped) = (None, Vec::new(), Vec::new());
        let after = self.candidates.range((Bound::Excluded(self.last), Bound::Unbounded));
        for (number, end) in after.chain(self.candidates.range(..=self.last)) {
            match end.upgrade() {
                None => dropped.push(*number),
                Some(end) if end.is_ready() => {
                    found = Some(*number);
                    break;
                }
                Some(end) if many => in_vain.push((*number, end)),
                Some(_) => {}
            }
        }
        dropped.iter().for_each(|number| _ = self.candidates.remove(number));
        let is_napping = self.unsure.as_ref().is_some_and(|(since, _)| since.elapsed() < wait::nap());
        if in_vain.len() > FEW && !is_napping {
            let then = self.arm(in_vain);
            found = found.or(then);
        }
        self.last = found.unwrap_or(self.last);
        found
    }

    /// Arms every candidate that is not ready; says which one is, if any.
    fn arm_all(&mut self) -> Option<usize> {
        let ends = self.candidates.iter().filter_map(|(number, end)| Some((*number, end.upgrade()?))).collect();
        let found = self.arm(ends);
        self.last = found.unwrap_or(self.last);
        found
    }

    /// Arms these candidates, but for those that are ready after that, and says which one is, if any. Others stay candidates whose peers
    /// may not know it yet.
    fn arm(&mut self, ends: Vec<(usize, Rc<dyn Ready>)>) -> Option<usize> {
        if let Some((_, named)) = self.unsure.take_if(|(since, _)| since.elapsed() >= wait::nap()) {
            let named = named.iter().filter_map(|number| self.candidates.get(number)?.upgrade());
            named.for_each(|end| end.waits().have_napped());
        }
        let (numbers, ends): (Vec<usize>, Vec<Rc<dyn Ready>>) = ends.into_iter().unzip();
        wait::arm(&ends);
        let (mut found, mut unsure) = (None, Vec::new());
        for (number, end) in numbers.into_iter().zip(ends) {
            if end.is_ready() {
                found = found.or(Some(number));
            } else if !end.waits().is_known() {
                unsure.push(number);
            } else if let Some(weak) = self.candidates.remove(&number) {
                end.waits().count_on(&self.inbox, number);
                self.armed.insert(number, weak);
            }
        }
        if !unsure.is_empty() && self.unsure.is_none() {
            self.unsure = Some((Instant::now(), unsure));
        }
        found
    }

    /// Looks whether the peers live: each live process once. Lends a hand with reaping the others, once in each buffer: however many have
    /// died, all who wait for them are to hear of it soon. And whether armed ends are what they seem.
    fn look_around(&mut self) {
        let mut alive: BTreeSet<(*const Local, Owner)> = BTreeSet::new();
        let mut bereaved: BTreeMap<*const Local, Rc<dyn Ready>> = BTreeMap::new();
        for end in self.live().into_iter().chain(self.armed.values().filter_map(Weak::upgrade)) {
            // Each buffer has names of its own for processes, as this thread has a context of its own in each.
            let local = Rc::as_ptr(end.local());
            let Some(peer) = end.peer() else { continue };
            if alive.contains(&(local, peer)) {
                continue;
            }
            if end.check_peer() {
                alive.insert((local, peer));
            } else {
                bereaved.entry(local).or_insert(end);
            }
        }
        bereaved.values().for_each(|end| end.lend_a_hand());
        for end in self.armed.values().filter_map(Weak::upgrade) {
            let bears_name = end.bed().is_some_and(|bed| bed.is_on(end.bell()));
            if !bears_name || end.is_ready() {
                end.waits().disarm();
            }
        }
    }

    /// The candidates that are not dropped.
    fn live(&self) -> Vec<Rc<dyn Ready>> {
        self.candidates.values().filter_map(Weak::upgrade).collect()
    }

    /// Leaves an end as it would be without this.
    fn let_go(&self, number: usize, end: &Rc<dyn Ready>) {
        end.waits().unwatch(&self.inbox, number);
        if end.bed().is_some_and(|bed| bed.is_on(end.bell())) {
            wait::clear(end.bell(), end.waits());
        }
    }
}

impl Drop for Select {
    fn drop(&mut self) {
        for (number, end) in self.candidates.iter().chain(&self.armed) {
            if let Some(end) = end.upgrade() {
                self.let_go(*number, &end);
            }
        }
    }
}

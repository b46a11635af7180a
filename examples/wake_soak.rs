//! Hands records over between two processes that sleep at every chance, and finds every wake-up that is lost.
//!
//! ```text
//! cargo run --release --features async --example wake_soak -- [--count N] [--pause N] [--seed S] [--only WORD]
//! ```
//!
//! No sleep has a bound here (`IPC_BUFFER_TICK_MS`), so that a lost wake-up is a hang: whoever makes no step for 30 seconds says
//! where it stands, and the run fails. `--count` hand-overs in all, shared between the cases so that each takes about the same time:
//! each shape of traffic, with each wait strategy, with heavy barriers, without (`IPC_BUFFER_NO_MEMBARRIER`), and with them on
//! one side only. A thousand million take about 20 minutes on two cores that do nothing else.
//!
//! Both sides hand over in bursts of random length, `--pause` steps on an average, and then pause, if the dice say so. With `--pause 1`
//! nearly every hand-over meets a sleeper; longer bursts hand over far more in the same time, and find the moments in which one side
//! catches up with the other just as it goes on. Most pauses aim at the moment in which the other side lies down: one that was
//! followed by a wake-up was too long, one that was not, too short. What ends a pause is a dozen stores that take long, so that a
//! missing fence shows: it is not seen at all where a store takes effect at once.

use ipc_buffer::{Buffer, Channel, ChannelOptions, Consumer, Producer, Select, ThreadContext, WaitStrategy};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::cell::Cell;
use std::error::Error;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fmt, fs, thread};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Tx = Channel<u64, Producer>;
type Rx = Channel<u64, Consumer>;

/// Longer than any two cores keep a process waiting for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// Mean steps of a side between two draws of a pause.
const PAUSE: u64 = 32;
/// What a step takes that wakes somebody, at least.
const WAKE: Duration = Duration::from_nanos(1_500);
/// How far two pauses that aim at the same moment are apart, at most.
const NEAR_NS: u64 = 1_000;
/// Lines of memory that a side has for stores that take long: 32 MiB.
const FAR_LINES: usize = 1 << 19;
/// Such stores at the end of a pause.
const FAR_STORES: usize = 16;

/// With their parts of the hand-overs for each strategy: about the inverse of what one takes.
const SHAPES: &[(&str, [u64; 2])] = &[
    ("ping-pong", [20, 4]),
    ("stream-2", [20, 1]),
    ("stream-16", [20, 4]),
    ("stream-256", [20, 20]),
    ("values-16", [20, 4]),
    ("select", [20, 4]),
    ("select-many", [20, 4]),
    #[cfg(feature = "async")]
    ("await", [20, 4]),
    #[cfg(feature = "async")]
    ("await-many", [20, 4]),
];

/// Channels each way of those that have many: more ends than a `Select` looks at each time.
const MANY: i64 = 80;

/// With how many cases to run at the same time: two sides that look for each other have a core each; where nobody looks, a core that
/// has somebody else to run is sooner awake than one that has gone to sleep itself.
const STRATEGIES: [(&str, usize); 2] = [("adaptive", 1), ("block", 2)];
/// What the first process may do, and what the second.
const BARRIERS: [(&str, &str); 4] =
    [("heavy", "heavy"), ("fenced", "fenced"), ("fenced", "heavy"), ("heavy", "fenced")];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.first().map(String::as_str) {
        Some("--side") => Side::work(&args[1..]),
        _ => run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wake_soak: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A side, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A segment, removed when dropped.
struct Name(String);

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Buffer::unlink(&self.0);
    }
}

fn run(args: &[String]) -> Outcome {
    let (mut count, mut pause, mut seed, mut only) = (4_000_000, PAUSE, 1, String::new());
    for pair in args.chunks(2) {
        let [arg, value] = pair else { return Err(format!("{} takes a value", pair[0]).into()) };
        match arg.as_str() {
            "--count" => count = value.parse::<u64>()?,
            "--pause" => pause = value.parse::<u64>()?.max(1),
            "--seed" => seed = value.parse()?,
            "--only" => only.clone_from(value),
            _ => return Err("usage: wake_soak [--count N] [--pause N] [--seed S] [--only WORD]".into()),
        }
    }
    let mut cases = Vec::new();
    for &(shape, parts) in SHAPES {
        for ((strategy, _), part) in STRATEGIES.into_iter().zip(parts) {
            for barriers in BARRIERS {
                cases.push(Case { number: 0, shape, strategy, barriers, count: part, pause, seed });
            }
        }
    }
    cases.retain(|case| case.to_string().contains(&only));
    let parts: u64 = cases.iter().map(|case| case.count).sum();
    for (number, case) in (0..).zip(&mut cases) {
        (case.number, case.seed) = (number, seed + number);
        // Some have six channels.
        case.count = (count * case.count).div_ceil(parts).next_multiple_of(6);
    }
    let (all, sleeps, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    for (strategy, jobs) in STRATEGIES {
        let todo = Mutex::new(cases.iter().filter(|case| case.strategy == strategy));
        let work = || -> Result<(), String> {
            let next = || todo.lock().ok()?.next();
            while let Some(case) = next() {
                let start = Instant::now();
                // Or another one has failed.
                let Some(slept) = case.run(&failed).map_err(|error| format!("{case}: {error}"))? else { break };
                println!("{case:34} {:>12} hand-overs {slept:>12} sleeps {:>8.1?}", case.count, start.elapsed());
                all.fetch_add(case.count, Ordering::Relaxed);
                sleeps.fetch_add(slept, Ordering::Relaxed);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let work = || work().inspect_err(|_| failed.store(true, Ordering::Relaxed));
            let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
        })?;
    }
    println!("{} hand-overs, {} sleeps, 0 lost wake-ups", all.into_inner(), sleeps.into_inner());
    Ok(())
}

/// Two processes, and what they do.
struct Case {
    number: u64,
    shape: &'static str,
    strategy: &'static str,
    barriers: (&'static str, &'static str),
    count: u64,
    pause: u64,
    seed: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, strategy, barriers: (one, other), .. } = self;
        f.pad(&format!("{shape} {strategy} {one}/{other}"))
    }
}

impl Case {
    /// How often both have slept; `None` if another case has failed meanwhile.
    fn run(&self, failed: &AtomicBool) -> Outcome<Option<u64>> {
        let name = Name(format!("wake_soak-{}-{}", std::process::id(), self.number));
        let mut sides = Vec::new();
        for (side, barrier) in [("0", self.barriers.0), ("1", self.barriers.1)] {
            let mut command = Command::new(env::current_exe()?);
            let numbers = [self.count, self.pause, self.seed].map(|number| number.to_string());
            command.args(["--side", side, &name.0, self.shape, self.strategy]).args(numbers);
            command.env("IPC_BUFFER_TICK_MS", "3600000").env_remove("IPC_BUFFER_NO_MEMBARRIER");
            if barrier == "fenced" {
                command.env("IPC_BUFFER_NO_MEMBARRIER", "1");
            }
            sides.push(Process(command.stdout(Stdio::piped()).spawn()?));
        }
        let mut slept = 0;
        for side in &mut sides {
            let status = loop {
                if failed.load(Ordering::Relaxed) {
                    return Ok(None);
                } else if let Some(status) = side.0.try_wait()? {
                    break status;
                }
                thread::sleep(Duration::from_millis(5));
            };
            if !status.success() {
                return Err(format!("a side ended with {status}").into());
            }
            let said = std::io::read_to_string(side.0.stdout.take().ok_or("piped")?)?;
            slept += said.trim().parse::<u64>()?;
        }
        Ok(Some(slept))
    }
}

/// Hand-overs of this process, as its watchdog sees them.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Steps without a pause, at most, if there are `mean` of them.
const fn longest(mean: u64) -> u64 {
    2 * mean - 1
}

/// A cache line.
#[derive(Default)]
#[repr(align(64))]
struct Line(AtomicU64);

/// One of the two processes.
struct Side {
    first: bool,
    ctx: ThreadContext,
    options: ChannelOptions,
    count: u64,
    /// Mean steps between two draws of a pause.
    pause: u64,
    /// Who has waited for so long sleeps.
    asleep_ns: u64,
    /// How long a pause must be for the other side to be falling asleep when it ends, as far as is known.
    aim_ns: Cell<u64>,
    /// When a pause of that length has ended, if no step came after it yet.
    aimed: Cell<Option<Instant>>,
    steps: Cell<u64>,
    /// The step at whose end the next one is drawn.
    next_pause: Cell<u64>,
    rng: Cell<u64>,
    /// More than a cache holds.
    far: Vec<Line>,
}

impl Side {
    fn work(args: &[String]) -> Outcome {
        let [side, name, shape, strategy, count, pause, seed] = args else {
            return Err("--side is not for you".into());
        };
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let first = side == "0";
        let strategy = if strategy == "block" { WaitStrategy::Block } else { WaitStrategy::Adaptive };
        let (count, pause, seed): (u64, u64, u64) = (count.parse()?, pause.parse()?, seed.parse()?);
        let slots = match shape.rsplit('-').next().and_then(|slots| slots.parse().ok()) {
            Some(slots) => slots,
            // What one side sends at once must have room on its way back.
            None if shape == "ping-pong" => usize::try_from(longest(pause).next_power_of_two())?.max(2),
            None => 2,
        };
        let options = ChannelOptions::new().capacity(slots).wait_strategy(strategy);
        let ctx = Buffer::options().capacity(1 << 20).open(name)?.context()?;
        let this = Self {
            first,
            ctx,
            options,
            count,
            pause,
            asleep_ns: if strategy == WaitStrategy::Block { 8_000 } else { 50_000 },
            aim_ns: Cell::new(0),
            aimed: Cell::new(None),
            steps: Cell::new(0),
            next_pause: Cell::new(1),
            rng: Cell::new(seed * 2 + u64::from(first)),
            far: (0..FAR_LINES).map(|_| Line::default()).collect(),
        };
        let who = format!("{shape}, side {side}");
        thread::spawn(move || watch(&who));
        match shape.as_str() {
            "ping-pong" => this.ping_pong()?,
            "select" => this.select(strategy)?,
            "select-many" => this.relay(strategy)?,
            #[cfg(feature = "async")]
            "await" => this.awaiting()?,
            #[cfg(feature = "async")]
            "await-many" => this.relay_awaiting()?,
            "values-16" => this.values()?,
            _ => this.stream()?,
        }
        let status = fs::read_to_string("/proc/thread-self/status")?;
        let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        println!("{}", sleeps.map_or("0", str::trim));
        Ok(())
    }

    fn random(&self) -> u64 {
        let next = self.rng.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.rng.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    /// Steps to the next draw.
    fn burst(&self) -> u64 {
        1 + self.random() % longest(self.pause)
    }

    /// The end of a step, and now and then a pause: what the other side needs to look, to fall asleep, or to wake up.
    fn pause(&self) {
        let step = self.steps.get() + 1;
        self.steps.set(step);
        // No addition in place: that is a fence, with which few wake-ups would be lost at all.
        STEPS.store(step, Ordering::Relaxed);
        if let Some(end) = self.aimed.take() {
            self.take_aim(end.elapsed() > WAKE);
        }
        if step < self.next_pause.get() {
            return;
        }
        self.next_pause.set(step + self.burst());
        let random = self.random();
        let (kind, random) = (random & 15, random >> 4);
        let length_ns = match kind {
            0 => random % 40_000,
            1 => random % 4_000,
            2..8 => self.aim_ns.get(),
            8 if random & 0xfff == 0 => (random >> 12) % 1_000_000,
            _ => return,
        };
        let length = Duration::from_nanos(length_ns);
        let start = Instant::now();
        if kind == 8 {
            thread::sleep(length);
        }
        while start.elapsed() < length {
            std::hint::spin_loop();
        }
        self.aimed.set((2..8).contains(&kind).then(Instant::now));
        // What is stored next waits for these stores to get their lines, while loads overtake it: as long as that lasts, only a
        // fence keeps the order.
        for _ in 0..FAR_STORES {
            let line = usize::try_from(self.random()).unwrap_or(0) % FAR_LINES;
            self.far[line].0.store(random, Ordering::Relaxed);
        }
    }

    /// After a step that came too late, or too early, to meet somebody who is falling asleep.
    fn take_aim(&self, is_late: bool) {
        let (aim_ns, by_ns) = (self.aim_ns.get(), self.random() % NEAR_NS);
        let next_ns = if is_late { aim_ns.saturating_sub(by_ns) } else { aim_ns + by_ns };
        // Or the other side does not wait at all.
        self.aim_ns.set(if next_ns < self.asleep_ns { next_ns } else { self.random() % self.asleep_ns });
    }

    fn producer(&self, id: i64) -> Outcome<Tx> {
        Ok(self.ctx.producer_with(id, &self.options)?)
    }

    fn consumer(&self, id: i64) -> Outcome<Rx> {
        Ok(self.ctx.consumer_with(id, &self.options)?)
    }

    fn ping_pong(&self) -> Outcome {
        let (there, back) = if self.first { (1, 2) } else { (2, 1) };
        let (mut tx, mut rx) = (self.producer(there)?, self.consumer(back)?);
        if tx.wait_for_consumer(PATIENCE).is_err() {
            return Err("nobody came".into());
        }
        let mut next = 0;
        while next < self.count / 2 {
            // The other side sends back whatever it gets.
            let burst = if self.first { self.burst().min(self.count / 2 - next) } else { 1 };
            if self.first {
                (next..next + burst).try_for_each(|number| -> Outcome { Ok(tx.send(self.ctx.record(number)?)?) })?;
            }
            for number in next..next + burst {
                let record = rx.recv()?;
                if *record != number {
                    return Err(format!("received {} for {number}", *record).into());
                }
                self.pause();
                if !self.first {
                    tx.send(record)?;
                }
            }
            next += burst;
        }
        Ok(())
    }

    fn stream(&self) -> Outcome {
        if self.first {
            let mut tx = self.producer(1)?;
            if tx.wait_for_consumer(PATIENCE).is_err() {
                return Err("nobody came".into());
            }
            for number in 0..self.count {
                tx.send(self.ctx.record(number)?)?;
                self.pause();
            }
        } else {
            let mut rx = self.consumer(1)?;
            for number in 0..self.count {
                if *rx.recv()? != number {
                    return Err(format!("received another one than {number}").into());
                }
                self.pause();
            }
        }
        Ok(())
    }

    fn values(&self) -> Outcome {
        if self.first {
            let mut tx = self.ctx.value_producer_with::<u64>(1, &self.options)?;
            if tx.wait_for_consumer(PATIENCE).is_err() {
                return Err("nobody came".into());
            }
            for number in 0..self.count {
                tx.send(number)?;
                self.pause();
            }
        } else {
            let mut rx = self.ctx.value_consumer_with::<u64>(1, &self.options)?;
            for number in 0..self.count {
                if rx.recv()? != number {
                    return Err(format!("received another one than {number}").into());
                }
                self.pause();
            }
        }
        Ok(())
    }

    /// Sends a burst of numbers, from this one on, on any of the channels, as far as there is room; says how many.
    fn send_some(&self, outputs: &mut [Tx], first: u64) -> Outcome<u64> {
        let burst = self.burst().min(self.count / 2 - first);
        for sent in 0..burst {
            let output = usize::try_from(self.random())? % outputs.len();
            match outputs[output].try_send(self.ctx.record(first + sent)?) {
                Ok(()) => {}
                // Some of this burst are on their way.
                Err(ipc_buffer::TrySendError::Full(_)) if sent > 0 => return Ok(sent),
                Err(error) => return Err(error.to_string().into()),
            }
        }
        Ok(burst)
    }

    /// Sends on any of many channels; the other side sends back what it gets, on the channel of the same number.
    fn relay(&self, strategy: WaitStrategy) -> Outcome {
        let (mut outputs, mut inputs) = self.each_way(MANY)?;
        let mut select = Select::new().wait_strategy(strategy);
        inputs.iter().for_each(|rx| _ = select.recv(rx));
        let (mut sent, mut received) = (0, 0);
        while received < self.count / 2 {
            if self.first && sent == received {
                sent += self.send_some(&mut outputs, sent)?;
            }
            let number = select.ready().ok_or("nothing left to wait for")?;
            let Ok(record) = inputs[number].try_recv() else {
                // The other side is done, and what it sent is in other channels.
                select.remove(number);
                continue;
            };
            self.pause();
            if !self.first {
                outputs[number].send(record)?;
            }
            received += 1;
        }
        Ok(())
    }

    /// The same with a future for each channel.
    #[cfg(feature = "async")]
    fn relay_awaiting(&self) -> Outcome {
        use futures_util::StreamExt;
        use futures_util::stream::select_all;
        let (mut outputs, inputs) = self.each_way(MANY)?;
        let numbered = |(number, rx): (usize, Rx)| rx.into_stream().map(move |record| (number, record));
        let mut all = select_all(inputs.into_iter().enumerate().map(numbered));
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(async {
            let (mut sent, mut received) = (0, 0);
            while received < self.count / 2 {
                if self.first && sent == received {
                    sent += self.send_some(&mut outputs, sent)?;
                }
                let (number, record) = all.next().await.ok_or("nothing left to wait for")?;
                self.pause();
                if !self.first {
                    outputs[number].send_async(record).await?;
                }
                received += 1;
            }
            Ok(())
        })
    }

    /// Sends and receives on three channels each way, all at the same time.
    #[cfg(feature = "async")]
    fn awaiting(&self) -> Outcome {
        use futures_util::future::{try_join, try_join_all};
        let (mut outputs, mut inputs) = self.each_way(3)?;
        let each = self.count / 6;
        let sending = outputs.iter_mut().map(async |tx| -> Outcome {
            for number in 0..each {
                tx.send_async(self.ctx.record(number)?).await?;
                self.pause();
            }
            Ok(())
        });
        let receiving = inputs.iter_mut().map(async |rx| -> Outcome {
            for number in 0..each {
                if *rx.recv_async().await? != number {
                    return Err(format!("received another one than {number}").into());
                }
                self.pause();
            }
            Ok(())
        });
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(try_join(try_join_all(sending), try_join_all(receiving)))?;
        Ok(())
    }

    fn each_way(&self, channels: i64) -> Outcome<(Vec<Tx>, Vec<Rx>)> {
        let (there, back) = if self.first { (0, channels) } else { (channels, 0) };
        let outputs = (there..there + channels).map(|id| self.producer(id)).collect::<Outcome<Vec<Tx>>>()?;
        let inputs = (back..back + channels).map(|id| self.consumer(id)).collect::<Outcome<Vec<Rx>>>()?;
        if !outputs.iter().all(|tx| tx.wait_for_consumer(PATIENCE).is_ok()) {
            return Err("nobody came".into());
        }
        Ok((outputs, inputs))
    }

    /// Sends and receives on three channels each way, whichever is ready.
    fn select(&self, strategy: WaitStrategy) -> Outcome {
        let (mut outputs, mut inputs) = self.each_way(3)?;
        let mut select = Select::new().wait_strategy(strategy);
        outputs.iter().for_each(|tx| _ = select.send(tx));
        inputs.iter().for_each(|rx| _ = select.recv(rx));
        let each = self.count / 6;
        let (mut sent, mut received) = (vec![0; outputs.len()], vec![0; inputs.len()]);
        while sent.iter().chain(&received).any(|done| *done < each) {
            let number = select.ready().ok_or("nothing left to wait for")?;
            if let Some(tx) = outputs.get_mut(number) {
                tx.try_send(self.ctx.record(sent[number])?)?;
                sent[number] += 1;
                if sent[number] == each {
                    select.remove(number);
                }
            } else {
                let i = number - outputs.len();
                if *inputs[i].try_recv()? != received[i] {
                    return Err(format!("received another one than {}", received[i]).into());
                }
                received[i] += 1;
                if received[i] == each {
                    select.remove(number);
                }
            }
            self.pause();
        }
        Ok(())
    }
}

/// Ends the process when it has made no step for too long.
fn watch(who: &str) {
    let (mut seen, mut since) = (u64::MAX, Instant::now());
    loop {
        thread::sleep(Duration::from_millis(500));
        let steps = STEPS.load(Ordering::Relaxed);
        if steps != seen {
            (seen, since) = (steps, Instant::now());
        } else if since.elapsed() > PATIENCE {
            eprintln!("wake_soak: {who}: no step after {steps} for {PATIENCE:?}: a lost wake-up");
            std::process::exit(1);
        }
    }
}

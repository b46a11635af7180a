//! Hands records over between two processes that sleep at every chance, and finds every wake-up that is lost.
//!
//! ```text
//! cargo run --release --features async --example wake_soak -- [--count N] [--seed S] [--only WORD]
//! ```
//!
//! No sleep has a bound here (`IPC_BUFFER_TICK_MS`), so that a lost wake-up is a hang: whoever makes no step for 30 seconds says
//! where it stands, and the run fails. Both sides pause at random, for about as long as the other side needs to fall asleep.
//! N hand-overs in all, shared between the cases: each shape of traffic, with each wait strategy, with heavy barriers, without
//! (`IPC_BUFFER_NO_MEMBARRIER`), and with them on one side only.

use ipc_buffer::{Buffer, Channel, ChannelOptions, Consumer, Producer, Select, ThreadContext, WaitStrategy};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::cell::Cell;
use std::error::Error;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
type Tx = Channel<u64, Producer>;
type Rx = Channel<u64, Consumer>;

/// Longer than any two cores keep a process waiting for its turn.
const PATIENCE: Duration = Duration::from_secs(30);

const SHAPES: &[&str] = &[
    "ping-pong",
    "stream-2",
    "stream-16",
    "stream-256",
    "values-16",
    "select",
    #[cfg(feature = "async")]
    "await",
];
const STRATEGIES: [&str; 2] = ["adaptive", "block"];
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
    let (mut count, mut seed, mut only) = (4_000_000, 1, String::new());
    for pair in args.chunks(2) {
        let [arg, value] = pair else { return Err(format!("{} takes a value", pair[0]).into()) };
        match arg.as_str() {
            "--count" => count = value.parse()?,
            "--seed" => seed = value.parse()?,
            "--only" => only.clone_from(value),
            _ => return Err("usage: wake_soak [--count N] [--seed S] [--only WORD]".into()),
        }
    }
    let mut cases = Vec::new();
    for &shape in SHAPES {
        for strategy in STRATEGIES {
            for (one, other) in BARRIERS {
                cases.push((format!("{shape} {strategy} {one}/{other}"), [shape, strategy], [one, other]));
            }
        }
    }
    cases.retain(|(title, ..)| title.contains(&only));
    let each: u64 = count / u64::try_from(cases.len())?.max(1);
    let (mut all, mut sleeps) = (0, 0);
    for (number, (title, [shape, strategy], barriers)) in (0..).zip(cases) {
        let name = Name(format!("wake_soak-{}-{number}", std::process::id()));
        let start = Instant::now();
        let mut sides = Vec::new();
        for (side, barrier) in ["0", "1"].into_iter().zip(barriers) {
            let mut command = Command::new(env::current_exe()?);
            command.args(["--side", side, &name.0, shape, strategy, &each.to_string(), &(seed + number).to_string()]);
            command.env("IPC_BUFFER_TICK_MS", "3600000").env_remove("IPC_BUFFER_NO_MEMBARRIER");
            if barrier == "fenced" {
                command.env("IPC_BUFFER_NO_MEMBARRIER", "1");
            }
            sides.push(Process(command.stdout(Stdio::piped()).spawn()?));
        }
        let mut slept = 0_u64;
        for side in &mut sides {
            let status = side.0.wait()?;
            if !status.success() {
                return Err(format!("{title}: a side ended with {status}").into());
            }
            let said = std::io::read_to_string(side.0.stdout.take().ok_or("piped")?)?;
            slept += said.trim().parse::<u64>()?;
        }
        println!("{title:34} {each:>12} hand-overs {slept:>12} sleeps {:>8.1?}", start.elapsed());
        all += each;
        sleeps += slept;
    }
    println!("{all} hand-overs, {sleeps} sleeps, 0 lost wake-ups");
    Ok(())
}

/// Hand-overs of this process, as its watchdog sees them.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// One of the two processes.
struct Side {
    first: bool,
    ctx: ThreadContext,
    options: ChannelOptions,
    count: u64,
    rng: Cell<u64>,
}

impl Side {
    fn work(args: &[String]) -> Outcome {
        let [side, name, shape, strategy, count, seed] = args else { return Err("--side is not for you".into()) };
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let first = side == "0";
        let strategy = if strategy == "block" { WaitStrategy::Block } else { WaitStrategy::Adaptive };
        let (count, seed): (u64, u64) = (count.parse()?, seed.parse()?);
        let slots = shape.rsplit('-').next().and_then(|slots| slots.parse().ok()).unwrap_or(2);
        let options = ChannelOptions::new().capacity(slots).wait_strategy(strategy);
        let ctx = Buffer::options().capacity(1 << 20).open(name)?.context()?;
        let this = Self { first, ctx, options, count, rng: Cell::new(seed * 2 + u64::from(first)) };
        let who = format!("{shape}, side {side}");
        thread::spawn(move || watch(&who));
        match shape.as_str() {
            "ping-pong" => this.ping_pong()?,
            "select" => this.select(strategy)?,
            #[cfg(feature = "async")]
            "await" => this.awaiting()?,
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

    /// About what the other side needs to look, to fall asleep, or to wake up; or nothing.
    fn pause(&self) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        let random = self.random();
        let limit_ns = match random & 15 {
            0 => 40_000,
            1 | 2 => 4_000,
            3 if random & 0xfff0 == 0 => 1_000_000,
            _ => return,
        };
        let length = Duration::from_nanos((random >> 16) % limit_ns);
        let start = Instant::now();
        if limit_ns == 1_000_000 {
            thread::sleep(length);
        }
        while start.elapsed() < length {
            std::hint::spin_loop();
        }
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
        if !tx.wait_for_consumer(PATIENCE) {
            return Err("nobody came".into());
        }
        for number in 0..self.count / 2 {
            if self.first {
                tx.send(self.ctx.record(number)?)?;
            }
            let record = rx.recv()?;
            if *record != number {
                return Err(format!("received {} for {number}", *record).into());
            }
            self.pause();
            if !self.first {
                tx.send(record)?;
            }
        }
        Ok(())
    }

    fn stream(&self) -> Outcome {
        if self.first {
            let mut tx = self.producer(1)?;
            if !tx.wait_for_consumer(PATIENCE) {
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
            if !tx.wait_for_consumer(PATIENCE) {
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

    /// Sends and receives on three channels each way, all at the same time.
    #[cfg(feature = "async")]
    fn awaiting(&self) -> Outcome {
        use futures_util::future::{try_join, try_join_all};
        let (mut outputs, mut inputs) = self.three_each_way()?;
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

    fn three_each_way(&self) -> Outcome<([Tx; 3], [Rx; 3])> {
        let (there, back) = if self.first { (0, 10) } else { (10, 0) };
        let outputs = [self.producer(there)?, self.producer(there + 1)?, self.producer(there + 2)?];
        let inputs = [self.consumer(back)?, self.consumer(back + 1)?, self.consumer(back + 2)?];
        if !outputs.iter().all(|tx| tx.wait_for_consumer(PATIENCE)) {
            return Err("nobody came".into());
        }
        Ok((outputs, inputs))
    }

    /// Sends and receives on three channels each way, whichever is ready.
    fn select(&self, strategy: WaitStrategy) -> Outcome {
        let (mut outputs, mut inputs) = self.three_each_way()?;
        let mut select = Select::new().wait_strategy(strategy);
        outputs.iter().for_each(|tx| _ = select.send(tx));
        inputs.iter().for_each(|rx| _ = select.recv(rx));
        let each = self.count / 6;
        let (mut sent, mut received) = ([0; 3], [0; 3]);
        while (sent, received) != ([each; 3], [each; 3]) {
            let number = select.ready().ok_or("nothing left to wait for")?;
            if let Some(tx) = outputs.get_mut(number) {
                tx.try_send(self.ctx.record(sent[number])?)?;
                sent[number] += 1;
                if sent[number] == each {
                    select.remove(number);
                }
            } else {
                let i = number - 3;
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

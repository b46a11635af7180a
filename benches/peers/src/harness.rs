//! Runs a case: every contender is checked, then timed in rounds, one after the other; the median of its rounds counts.

use crate::floor;
use crate::report::{self, Style};
use crate::side::{Far, Solo};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// One side's part of a workload.
pub trait Work {
    /// Does `ops` operations; returns how many of them came out right.
    fn run(&mut self, ops: u64) -> u64;

    /// Nanoseconds of the last run that count, if not all of them do.
    fn counted_ns(&self) -> Option<u64> {
        None
    }

    /// If each operation is a round trip, worth timing one by one: what does that.
    fn trips(&mut self) -> Option<&mut dyn TimedTrips> {
        None
    }
}

/// Work of round trips that can be timed one by one.
pub trait TimedTrips {
    /// As [`Work::run`], noting how long each took.
    fn run_timed(&mut self, ops: u64, each_ns: &mut Vec<u64>) -> u64;
}

impl<F: FnMut(u64) -> u64> Work for F {
    fn run(&mut self, ops: u64) -> u64 {
        self(ops)
    }
}

/// Work of round trips: one of the given number, and whether it came out right.
pub struct Trips<F>(pub F);

impl<F: FnMut(u64) -> bool> Work for Trips<F> {
    fn run(&mut self, ops: u64) -> u64 {
        (0..ops).map(|i| u64::from((self.0)(i))).sum()
    }

    fn trips(&mut self) -> Option<&mut dyn TimedTrips> {
        Some(self)
    }
}

impl<F: FnMut(u64) -> bool> TimedTrips for Trips<F> {
    fn run_timed(&mut self, ops: u64, each_ns: &mut Vec<u64>) -> u64 {
        let mut before = Instant::now();
        let timed = |i| {
            let good = (self.0)(i);
            let now = Instant::now();
            each_ns.push((now - before).as_nanos() as u64);
            before = now;
            u64::from(good)
        };
        (0..ops).map(timed).sum()
    }
}

/// One run of a contender.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Operations that came out right.
    pub good: u64,
    /// Per operation.
    pub ns: f64,
}

/// Something that does a case's work.
pub trait Contender {
    /// Does `ops` operations.
    fn run(&mut self, ops: u64) -> Outcome;

    /// How long each of `ops` operations took, if the case is about that.
    fn trips(&mut self, _ops: u64) -> Option<Vec<u64>> {
        None
    }
}

/// Who takes part in a case, and how.
pub struct Entrant {
    pub name: &'static str,
    enter: fn(&Lab) -> Box<dyn Contender>,
    far: Option<FarSide>,
}

/// Makes the far side's work from the key that the near side has started it with.
pub type FarSide = fn(&str) -> Box<dyn Work>;

impl Entrant {
    pub fn new(name: &'static str, enter: fn(&Lab) -> Box<dyn Contender>) -> Self {
        Self { name, enter, far: None }
    }

    /// One whose far side is a process.
    pub fn with_far(self, far: FarSide) -> Self {
        Self { far: Some(far), ..self }
    }

    /// The same under another name.
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    pub fn far(&self, key: &str) -> Box<dyn Work> {
        (self.far.expect("a far side that is a process"))(key)
    }
}

/// A contender that is one thread.
pub fn solo(work: impl Work + 'static) -> Box<dyn Contender> {
    Box::new(Solo(Box::new(work)))
}

/// A workload and who does it.
pub struct Case {
    pub name: &'static str,
    /// What one operation is.
    pub about: &'static str,
    /// One of them is "ours".
    pub entrants: fn() -> Vec<Entrant>,
    /// What ours is compared with: one result for each, the best of those named that take part.
    pub against: &'static [&'static [&'static str]],
}

/// What a contender is made with.
#[derive(Debug, Clone, Copy)]
pub struct Lab {
    case: &'static str,
    contender: &'static str,
    /// The near core, which this thread is on, and the far one.
    pub cores: [usize; 2],
}

impl Lab {
    /// A name for what both sides open, unlike any other.
    pub fn name(&self) -> String {
        static NAMES: AtomicU64 = AtomicU64::new(0);
        let name = NAMES.fetch_add(1, Ordering::Relaxed);
        format!("ipc-buffer-peers-{}-{}-{name}", std::process::id(), self.case)
    }

    /// Starts the contender's far side as a process; `key` is to what both sides share.
    pub fn far_process(&self, key: &str) -> Far {
        Far::process(self.cores[1], self.case, self.contender, key)
    }
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    /// Of one case. The contenders get equal shares of it in each round, and one more to get warm.
    pub budget: Duration,
    /// Round trips timed one by one, at most; what fits into three shares is enough.
    pub trips: u64,
}

impl Effort {
    pub const FULL: Self = Self { rounds: 15, budget: Duration::from_secs(20), trips: 1_000_000 };
    pub const QUICK: Self = Self { rounds: 9, budget: Duration::from_millis(1_500), trips: 50_000 };

    /// One contender's share of a round.
    fn slice(&self, contenders: usize) -> Duration {
        self.budget / (contenders * (self.rounds + 1)) as u32
    }
}

/// What a contender's rounds gave, sorted, in ns per operation.
#[derive(Debug)]
pub struct Measured {
    pub name: &'static str,
    pub rounds_ns: Vec<f64>,
    /// Sorted.
    pub trips_ns: Option<Vec<u64>>,
}

impl Measured {
    /// p50, p99, p99.9 and the longest of its trips.
    pub fn percentiles_ns(&self) -> Option<[u64; 4]> {
        let trips = self.trips_ns.as_ref()?;
        Some([0.5, 0.99, 0.999, 1.0].map(|part| trips[((trips.len() - 1) as f64 * part) as usize]))
    }

    pub fn median_ns(&self) -> f64 {
        self.rounds_ns[self.rounds_ns.len() / 2]
    }
}

/// Measures `case` and reports it.
pub fn run(case: &Case, cores: [usize; 2], effort: Effort, style: Style) {
    let entrants = std::iter::once(floor::ping_pong()).chain((case.entrants)());
    let enter = |entrant: Entrant| {
        let contender = (entrant.enter)(&Lab { case: case.name, contender: entrant.name, cores });
        progress::tick();
        (entrant.name, contender)
    };
    let mut entries: Vec<(&str, Box<dyn Contender>)> = entrants.map(enter).collect();
    let slice = effort.slice(entries.len());
    // Finding out how much to do is also the warm-up, and every run is checked.
    let ops: Vec<u64> = entries.iter_mut().map(|(name, one)| calibrate(case.name, name, &mut **one, slice)).collect();
    let mut all: Vec<Measured> =
        entries.iter().map(|(name, _)| Measured { name, rounds_ns: Vec::new(), trips_ns: None }).collect();
    let start = Instant::now();
    for round in 0..effort.rounds {
        // On a busy machine spinning sides wait for each other's time slices.
        if start.elapsed() > 2 * effort.budget && round > 0 {
            break;
        }
        // The floor first, then the others, each round starting with another one.
        let others = entries.len() - 1;
        let order = (0..others).map(|i| 1 + (i + round) % others);
        for i in std::iter::once(0).chain(order) {
            all[i].rounds_ns.push(checked(case.name, entries[i].0, &mut *entries[i].1, ops[i]));
        }
    }
    // The floor's trips are worth the time where others make some.
    for i in (0..entries.len()).rev() {
        all[i].rounds_ns.sort_by(f64::total_cmp);
        if i > 0 || all.iter().any(|one| one.trips_ns.is_some()) {
            let mut trips = entries[i].1.trips(effort.trips.min(3 * ops[i]));
            trips.iter_mut().for_each(|trips| trips.sort_unstable());
            all[i].trips_ns = trips;
        }
        progress::tick();
    }
    // Ours audits its buffer when it ends: no numbers from a heap that lost something.
    drop(entries);
    report::case(case, &all, style);
}

/// Operations that take about `slice`.
fn calibrate(case: &str, name: &str, contender: &mut dyn Contender, slice: Duration) -> u64 {
    let slice_ns = slice.as_nanos() as f64;
    // What is only done once: pages touched, connections made.
    checked(case, name, contender, 1);
    let mut ops = 1;
    loop {
        let mut try_it = || checked(case, name, contender, ops) * ops as f64;
        let is_long = |ns: f64| ns * 4.0 >= slice_ns;
        let mut ns = try_it();
        if is_long(ns) {
            // A run that met a pause must not make all others short.
            ns = ns.min(try_it()).min(try_it());
        }
        if is_long(ns) {
            return ((ops as f64 * slice_ns / ns) as u64).max(1);
        }
        ops *= 2;
    }
}

fn checked(case: &str, name: &str, contender: &mut dyn Contender, ops: u64) -> f64 {
    let outcome = contender.run(ops);
    assert!(outcome.good == ops, "{case}: {name} got {} of {ops} operations right", outcome.good);
    progress::tick();
    outcome.ns
}

/// A run that hangs becomes a failure.
pub mod progress {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    static TICKS: AtomicU64 = AtomicU64::new(0);
    const LIMIT: Duration = Duration::from_secs(60);

    pub fn tick() {
        TICKS.fetch_add(1, Ordering::Relaxed);
    }

    /// Aborts the process when nothing has ticked for [`LIMIT`].
    pub fn watch() {
        std::thread::spawn(|| {
            loop {
                let before = TICKS.load(Ordering::Relaxed);
                std::thread::sleep(LIMIT);
                if TICKS.load(Ordering::Relaxed) == before {
                    eprintln!("peers: nothing has happened for {LIMIT:?}, aborting");
                    std::process::abort();
                }
            }
        });
    }
}

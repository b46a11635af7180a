//! Runs a case: every contender is checked, then timed in rounds, one after the other; the median of its rounds counts.

use crate::floor;
use crate::report;
use crate::side::Solo;
use std::time::{Duration, Instant};

/// One side's part of a workload.
pub trait Work {
    /// Does `ops` operations; returns how many of them came out right.
    fn run(&mut self, ops: u64) -> u64;

    /// Whether each operation is a round trip, worth timing one by one with [`trips`](Self::trips).
    fn makes_trips(&self) -> bool {
        false
    }

    /// As [`run`](Self::run), noting how long each took.
    fn trips(&mut self, _ops: u64, _each_ns: &mut Vec<u64>) -> u64 {
        unimplemented!("see makes_trips")
    }
}

impl<F: FnMut(u64) -> u64> Work for F {
    fn run(&mut self, ops: u64) -> u64 {
        self(ops)
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

/// A contender and its name.
pub type Entry = (&'static str, Box<dyn Contender>);

/// A contender that is one thread.
pub fn solo(name: &'static str, work: impl Work + 'static) -> Entry {
    (name, Box::new(Solo(Box::new(work))))
}

/// A workload and who does it.
pub struct Case {
    pub name: &'static str,
    /// What one operation is.
    pub about: &'static str,
    /// Ours first.
    pub contenders: fn(&Lab) -> Vec<Entry>,
    /// The far side of a contender that is two processes: which contender, and the name of what both open.
    pub far: fn(&str, &str) -> Box<dyn Work>,
    /// What ours is compared with: one result for each, the best of those named.
    pub against: &'static [&'static [&'static str]],
}

/// For cases without processes.
pub fn no_far(contender: &str, _name: &str) -> Box<dyn Work> {
    panic!("{contender} has no far side");
}

/// What a case makes its contenders with.
#[derive(Debug, Clone, Copy)]
pub struct Lab {
    pub case: &'static str,
    /// The near core, which this thread is on, and the far one.
    pub cores: [usize; 2],
}

impl Lab {
    /// A name for what both sides open, unlike any other's.
    pub fn name(&self) -> String {
        format!("ipc-buffer-peers-{}-{}", std::process::id(), self.case)
    }
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    /// When it is over, no further round begins: on a busy machine spinning sides wait for each other's time slices.
    pub budget: Duration,
    /// Of one contender in one round.
    pub slice: Duration,
    /// Operations timed one by one.
    pub trips: u64,
}

impl Effort {
    pub const FULL: Self =
        Self { rounds: 15, budget: Duration::from_secs(60), slice: Duration::from_millis(150), trips: 1_000_000 };
    pub const QUICK: Self =
        Self { rounds: 9, budget: Duration::from_secs(4), slice: Duration::from_millis(50), trips: 50_000 };
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
    pub fn median_ns(&self) -> f64 {
        self.rounds_ns[self.rounds_ns.len() / 2]
    }
}

/// Measures `case` and reports it.
pub fn run(case: &Case, cores: [usize; 2], effort: Effort, json: bool) {
    let lab = Lab { case: case.name, cores };
    let mut entries: Vec<Entry> = vec![(floor::NAME, floor::contender(cores[1]))];
    entries.extend((case.contenders)(&lab));
    // Finding out how much to do is also the warm-up, and every run is checked.
    let ops: Vec<u64> =
        entries.iter_mut().map(|(name, one)| calibrate(case.name, name, &mut **one, effort.slice)).collect();
    let mut all: Vec<Measured> =
        entries.iter().map(|(name, _)| Measured { name, rounds_ns: Vec::new(), trips_ns: None }).collect();
    let start = Instant::now();
    for round in 0..effort.rounds {
        if start.elapsed() > effort.budget && round > 0 {
            break;
        }
        // The floor first, then the others, each round starting with another one.
        let others = entries.len() - 1;
        let order = (0..others).map(|i| 1 + (i + round) % others);
        for i in std::iter::once(0).chain(order) {
            all[i].rounds_ns.push(checked(case.name, entries[i].0, &mut *entries[i].1, ops[i]));
        }
    }
    for (measured, (_, contender)) in all.iter_mut().zip(&mut entries) {
        measured.rounds_ns.sort_by(f64::total_cmp);
        measured.trips_ns = contender.trips(effort.trips);
        if let Some(trips) = &mut measured.trips_ns {
            trips.sort_unstable();
        }
        progress::tick();
    }
    // Ours audits its buffer when it ends: no numbers from a heap that lost something.
    drop(entries);
    report::case(case, &all, json);
}

/// Operations that take about `slice`.
fn calibrate(case: &str, name: &str, contender: &mut dyn Contender, slice: Duration) -> u64 {
    let slice_ns = slice.as_nanos() as f64;
    let mut ops = 1_000;
    loop {
        let ns = checked(case, name, contender, ops) * ops as f64;
        if ns * 4.0 >= slice_ns {
            // Never less than this: a run that met a pause must not make all others short.
            return ((ops as f64 * slice_ns / ns) as u64).max(ops / 2);
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

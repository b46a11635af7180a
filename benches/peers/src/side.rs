//! The two sides of a contender: the near one is this thread, the far one a thread or a process on another core.
//!
//! The far side lives as long as its contender and sleeps between runs, so that what it has cached stays warm and its core is
//! free for the others. Both sides read the same clock (CLOCK_MONOTONIC), so a run is timed without waiting for its report.

use crate::cores;
use crate::harness::{Contender, Outcome, Work};
use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What one side did in a run.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    good: u64,
    start_ns: u64,
    end_ns: u64,
}

/// Nanoseconds of the clock that all processes share.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn timed(work: &mut dyn Work, ops: u64) -> Report {
    let start_ns = now_ns();
    let good = work.run(ops);
    let end_ns = now_ns();
    Report { good, start_ns, end_ns: work.counted_ns().map_or(end_ns, |counted| start_ns + counted) }
}

/// One thread does it all.
pub struct Solo(pub Box<dyn Work>);

impl Contender for Solo {
    fn run(&mut self, ops: u64) -> Outcome {
        let report = timed(&mut *self.0, ops);
        Outcome { good: report.good, ns: (report.end_ns - report.start_ns) as f64 / ops as f64 }
    }
}

/// What counts as the time of a run.
#[derive(Debug, Clone, Copy)]
pub enum Span {
    /// From the near side's start to the end of the later one: operations flow from side to side.
    Flow,
    /// The near side's time, or what it says counts of it.
    Near,
    /// The mean of both sides' own times: each does all the operations, and they are in each other's way.
    Each,
}

/// Near and far work on the same thing.
pub struct Pair {
    // Dropped first: the far side leaves before the near one looks whether everything is in order.
    far: Far,
    near: Box<dyn Work>,
    span: Span,
}

impl Pair {
    pub fn new(far: Far, near: Box<dyn Work>, span: Span) -> Self {
        Self { far, near, span }
    }

    fn both(&mut self, ops: u64, near: impl FnOnce(&mut dyn Work) -> Report) -> (Report, Report) {
        self.far.start(ops);
        let near = near(&mut *self.near);
        (near, self.far.report())
    }
}

impl Contender for Pair {
    fn run(&mut self, ops: u64) -> Outcome {
        let (near, far) = self.both(ops, |work| timed(work, ops));
        let ns = match self.span {
            Span::Flow => (near.end_ns.max(far.end_ns) - near.start_ns) as f64,
            Span::Near => (near.end_ns - near.start_ns) as f64,
            Span::Each => ((near.end_ns - near.start_ns) + (far.end_ns - far.start_ns)) as f64 / 2.0,
        };
        Outcome { good: near.good.min(far.good), ns: ns / ops as f64 }
    }

    fn trips(&mut self, ops: u64) -> Option<Vec<u64>> {
        self.near.trips()?;
        let mut trips = Vec::with_capacity(ops as usize);
        let (near, _) = self.both(ops, |work| {
            let good = work.trips().map_or(0, |timed| timed.run_timed(ops, &mut trips));
            Report { good, start_ns: 0, end_ns: 0 }
        });
        assert!(near.good == ops, "got {} of {ops} trips right", near.good);
        Some(trips)
    }
}

/// The far side.
pub enum Far {
    Thread { jobs: Option<Sender<u64>>, news: Receiver<Option<Report>>, thread: Option<JoinHandle<()>> },
    Process { jobs: Option<ChildStdin>, news: BufReader<ChildStdout>, child: Child },
}

impl Far {
    /// A thread of this process on `core`; `work` is made there.
    pub fn thread(core: usize, work: impl FnOnce() -> Box<dyn Work> + Send + 'static) -> Self {
        let (jobs, todo) = channel::<u64>();
        let (tell, news) = channel();
        let thread = std::thread::spawn(move || {
            cores::pin(core);
            let mut work = work();
            let _ = tell.send(None);
            for ops in todo {
                let _ = tell.send(None);
                let _ = tell.send(Some(timed(&mut *work, ops)));
            }
        });
        let far = Self::Thread { jobs: Some(jobs), news, thread: Some(thread) };
        far.ready()
    }

    /// This program once more, as `contender` of `case` on `core`; `name` is of what both sides open.
    pub fn process(core: usize, case: &str, contender: &str, name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args([ROLE, case, contender, name, &core.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the far side");
        let jobs = child.stdin.take();
        let news = BufReader::new(child.stdout.take().expect("piped"));
        Self::Process { jobs, news, child }.ready()
    }

    fn ready(mut self) -> Self {
        self.next();
        self
    }

    /// Returns when the far side has begun.
    fn start(&mut self, ops: u64) {
        match self {
            Self::Thread { jobs, .. } => jobs.as_ref().expect("open").send(ops).expect("the far side lives"),
            Self::Process { jobs, .. } => {
                // One write: the far side wakes once.
                let line = format!("{ops}\n");
                jobs.as_mut().expect("open").write_all(line.as_bytes()).expect("the far side lives");
            }
        }
        self.next();
    }

    fn report(&mut self) -> Report {
        self.next().expect("a report")
    }

    /// What the far side says next; nothing but "ready" is `None`.
    fn next(&mut self) -> Option<Report> {
        match self {
            Self::Thread { news, .. } => news.recv().expect("the far side lives"),
            Self::Process { news, .. } => {
                let mut line = String::new();
                news.read_line(&mut line).expect("read from the far side");
                let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
                match numbers[..] {
                    [good, start_ns, end_ns] => Some(Report { good, start_ns, end_ns }),
                    _ if line == "ready\n" => None,
                    _ => panic!("the far side ended"),
                }
            }
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        match self {
            Self::Thread { jobs, thread, .. } => {
                jobs.take();
                if let Some(thread) = thread.take() {
                    thread.join().expect("the far side ends well");
                }
            }
            Self::Process { jobs, child, .. } => {
                jobs.take();
                let status = child.wait().expect("wait for the far side");
                assert!(status.success(), "the far side ended with {status}");
            }
        }
    }
}

/// What a process that this one starts can open an open file of this one by.
pub fn key(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// First argument of a process that is a far side.
pub const ROLE: &str = "--far";

/// The far side's main loop.
pub fn serve(mut work: Box<dyn Work>) {
    let say = |line: String| {
        let mut out = stdout();
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).expect("the near side lives");
    };
    say("ready\n".to_owned());
    for line in stdin().lines() {
        let ops = line.expect("read a job").parse().expect("a number");
        say("ready\n".to_owned());
        let report = timed(&mut *work, ops);
        say(format!("{} {} {}\n", report.good, report.start_ns, report.end_ns));
    }
}

/// Ends with the process that started it, whatever it is doing.
pub fn die_with_parent() {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).expect("prctl");
}

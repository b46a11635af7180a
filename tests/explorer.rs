//! A living process X is stopped at each labelled point in the middle of each operation. Beside it a victim is killed, before or
//! then, or leaves then; a reaper reaps, allocates until it is refused, takes from the idle or takes the victim's place; another
//! process comes and goes. Then X goes on, or is killed.
//!
//! Nothing may have two owners: what a record's bytes say is who has it, and whoever has one looks again and again. What was sent
//! arrives once and in order, the audit adds up, and in the end all is free and the segment is gone.
//!
//! Which points an operation comes to is found out first, by one run of each without a stop. The bounded form stops X at every point
//! of every operation, twice, and lets a *turn* choose how: which time of coming there, what becomes of the victim, what the reaper
//! does, what becomes of X. So many turns in succession as `ways` has are all there is; `IPC_BUFFER_EXPLORER=n` is turn n,
//! `IPC_BUFFER_EXPLORER=full` is all of it. Arguments choose cases by parts of their names: with them a case that failed is run again.
//!
//! Where X is stopped with the control lock in its hands, the others do what needs no lock.
//!
//! Needs the feature `crash-points`, and takes operations that await in with `async`:
//! `cargo test --release --features crash-points,async --test explorer`.
#![allow(clippy::unwrap_used, unreachable_pub)]
#![allow(unsafe_code)] // memory that the children share

#[path = "explorer/acts.rs"]
mod acts;
#[path = "common/children.rs"]
mod children;
mod common;
#[cfg(feature = "async")]
#[path = "common/executor.rs"]
mod executor;
#[path = "explorer/hoard.rs"]
mod hoard;
#[path = "common/ledger.rs"]
mod ledger;
#[path = "explorer/parties.rs"]
mod parties;
#[path = "explorer/streams.rs"]
mod streams;

use acts::{ACTS, Deed, X};
use children::{Baton, Ended, KILLED, child, each, ended, in_child, in_segment, is_locked, set_part, shared, signal};
use ipc_buffer::crash_points::{ALL, arm_stop, disarm, passed};
use parties::{PROGRAMS, Reaper, Victim, passer};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Instant;

/// Points that nothing here comes to: of who creates or removes a segment, alone; and a few that only one who was killed, or a crowd of ids, leads to.
/// tests/crash_points.rs has a case for each.
const NOT_HERE: &[&str] = &[
    "enter: created",
    "enter: sized",
    "enter: obsolete removed",
    "enter: empty file removed",
    "complete: backed",
    "complete: nonce",
    "complete: mode",
    "complete: header",
    "complete: magic",
    "complete: latch",
    "unlink: locked",
    "unlink: done",
    "leave: unlinked",
    "take: stale",
    "settle: spare",
    "settle: removed",
    "index: moved",
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victims {
    KilledBefore,
    KilledThen,
    LeavesThen,
}
const VICTIMS: &[Victims] = &[Victims::KilledBefore, Victims::KilledThen, Victims::LeavesThen];

/// How X is stopped, and what happens then.
#[derive(Clone, Copy)]
struct Stop {
    point: &'static str,
    count: u32,
    program: &'static str,
    /// X is killed and does not go on.
    killed: bool,
}

#[derive(Clone, Copy)]
struct Case {
    act: usize,
    victim: Victims,
    /// None: to see which points X comes to.
    stop: Option<Stop>,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let victim = match self.victim {
            Victims::KilledBefore => "killed before",
            Victims::KilledThen => "killed then",
            Victims::LeavesThen => "leaves then",
        };
        write!(f, "X {} / ", ACTS[self.act].0)?;
        match self.stop {
            None => write!(f, "not stopped / victim {victim}"),
            Some(Stop { point, count, program, killed }) => {
                let fate = if killed { "is killed" } else { "goes on" };
                write!(f, "stopped at {point} ({count}) / victim {victim} / reaper {program} / X {fate}")
            }
        }
    }
}

/// What the workers share with who started them.
struct Board {
    /// How often each act, with the victim dead and alive, comes to each point.
    passed: [[[AtomicU32; MOST_POINTS]; 2]; MOST_ACTS],
}

const MOST_POINTS: usize = 512;
const MOST_ACTS: usize = 128;

fn board() -> &'static Board {
    // SAFETY: atomics, for which zeroes are valid.
    unsafe { shared() }
}

/// X's part: prepares, says so, waits, acts; and says by `passed` where it came.
fn play_x(case: Case, name: &str, baton: &Baton, done: &Baton, board: &Board) -> i32 {
    set_part(&format!("{case} | X"));
    baton.wait();
    let (_, deed) = &ACTS[case.act];
    let mut x = (!matches!(deed, Deed::Comes(_))).then(|| X::new(name).unwrap());
    done.pass();
    baton.wait();
    x.iter_mut().for_each(X::prepares);
    done.pass();
    baton.wait();
    if let (Some(x), Deed::After(first, _)) = (&mut x, deed) {
        first(x);
    }
    let before = passed();
    if let Some(Stop { point, count, .. }) = case.stop {
        arm_stop(point, count);
    }
    let stays = match (deed, x) {
        (Deed::Stays(act) | Deed::After(_, act), Some(mut x)) => {
            act(&mut x);
            Some(x)
        }
        (Deed::Goes(act), Some(x)) => {
            act(x);
            None
        }
        (Deed::Comes(act), _) => {
            act(name);
            None
        }
        _ => None,
    };
    disarm();
    let alive = usize::from(case.victim != Victims::KilledBefore);
    for ((now, before), count) in passed().iter().zip(before).zip(&board.passed[case.act][alive]) {
        count.fetch_max(now - before, SeqCst);
    }
    stays.into_iter().for_each(X::ends);
    0
}

fn play_victim(case: Case, name: &str, baton: &Baton, done: &Baton) -> i32 {
    set_part(&format!("{case} | victim"));
    baton.wait();
    let mut victim = Victim::new(name).unwrap();
    done.pass();
    baton.wait();
    victim.sends();
    done.pass();
    baton.wait();
    victim.receives();
    done.pass();
    // To leave, unless it is killed here.
    baton.wait();
    victim.leaves();
    0
}

const STOPPED: i32 = 1;

/// One case; says whether X was stopped.
fn run(case: Case, name: &str, board: &Board) -> i32 {
    let _ = streams::counts(0);
    let (to_victim, to_x, done) = (Baton::new(), Baton::new(), Baton::new());
    // More than any one takes, also where several suites share two cores.
    let limit_s = 100;
    let victim = child(limit_s, || play_victim(case, name, &to_victim, &done));
    let x = child(limit_s, || play_x(case, name, &to_x, &done, board));
    set_part(&format!("{case} | reaper"));
    let mut reaper = Reaper::new(name).unwrap();
    for (who, _what) in [
        (&to_victim, "attaches"),
        (&to_x, "attaches"),
        (&to_victim, "sends"),
        (&to_x, "sends"),
        (&to_victim, "receives"),
    ] {
        who.pass();
        done.wait();
    }
    let ends_victim = |leaves: bool| {
        if leaves {
            to_victim.pass();
            assert_eq!(ended(victim), Ended::Exit(0), "the victim leaves");
        } else {
            signal(victim, libc::SIGKILL);
            assert_eq!(ended(victim), KILLED);
        }
    };
    if case.victim == Victims::KilledBefore {
        ends_victim(false);
    }
    to_x.pass();
    let was = ended(x);
    if case.victim != Victims::KilledBefore {
        ends_victim(case.victim == Victims::LeavesThen && !is_locked(name));
    }
    let hit = match (was, case.stop) {
        (Ended::Stopped, Some(stop)) => {
            let revokes = &board.passed[case.act];
            let marked = ALL.iter().position(|point| *point == "revoke: marked").expect("a point");
            reaper.goes_on(stop.program, revokes.iter().any(|times| times[marked].load(SeqCst) > 0));
            if !is_locked(name) {
                assert_eq!(in_child(20, || (passer(name, streams::id::PASSERS), 0).1), Ended::Exit(0), "who comes by");
            }
            signal(x, if stop.killed { libc::SIGKILL } else { libc::SIGCONT });
            assert_eq!(ended(x), if stop.killed { KILLED } else { Ended::Exit(0) }, "X's end");
            STOPPED
        }
        (Ended::Exit(0), _) => 0,
        (other, _) => panic!("X ended with {other:?}"),
    };
    reaper.ends();
    hit
}

/// Runs the cases, each in processes of its own; how each ended.
fn run_all(cases: &[Case], board: &'static Board) -> Vec<Ended> {
    each(cases, |case| {
        let ended = in_segment("explorer", 120, |name| run(*case, name, board));
        if !matches!(ended, Ended::Exit(0 | STOPPED)) {
            println!("FAILED ({ended:?}): {case}");
        }
        ended
    })
}

/// All ways to stop an act at a point that it comes to, with the victim dead and alive, so many times.
fn ways(act: usize, point: &'static str, times: [u32; 2]) -> Vec<Case> {
    let mut ways = Vec::new();
    for victim in VICTIMS {
        let times = times[usize::from(*victim != Victims::KilledBefore)];
        let counts: BTreeSet<u32> =
            [1, 2, times / 2, times].into_iter().filter(|count| (1..=times).contains(count)).collect();
        for count in counts {
            for program in PROGRAMS {
                ways.extend([false, true].map(|killed| {
                    let stop = Some(Stop { point, count, program, killed });
                    Case { act, victim: *victim, stop }
                }));
            }
        }
    }
    ways
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("explorer: test");
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |case: &Case| filters.iter().all(|filter| case.to_string().contains(filter.as_str()));
    let form = std::env::var("IPC_BUFFER_EXPLORER").unwrap_or_default();
    let full = form == "full" || !filters.is_empty();
    let turn: usize = if full { 0 } else { form.parse().unwrap_or(0) };
    let start = Instant::now();
    let board = board();

    let dry = (0..ACTS.len())
        .flat_map(|act| VICTIMS[..2].iter().map(move |victim| Case { act, victim: *victim, stop: None }));
    let dry: Vec<Case> = dry.collect();
    let mut failed = run_all(&dry, board).iter().filter(|ended| **ended != Ended::Exit(0)).count();

    let times = |act: usize, alive: usize, point: usize| board.passed[act][alive][point].load(SeqCst);
    let mut cases = Vec::new();
    let mut pairs = 0;
    for act in 0..ACTS.len() {
        for (number, point) in ALL.iter().enumerate() {
            let ways = ways(act, point, [times(act, 0, number), times(act, 1, number)]);
            if ways.is_empty() {
                continue;
            }
            // Of two ways at a time, one has X go on and the other has it killed.
            let first = pairs * 31 + turn * 2;
            let chosen = |n: usize| ways[(first + n * (ways.len() / 2 + 1)) % ways.len()];
            pairs += 1;
            cases.extend(if full { ways.clone() } else { vec![chosen(0), chosen(1)] }.into_iter().filter(wanted));
        }
    }
    let ends = run_all(&cases, board);
    let mut stopped = BTreeSet::new();
    let (mut stops, mut kills) = (0, dry.len());
    for (case, ended) in cases.iter().zip(&ends) {
        let stop = case.stop.expect("of these");
        match ended {
            Ended::Exit(0) => {}
            Ended::Exit(STOPPED) => {
                stopped.insert(stop.point);
                stops += 1;
                kills += usize::from(stop.killed);
            }
            _ => failed += 1,
        }
        kills += usize::from(case.victim != Victims::LeavesThen);
    }
    let turn = if full { "all of them".into() } else { format!("turn {turn}") };
    println!(
        "{} points, X stopped at {} of them; {} operations, {pairs} points in them; {} cases, {turn}, and {} without a stop; \
         {stops} stops, {kills} kills; {failed} failed; {:.0?}",
        ALL.len(),
        stopped.len(),
        ACTS.len(),
        cases.len(),
        dry.len(),
        start.elapsed()
    );
    let missed: Vec<_> = ALL.iter().filter(|point| !stopped.contains(**point) && !NOT_HERE.contains(*point)).collect();
    let is_all = filters.is_empty();
    if is_all {
        missed.iter().for_each(|point| println!("X is never stopped at: {point}"));
    }
    let ok = failed == 0 && (!is_all || missed.is_empty());
    println!("test explorer ... {}", if ok { "ok" } else { "FAILED" });
    std::process::exit(i32::from(!ok));
}

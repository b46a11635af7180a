//! ipc-buffer side by side with its rivals.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml -- [--quick] [--only CASE]... [--json]`
//!
//! Every contender runs the same workload, is checked first and in every run, and takes its turn in each round; the median of the
//! rounds counts. Ours and iceoryx2 are two processes where there are two sides, the rivals of one process are two threads; each
//! side is pinned to a core of its own. The cache-line ping-pong is measured in every round too: it is the machine's floor.

#![deny(unsafe_code)]

mod cases;
mod cores;
mod floor;
mod harness;
mod heaps;
mod queues;
mod report;
mod side;
mod snmalloc;

use cases::ALL;
use harness::{Effort, progress};
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: peers [--quick] [--only CASE]... [--json]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, case, contender, name, core] = &args[..]
        && role == side::ROLE
    {
        return far_side(case, contender, name, core);
    }
    let (mut effort, mut json, mut only) = (Effort::FULL, false, Vec::new());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), &mut words) {
            ("--quick", _) => effort = Effort::QUICK,
            ("--json", _) => json = true,
            ("--only", rest) => match rest.next().and_then(|name| ALL.iter().find(|case| case.name == name)) {
                Some(case) => only.push(case),
                None => return refuse("--only needs the name of a case"),
            },
            _ => return refuse(&format!("{word}?")),
        }
    }
    let cores = cores::pair();
    // A process for each case: no heap inherits what another case did to it.
    if let [case] = only[..] {
        if std::env::var_os(PART).is_none() {
            report::heading(cores, cores::are_siblings(cores[0], cores[1]));
        } else {
            side::die_with_parent();
        }
        cores::pin(cores[0]);
        progress::watch();
        harness::run(case, cores, effort, json);
        return ExitCode::SUCCESS;
    }
    report::heading(cores, cores::are_siblings(cores[0], cores[1]));
    let cases: Vec<_> = if only.is_empty() { ALL.iter().collect() } else { only };
    let flags = args.iter().filter(|arg| matches!(arg.as_str(), "--quick" | "--json"));
    let failed = cases.iter().any(|case| {
        let mut one = Command::new(std::env::current_exe().expect("own path"));
        one.args(["--only", case.name]).args(flags.clone()).env(PART, "1");
        !one.status().expect("start a case").success()
    });
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Set for a process that runs one case of many.
const PART: &str = "IPC_BUFFER_PEERS_PART";

fn refuse(why: &str) -> ExitCode {
    eprintln!("peers: {why}\n{USAGE}\ncases:");
    ALL.iter().for_each(|case| eprintln!("  {:<18}{}", case.name, case.about));
    ExitCode::from(2)
}

fn far_side(case: &str, contender: &str, name: &str, core: &str) -> ExitCode {
    side::die_with_parent();
    cores::pin(core.parse().expect("a core"));
    let case = ALL.iter().find(|one| one.name == case).expect("a case");
    side::serve((case.far)(contender, name));
    ExitCode::SUCCESS
}

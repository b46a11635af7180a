//! ipc-buffer side by side with its rivals.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml -- [--quick] [--only CASE]... [--json] [--plot FILE.svg]`
//!
//! Every contender runs the same workload, is checked first and in every run, and takes its turn in each round; the median of the
//! rounds counts. Who can be two processes is; the rivals that live in one process are two threads; each
//! side is pinned to a core of its own. The cache-line ping-pong is measured in every round too: it is the machine's floor.
//!
//! `--plot` measures streams and round trips over many sizes instead, and draws them.

#![deny(unsafe_code)]

mod cases;
mod cores;
mod floor;
mod harness;
mod heaps;
mod links;
mod plot;
mod report;
mod rivals;
mod shared;
mod side;
mod snmalloc;
mod words;

use harness::{Case, Effort, progress};
use report::Style;
use std::process::{Command, ExitCode};

const USAGE: &str = "usage: peers [--quick] [--only CASE]... [--json] [--plot FILE.svg]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, case, contender, key, core] = &args[..]
        && role == side::ROLE
    {
        return far_side(case, contender, key, core);
    }
    let (mut quick, mut json, mut only, mut plot) = (false, false, Vec::new(), None);
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), &mut words) {
            ("--quick", _) => quick = true,
            ("--json", _) => json = true,
            ("--only", rest) => match rest.next().and_then(|name| cases::find(name)) {
                Some(case) => only.push(case),
                None => return refuse("--only needs the name of a case"),
            },
            ("--plot", rest) => match rest.next() {
                Some(file) => plot = Some(file),
                None => return refuse("--plot needs the name of a file"),
            },
            _ => return refuse(&format!("{word}?")),
        }
    }
    let cores = cores::pair();
    let part_of = std::env::var(PART).ok().and_then(|word| Style::from_word(&word));
    let style = part_of.unwrap_or(if json { Style::Json } else { Style::Table });
    if part_of.is_none() {
        report::heading(cores);
    }
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    if let Some(file) = plot {
        if !only.is_empty() {
            return refuse("--plot measures cases of its own");
        }
        return plot::draw(file, json, |case| part(case, quick, Style::JsonAll));
    }
    // A process for each case: no heap inherits what another case did to it.
    if let [case] = only[..] {
        if part_of.is_some() {
            side::die_with_parent();
        }
        cores::pin(cores[0]);
        progress::watch();
        harness::run(case, cores, effort, style);
        return ExitCode::SUCCESS;
    }
    let cases: Vec<&Case> = if only.is_empty() { cases::ALL.iter().collect() } else { only };
    let failed = cases.iter().any(|case| {
        let status = part(case, quick, style).status();
        !status.expect("start a case").success()
    });
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Set for a process that runs one case of many: how it prints.
const PART: &str = "IPC_BUFFER_PEERS_PART";

/// This program, to run one case.
fn part(case: &Case, quick: bool, style: Style) -> Command {
    let mut part = Command::new(std::env::current_exe().expect("own path"));
    part.args(["--only", case.name]).args(quick.then_some("--quick")).env(PART, style.word());
    part
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("peers: {why}\n{USAGE}\ncases:");
    cases::ALL.iter().for_each(|case| eprintln!("  {:<18}{}", case.name, case.about));
    ExitCode::from(2)
}

fn far_side(case: &str, contender: &str, key: &str, core: &str) -> ExitCode {
    side::die_with_parent();
    cores::pin(core.parse().expect("a core"));
    let entrants = (cases::find(case).expect("a case").entrants)();
    let entrant = entrants.iter().find(|one| one.name == contender).expect("a contender");
    side::serve(entrant.far(key));
    ExitCode::SUCCESS
}

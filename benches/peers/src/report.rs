//! What is printed.

use crate::cores;
use crate::harness::{Case, Measured};
use std::process::Command;

/// The machine and the build: what each is called, and what it is.
pub fn machine(cores: [usize; 2]) -> [(&'static str, String); 5] {
    let first_line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.rsplit(':').next().unwrap_or_default().trim().to_owned()
    };
    let said_by = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let relation = if cores[0] == cores[1] {
        " (ONE core: nothing here says anything about two)"
    } else if cores::are_siblings(cores[0], cores[1]) {
        " (threads of ONE physical core)"
    } else {
        ""
    };
    [
        ("cpu", first_line("/proc/cpuinfo", "model name")),
        ("kernel", first_line("/proc/sys/kernel/osrelease", "")),
        ("rustc", said_by("rustc", &["--version"])),
        ("commit", said_by("git", &["describe", "--always", "--dirty", "--abbrev=12"])),
        ("cores", format!("{} and {}{relation}", cores[0], cores[1])),
    ]
}

/// Says on what machine this runs; as comments on stderr, so that the output of `--json` stays clean.
pub fn heading(cores: [usize; 2]) {
    for (name, value) in machine(cores) {
        eprintln!("# {name:<8}{value}");
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub enum Style {
    /// For people, all contenders.
    Table,
    /// A JSON object for each comparison of the case, one a line.
    Json,
    /// The same for all contenders.
    JsonAll,
}

impl Style {
    const ALL: [(Self, &str); 3] = [(Self::Table, "table"), (Self::Json, "json"), (Self::JsonAll, "json-all")];

    pub fn word(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, its)| *its == word).map(|(style, _)| *style)
    }
}

/// One case.
pub fn case(case: &Case, all: &[Measured], style: Style) {
    let ours = all.iter().find(|one| one.name == "ours").expect("ours takes part");
    let best = |group: &&[&str]| {
        let those = all.iter().filter(|one| group.contains(&one.name));
        those.min_by(|a, b| a.median_ns().total_cmp(&b.median_ns()))
    };
    let peers: Vec<&Measured> = case.against.iter().filter_map(best).collect();
    match style {
        Style::Table => return table(case, ours, &peers, all),
        Style::Json => peers.iter().for_each(|peer| object(case, ours, peer)),
        Style::JsonAll => all.iter().for_each(|peer| object(case, ours, peer)),
    }
    let floor = &all[0];
    let (low, high) = spread(floor);
    eprintln!("# {}: {} {:.1} ns ({low:.1} to {high:.1})", case.name, floor.name, floor.median_ns());
}

fn object(case: &Case, ours: &Measured, peer: &Measured) {
    let (name, ours_ns, peer_ns) = (case.name, ours.median_ns(), peer.median_ns());
    let percentiles = |who: &str, one: &Measured| {
        let [p50, p99, p99_9, max] = one.percentiles_ns()?;
        Some(format!(r#","{who}_p50_ns":{p50},"{who}_p99_ns":{p99},"{who}_p99_9_ns":{p99_9},"{who}_max_ns":{max}"#))
    };
    println!(
        r#"{{"case":"{name}","ours_ns":{ours_ns:.3},"peer":"{}","peer_ns":{peer_ns:.3},"ratio":{:.6}{}{}}}"#,
        peer.name,
        ours_ns / peer_ns,
        percentiles("ours", ours).unwrap_or_default(),
        percentiles("peer", peer).unwrap_or_default(),
    );
}

fn table(case: &Case, ours: &Measured, peers: &[&Measured], all: &[Measured]) {
    println!("\n{}: {} ({} rounds)", case.name, case.about, all[0].rounds_ns.len());
    println!("  {:<16}{:>12}{:>12}{:>12}  {:>8}", "", "ns", "least", "most", "ours/it");
    for one in all {
        let (low, high) = spread(one);
        let ratio = ours.median_ns() / one.median_ns();
        let ratio = if one.name == ours.name { String::new() } else { format!("{ratio:.3}") };
        let note = if peers.iter().any(|peer| peer.name == one.name) { "  <- peer" } else { "" };
        println!("  {:<16}{:>12.2}{low:>12.2}{high:>12.2}  {ratio:>8}{note}", one.name, one.median_ns());
    }
    if all.iter().any(|one| one.trips_ns.is_some()) {
        println!(
            "  {:<16}{:>12}{:>12}{:>12}{:>12}  (each trip timed, the clock's cost included)",
            "", "p50", "p99", "p99.9", "max"
        );
    }
    for (one, [p50, p99, p99_9, max]) in all.iter().filter_map(|one| Some((one, one.percentiles_ns()?))) {
        println!("  {:<16}{p50:>12}{p99:>12}{p99_9:>12}{max:>12}", one.name);
    }
}

/// The least and the most a round gave.
fn spread(one: &Measured) -> (f64, f64) {
    (one.rounds_ns[0], one.rounds_ns[one.rounds_ns.len() - 1])
}

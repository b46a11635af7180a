//! What is printed.

use crate::floor;
use crate::harness::{Case, Measured};
use std::process::Command;

/// The machine and the build; as comments, so that the output of `--json` stays clean on stdout.
pub fn heading(cores: [usize; 2], siblings: bool) {
    let first_line = |path: &str, key: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find(|line| line.starts_with(key))
            .unwrap_or_default()
            .rsplit(':')
            .next()
            .unwrap_or("")
            .trim()
            .to_owned()
    };
    let said_by = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    eprintln!("# cpu     {}", first_line("/proc/cpuinfo", "model name"));
    eprintln!("# kernel  {}", first_line("/proc/sys/kernel/osrelease", ""));
    eprintln!("# rustc   {}", said_by("rustc", &["--version"]));
    eprintln!("# commit  {}", said_by("git", &["describe", "--always", "--dirty", "--abbrev=12"]));
    let relation = if cores[0] == cores[1] {
        " (ONE core: nothing here says anything about two)"
    } else if siblings {
        " (threads of ONE physical core)"
    } else {
        ""
    };
    eprintln!("# cores   {} and {}{relation}", cores[0], cores[1]);
}

/// One case: a table, or one JSON object for each comparison.
pub fn case(case: &Case, all: &[Measured], json: bool) {
    let named = |name: &str| all.iter().find(|one| one.name == name).expect("a contender of this name");
    let ours = named("ours").median_ns();
    let peers = case.against.iter().map(|group| {
        let best = group.iter().map(|name| named(name)).min_by(|a, b| a.median_ns().total_cmp(&b.median_ns()));
        best.expect("somebody to compare with")
    });
    if json {
        for peer in peers {
            let (name, peer, peer_ns) = (case.name, peer.name, peer.median_ns());
            println!(
                r#"{{"case":"{name}","ours_ns":{ours:.3},"peer":"{peer}","peer_ns":{peer_ns:.3},"ratio":{:.4}}}"#,
                ours / peer_ns
            );
        }
        let floor = named(floor::NAME);
        let (low, high) = spread(floor);
        eprintln!("# {}: floor {:.1} ns ({low:.1} to {high:.1})", case.name, floor.median_ns());
        return;
    }
    let counted: Vec<&str> = peers.map(|peer| peer.name).collect();
    println!("\n{}: {} ({} rounds)", case.name, case.about, all[0].rounds_ns.len());
    println!("  {:<16}{:>10}{:>10}{:>10}  {:>7}", "", "ns", "least", "most", "ours/it");
    for one in all {
        let (low, high) = spread(one);
        let ratio = if one.name == "ours" { String::new() } else { format!("{:.3}", ours / one.median_ns()) };
        let note = if counted.contains(&one.name) { "  <- peer" } else { "" };
        println!("  {:<16}{:>10.2}{low:>10.2}{high:>10.2}  {ratio:>7}{note}", one.name, one.median_ns());
    }
    if all.iter().any(|one| one.trips_ns.is_some()) {
        println!(
            "  {:<16}{:>10}{:>10}{:>10}{:>10}  (each trip timed, the clock's cost included)",
            "", "p50", "p99", "p99.9", "max"
        );
    }
    for (one, trips) in all.iter().filter_map(|one| Some((one, one.trips_ns.as_ref()?))) {
        let at = |part: f64| trips[((trips.len() - 1) as f64 * part) as usize];
        println!("  {:<16}{:>10}{:>10}{:>10}{:>10}", one.name, at(0.5), at(0.99), at(0.999), at(1.0));
    }
}

/// The least and the most a round gave.
fn spread(one: &Measured) -> (f64, f64) {
    (one.rounds_ns[0], one.rounds_ns[one.rounds_ns.len() - 1])
}

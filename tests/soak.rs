//! The example `crash_soak`, for a few seconds: random kills, and nothing is lost.

mod common;

use common::{Name, Process, Watchdog};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, thread};

#[test]
fn random_kills_break_no_promise() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let test = env::current_exe().expect("own path");
    let example = test.ancestors().nth(2).expect("a target directory").join("examples/crash_soak");
    assert!(example.exists(), "there is no {example:?}; `cargo test` makes it, and so does `cargo build --examples`");
    let child = Command::new(example)
        .args(["--seconds", "5", "--seed", "1", "--processes", "6"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example");
    let name = Name(format!("crash_soak-{}", child.id()));
    let mut run = Process(child);
    // Workers have standard error too, so its end says that they are gone as well.
    let mut err = run.0.stderr.take().expect("piped");
    let errors = thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let mut stdout = String::new();
    run.0.stdout.take().expect("piped").read_to_string(&mut stdout).expect("read");
    let status = run.wait();
    let stderr = errors.join().expect("the reader").expect("read");
    let last = stdout.lines().last().unwrap_or_default();
    assert!(status.success() && last.ends_with(" 0 violations"), "{status}\n{stdout}{stderr}");
    assert!(!name.exists(), "the segment was left behind");
    // That it killed and sent at all.
    let count = |what| {
        let head = last.split(what).next().unwrap_or_default().trim_end();
        head.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let counts = [" rounds", " audits", " kills", " received"].map(count);
    assert!(counts.into_iter().all(|count| count > 0), "{stdout}");
    println!("{last}");
}

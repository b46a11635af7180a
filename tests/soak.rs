//! The examples that load the library for as long as one likes, for a few seconds.

mod common;

use common::{Name, Process, Watchdog};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, thread};

/// Runs an example, which must succeed, and leave no segment of the name that `name` makes of its process id; says what it printed.
fn run(example: &str, args: &[&str], name: impl FnOnce(u32) -> String) -> String {
    let test = env::current_exe().expect("own path");
    let path = test.ancestors().nth(2).expect("a target directory").join("examples").join(example);
    assert!(path.exists(), "there is no {path:?}; `cargo test` makes it, and so does `cargo build --examples`");
    let child = Command::new(path).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("the example");
    let name = Name(name(child.id()));
    let mut run = Process(child);
    // Its own processes have standard error too, so its end says that they are gone as well.
    let mut err = run.0.stderr.take().expect("piped");
    let errors = thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let mut stdout = String::new();
    run.0.stdout.take().expect("piped").read_to_string(&mut stdout).expect("read");
    let status = run.wait();
    let stderr = errors.join().expect("the reader").expect("read");
    assert!(status.success(), "{status}\n{stdout}{stderr}");
    assert!(!name.exists(), "the segment was left behind");
    stdout
}

/// The number that stands before `what` in the last line.
fn count(stdout: &str, what: &str) -> u64 {
    let last = stdout.lines().last().unwrap_or_default();
    let head = last.split(what).next().unwrap_or_default().trim_end();
    head.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[test]
fn random_kills_break_no_promise() {
    let _watchdog = Watchdog::new(Duration::from_secs(120));
    let args = ["--seconds", "5", "--seed", "1", "--processes", "6"];
    let stdout = run("crash_soak", &args, |id| format!("crash_soak-{id}"));
    assert!(stdout.trim_end().ends_with(" 0 violations"), "{stdout}");
    // That it killed and sent at all.
    let counts = [" rounds", " audits", " kills", " received"].map(|what| count(&stdout, what));
    assert!(counts.into_iter().all(|count| count > 0), "{stdout}");
    println!("{}", stdout.lines().last().unwrap_or_default());
}

#[test]
fn no_wake_up_is_lost() {
    let _watchdog = Watchdog::new(Duration::from_secs(170));
    let cases = if cfg!(feature = "async") { 72 } else { 56 };
    let total = 5000 * cases;
    let stdout = run("wake_soak", &["--count", &total.to_string()], |id| format!("wake_soak-{id}-{}", cases - 1));
    assert!(stdout.trim_end().ends_with(" 0 lost wake-ups"), "{stdout}");
    let (handed_over, slept) = (count(&stdout, " hand-overs"), count(&stdout, " sleeps"));
    // Each case rounds its share up, to what six channels can share.
    assert!((total..total + 6 * cases).contains(&handed_over) && slept > 1000, "{stdout}");
    println!("{}", stdout.lines().last().unwrap_or_default());
}

//! Another process at the other end of two pipes: the same test binary, started anew, that obeys one command a line.
#![allow(dead_code)]

use crate::common::Process;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts lines that are meant for the other side; the rest of stdout is the test harness's.
const MARK: &str = "> ";

/// The started process, seen by who started it.
pub struct Peer {
    pub process: Process,
    to: Option<ChildStdin>,
    from: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    /// Starts the test `test` of this binary with `common::role()` set.
    pub fn start(test: &str, role: &str, buffer: &str) -> Self {
        Self::start_with(test, role, buffer, &[])
    }

    /// The same, with more in its environment.
    pub fn start_with(test: &str, role: &str, buffer: &str, environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env("IPC_BUFFER_TEST_ROLE", role)
            .env("IPC_BUFFER_TEST_BUFFER", buffer)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the peer");
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { process: Process(child), to, from }
    }

    /// Sends a command.
    pub fn say(&mut self, line: &str) {
        writeln!(self.to.as_mut().expect("open until the end"), "{line}").expect("the peer is there");
    }

    /// The next answer; `None` at the end.
    pub fn hear(&mut self) -> Option<String> {
        loop {
            let line = self.from.next()?.ok()?;
            if let Some(answer) = line.strip_prefix(MARK) {
                return Some(answer.to_owned());
            }
        }
    }

    /// Sends a command and waits for its answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.hear().unwrap_or_else(|| panic!("the peer ended at {line:?}: {}", self.process.wait()))
    }

    /// Sends a command that must be answered with "ok".
    pub fn does(&mut self, line: &str) {
        assert_eq!(self.ask(line), "ok", "{line}");
    }

    /// Lets the peer end, which it must do without an error.
    pub fn ends(mut self) {
        self.to = None;
        while self.hear().is_some() {}
        self.process.success();
    }
}

/// The states of its threads.
pub fn states(peer: &Peer) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", peer.process.pid())).expect("it was started");
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
}

/// Gives the command, and time to fall asleep over it (or to spin a while, for who never sleeps).
pub fn falls_asleep(peer: &mut Peer, command: &str) {
    peer.say(command);
    std::thread::sleep(Duration::from_millis(10));
    for _ in 0..100 {
        if states(peer).chars().all(|state| state == 'S') {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Its next answer is this one.
#[track_caller]
pub fn answers(peer: &mut Peer, answer: &str) {
    assert_eq!(peer.hear().as_deref(), Some(answer));
}

/// The next command; `None` when the other side has closed the pipe or is gone.
pub fn listen() -> Option<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).ok().filter(|n| *n > 0)?;
    Some(line.trim_end().to_owned())
}

/// Answers.
pub fn tell(answer: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    // The harness may be in the middle of a line of its own.
    let _ = writeln!(out, "\n{MARK}{answer}");
    let _ = out.flush();
}

/// Whether a wait that timed out took its time.
pub fn timed_out(start: Instant, timeout: Duration) -> String {
    if start.elapsed() >= timeout { "timeout".into() } else { format!("timeout after {:?}", start.elapsed()) }
}

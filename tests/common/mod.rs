//! What every test needs: segments that go away, processes that go away, and a watchdog.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod forked;
pub mod limits;

use ipc_buffer::{Audit, Buffer, BufferOptions, OpenError};
use parking_lot::Mutex;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A buffer name of its own, removed with whatever has it when dropped, also by a panic.
pub struct Name(pub String);

/// Names in use, for a watchdog that ends the process without any drop. Not the standard library's mutex: a sanitizer sees only what is
/// compiled here.
static NAMES: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl Name {
    pub fn new(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipc-buffer-test-{tag}-{}-{number}", std::process::id());
        NAMES.lock().push(name.clone());
        Self(name)
    }

    pub fn path(&self) -> String {
        format!("/dev/shm/{}", self.0)
    }

    /// Whether a segment of this name is there.
    pub fn exists(&self) -> bool {
        std::fs::symlink_metadata(self.path()).is_ok()
    }
}

impl std::ops::Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path());
        let _ = std::fs::remove_dir(self.path());
        NAMES.lock().retain(|name| *name != self.0);
    }
}

/// Aborts the process if it is not dropped in time: a hang becomes a failure.
pub struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    pub fn new(limit: Duration) -> Self {
        let limit = limits::scaled(limit);
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        std::thread::spawn(move || {
            let step = Duration::from_millis(50);
            for _ in 0..(limit.as_millis() / step.as_millis()) {
                std::thread::sleep(step);
                if seen.load(Ordering::Relaxed) {
                    return;
                }
            }
            eprintln!("watchdog: nothing after {limit:?}, aborting");
            for name in NAMES.lock().iter() {
                let _ = std::fs::remove_file(format!("/dev/shm/{name}"));
            }
            std::process::abort();
        });
        Self(done)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Three minutes: more than any one test takes, also where several suites share two cores.
pub fn watchdog() -> Watchdog {
    Watchdog::new(Duration::from_secs(180))
}

/// Whether iterating a channel panics: its context is closed, or another process's.
pub fn iterating_panics<T: ?Sized + ipc_buffer::Payload>(
    rx: &mut ipc_buffer::Channel<T, ipc_buffer::Consumer>,
) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rx.iter().count())).is_err()
}

const ROLE: &str = "IPC_BUFFER_TEST_ROLE";
const BUFFER: &str = "IPC_BUFFER_TEST_BUFFER";

/// What this process was started for, and the buffer it is about, if a test started it with [`start`]. From here on it dies with the thread
/// that has started it, as it should where a watchdog ends that one.
pub fn role() -> Option<(String, String)> {
    let role = (std::env::var(ROLE).ok()?, std::env::var(BUFFER).ok()?);
    forked::die_with_parent();
    Some(role)
}

/// A process that is killed (by its id) and waited for when dropped.
pub struct Process(pub Child);

impl Process {
    pub fn wait(&mut self) -> ExitStatus {
        self.0.wait().expect("wait for the child")
    }

    /// Waits, and panics unless it succeeded.
    pub fn success(mut self) {
        let status = self.wait();
        assert!(status.success(), "the child ended with {status}");
    }

    /// SIGKILL, then waits.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs the test `test` of this same binary once more, in a process of its own, with [`role`] set. The test looks at `role()`
/// first, and plays the part.
pub fn start(test: &str, role: &str, buffer: &str) -> Process {
    start_with(test, role, buffer, &[])
}

/// As [`start`], with more in the environment.
pub fn start_with(test: &str, role: &str, buffer: &str, environment: &[(&str, &str)]) -> Process {
    let child = Command::new(std::env::current_exe().expect("own path"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(BUFFER, buffer)
        .envs(environment.iter().copied())
        .stdout(Stdio::null())
        .spawn()
        .expect("start the child");
    Process(child)
}

/// The audit, which must be sound.
pub fn sound(buffer: &Buffer) -> Audit {
    let audit = buffer.audit().expect("audit");
    assert!(audit.is_sound(), "{audit:#?}");
    audit
}

/// Who meets the dead in a wait, or leaves a channel, spends 20 ms on what is to be given back then: all of it, but on a slow machine.
/// There, this is the rest.
pub fn give_back_the_rest(buffer: &Buffer) {
    if limits::is_slow() {
        buffer.reap().expect("reap");
    }
}

/// Nothing is in use and nothing is lost.
pub fn all_free(buffer: &Buffer) {
    give_back_the_rest(buffer);
    let audit = sound(buffer);
    assert!(audit.is_all_free(), "{audit:#?}");
}

/// Asks again as long as the control lock is busy: as many times the library's five seconds for it as this machine is slow. For those of
/// many that want it at once.
pub fn patiently<R, E: std::fmt::Debug>(is_busy: impl Fn(&E) -> bool, mut ask: impl FnMut() -> Result<R, E>) -> R {
    let end = Instant::now() + limits::scaled(Duration::from_secs(5));
    loop {
        match ask() {
            Err(error) if is_busy(&error) && Instant::now() < end => {}
            answer => return answer.expect("the control lock is had in time"),
        }
    }
}

/// Opens, [patiently].
pub fn open_patiently(options: &BufferOptions, name: &str) -> Buffer {
    patiently(|error| matches!(error, OpenError::Busy { .. }), || options.open(name))
}

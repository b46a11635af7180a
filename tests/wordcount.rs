//! The example `wordcount` counts what `LC_ALL=C wc` counts, and ends in order whatever happens to files and processes.

mod common;

use common::{Name, Process, watchdog};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, thread};

/// A directory that goes away.
struct Dir(PathBuf);

impl Dir {
    fn new(tag: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("wordcount-{tag}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        fs::write(self.0.join(name), contents).expect("a file");
    }
}

impl Deref for Dir {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Lines, words, bytes.
type Totals = [u64; 3];

/// What both `wc` and the example print last: three numbers and a name.
fn totals(stdout: &str) -> Totals {
    let last = stdout.lines().last().expect("a line");
    let mut numbers = last.split_whitespace().map_while(|word| word.parse().ok());
    [(); 3].map(|()| numbers.next().unwrap_or_else(|| panic!("no three numbers in {last:?}")))
}

fn wc(path: &Path) -> Totals {
    let files = walkdir::WalkDir::new(path).into_iter().map(|entry| entry.expect("an entry"));
    let files: Vec<_> = files.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect();
    // The empty one makes it two at least, so that there always is a total.
    let output = Command::new("wc").env("LC_ALL", "C").arg("/dev/null").args(files).output().expect("wc");
    assert!(output.status.success(), "{output:?}");
    totals(&String::from_utf8_lossy(&output.stdout))
}

/// A run of the example. Its segment goes with it, also by a panic.
struct Run {
    process: Process,
    name: Name,
}

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let test = env::current_exe().expect("own path");
        let example = test.ancestors().nth(2).expect("a target directory").join("examples/wordcount");
        assert!(
            example.exists(),
            "there is no {example:?}; `cargo test` makes it, and so does `cargo build --examples`"
        );
        let (out, err) = (Stdio::piped(), Stdio::piped());
        let child = Command::new(example).args(args).stdout(out).stderr(err).spawn().expect("the example");
        let name = Name(format!("wordcount-{}", child.id()));
        Self { process: Process(child), name }
    }

    fn end(mut self) -> Ended {
        let (mut stdout, mut stderr) = (Vec::new(), String::new());
        let err = self.process.0.stderr.take();
        // Workers have standard error too, so its end says that they are gone as well.
        let errors = thread::spawn(move || err.map(|mut err| err.read_to_string(&mut stderr).map(|_| stderr)));
        self.process.0.stdout.take().expect("stdout").read_to_end(&mut stdout).expect("read");
        let code = self.process.wait().code();
        let stderr = errors.join().expect("the reader").expect("stderr").expect("read");
        assert!(!self.name.exists(), "the segment was left behind");
        Ended { code, stdout: String::from_utf8_lossy(&stdout).into_owned(), stderr }
    }

    /// Its live children.
    fn workers(&self) -> Vec<Pid> {
        let stat = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?);
            (state != "Z" && parent == self.process.pid().to_string()).then(|| Pid::from_raw(pid))?
        };
        fs::read_dir("/proc").expect("/proc").filter_map(stat).collect()
    }

    /// Waits for `what`.
    fn until<T>(&self, what: impl Fn(&Self) -> Option<T>) -> T {
        loop {
            if let Some(it) = what(self) {
                return it;
            }
            thread::sleep(Duration::from_millis(1)); // the watchdog ends this
        }
    }
}

fn assert_counts_as_wc(path: &Path, options: &[&str]) {
    let run = Run::start(options.iter().map(OsStr::new).chain([path.as_os_str()]));
    let ended = run.end();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(totals(&ended.stdout), wc(path), "{options:?}");
}

/// Bytes that repeat nowhere soon (xorshift), drawn from `alphabet`.
fn noise(seed: u64, len: usize, alphabet: &[u8]) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        alphabet[usize::try_from(state >> 33).expect("31 bits") % alphabet.len()]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Whether the `wc` at hand wants a printable byte in a word, as the example does. Not all do.
fn wc_ignores_unprintable_words() -> bool {
    let dir = Dir::new("probe");
    dir.write("one", b"\x01 \xff");
    wc(&dir) == [0, 0, 3]
}

/// Files that are hard to count, for one reason each.
fn hard_files(tag: &str) -> Dir {
    let dir = Dir::new(tag);
    dir.write("empty", "");
    dir.write("one byte", "x");
    dir.write("space only", " \t\n\x0b\x0c\r ");
    dir.write("no newline at the end", "two words");
    dir.write("neighbour", "starts where the other ended");
    dir.write("all separators", "a b\tc\nd\x0be\x0cf\rg");
    dir.write("nul inside", b"a\0b \0c d\0 e");
    dir.write("crlf", "one\r\ntwo\r\n\r\nthree");
    dir.write("one long word", vec![b'w'; 3 << 20]);
    dir.write("one long blank", vec![b' '; 3 << 20]);
    // Every way a word can lie across the end of a piece, at each piece size.
    for size in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        for shift in [-1, 0, 1] {
            let border = usize::try_from(size + shift).expect("positive");
            for (i, (left, right)) in [("ab", "cd"), ("a ", "b"), ("a", " b"), ("\n", "\n")].into_iter().enumerate() {
                let mut contents = noise(7, border - left.len(), b"lorem ipsum\n");
                contents.extend(left.bytes().chain(right.bytes()));
                contents.resize(contents.len() + 5000, b'z');
                dir.write(format!("border {border} {i}"), contents);
            }
        }
    }
    for seed in 0..20 {
        let len = usize::try_from(seed * seed * 777).expect("small");
        dir.write(format!("text {seed}"), noise(seed, len, b"the quick brown fox\t\n\r\x0b\x0c"));
    }
    fs::create_dir_all(dir.join("many/small")).expect("directories");
    for i in 0..500 {
        dir.write(format!("many/small/{i}"), format!("file {i}\n").repeat(i % 7));
    }
    if wc_ignores_unprintable_words() {
        let every: Vec<u8> = (0..=255).collect();
        dir.write("every byte", &every);
        dir.write("binary", noise(1, 2_500_000, &every));
        dir.write("unprintable", noise(2, 1_500_000, b"\0\x01\x1b\x7f\x80\xc3\xa4\xff \n"));
        dir.write("hardly printable", noise(3, 1_500_000, &[&[0; 200], &b" a"[..]].concat()));
    } else {
        eprintln!("this wc has another idea of binary words: not compared");
    }
    dir
}

#[test]
fn totals_are_those_of_wc() {
    let _watchdog = watchdog();
    let dir = hard_files("hard");
    assert_counts_as_wc(&dir, &[]);
    assert_counts_as_wc(&dir, &["--workers", "1"]);
    assert_counts_as_wc(&dir, &["--workers", "5"]);
}

#[test]
fn a_heap_far_smaller_than_the_traffic_is_enough() {
    let _watchdog = watchdog();
    let dir = hard_files("tight");
    assert_counts_as_wc(&dir, &["--workers", "3", "--buffer", "1"]);
}

#[test]
fn totals_are_those_of_wc_on_this_repository() {
    let _watchdog = watchdog();
    assert_counts_as_wc(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[]);
}

#[test]
fn what_is_no_file_is_left_out_and_said() {
    let _watchdog = watchdog();
    let dir = Dir::new("special");
    dir.write("plain", "one two\n");
    symlink(&*dir, dir.join("loop")).expect("a link");
    symlink("nowhere", dir.join("dangling")).expect("a link");
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().expect("mkfifo").success());
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket"));

    let ended = Run::start([&*dir]).end();
    assert_eq!((ended.code, totals(&ended.stdout)), (Some(0), [1, 2, 8]), "{}", ended.stderr);
    assert!(ended.stderr.contains("left out"), "{}", ended.stderr);

    // Named, a link is followed; anything else that can't be counted is an error, and the rest is counted.
    symlink("plain", dir.join("link")).expect("a link");
    let named = ["plain", "link", "fifo", "dangling", "missing"].map(|name| dir.join(name));
    let ended = Run::start(&named).end();
    assert_eq!((ended.code, totals(&ended.stdout)), (Some(1), [2, 4, 16]), "{}", ended.stderr);
    for name in ["fifo", "dangling", "missing"] {
        assert!(ended.stderr.contains(name), "nothing about {name}: {}", ended.stderr);
    }
}

#[test]
fn what_may_not_be_read_is_said() {
    let _watchdog = watchdog();
    let dir = Dir::new("denied");
    dir.write("plain", "one two\n");
    dir.write("denied", "three\n");
    fs::set_permissions(dir.join("denied"), fs::Permissions::from_mode(0o000)).expect("chmod");
    if File::open(dir.join("denied")).is_ok() {
        // A superuser may read everything, but even then not from here.
        fs::remove_file(dir.join("denied")).expect("remove");
        let ended = Run::start([Path::new("/proc/self/mem"), &dir]).end();
        assert_eq!((ended.code, totals(&ended.stdout)), (Some(1), [1, 2, 8]), "{}", ended.stderr);
        return;
    }
    let ended = Run::start([&*dir]).end();
    assert_eq!((ended.code, totals(&ended.stdout)), (Some(1), [1, 2, 8]), "{}", ended.stderr);
    assert!(ended.stderr.contains("denied"), "{}", ended.stderr);
}

#[test]
fn files_may_come_go_grow_and_shrink() {
    let _watchdog = watchdog();
    let dir = Dir::new("moving");
    dir.write("still", vec![b'x'; 3 << 20]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_usize.. {
                dir.write("shrinking", vec![b'\n'; 2 << 20]);
                dir.write("vanishing", "for a moment");
                let mut growing = File::options().append(true).create(true).open(dir.join("growing")).expect("a file");
                growing.write_all(&[b' '; 5000]).expect("write");
                File::create(dir.join("shrinking")).and_then(|file| file.set_len(round as u64 % 9999)).expect("shrink");
                fs::remove_file(dir.join("vanishing")).expect("remove");
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let ended: Vec<_> = (0..8).map(|_| Run::start([&*dir]).end()).collect();
        done.store(true, Ordering::Relaxed);
        for ended in ended {
            assert!(matches!(ended.code, Some(0 | 1)), "{:?}: {}", ended.code, ended.stderr);
            assert!(totals(&ended.stdout)[2] >= 3 << 20, "{}", ended.stdout);
        }
    });
}

/// A file that takes long to count, and no room.
fn endless(tag: &str) -> Dir {
    let dir = Dir::new(tag);
    File::create(dir.join("endless")).and_then(|file| file.set_len(8 << 30)).expect("a sparse file");
    dir
}

#[test]
fn a_killed_worker_is_an_error() {
    let _watchdog = watchdog();
    let dir = endless("worker");
    for at_once in [true, false] {
        let run = Run::start([OsStr::new("--workers"), OsStr::new("2"), dir.as_os_str()]);
        let workers = run.until(|run| Some(run.workers()).filter(|workers| workers.len() == 2));
        if !at_once {
            // All have attached, and there is work.
            run.until(|run| (!run.name.exists()).then_some(()));
            thread::sleep(Duration::from_millis(20));
        }
        kill_process(workers[1], Signal::KILL).expect("kill");
        let ended = run.end();
        assert_eq!((ended.code, &*ended.stdout), (Some(2), ""), "{}", ended.stderr);
        assert!(ended.stderr.contains("SIGKILL"), "{}", ended.stderr);
    }
}

#[test]
fn workers_of_a_killed_parent_leave() {
    let _watchdog = watchdog();
    let dir = endless("parent");
    for at_once in [true, false] {
        let mut run = Run::start([OsStr::new("--workers"), OsStr::new("2"), dir.as_os_str()]);
        run.until(|run| (run.workers().len() == 2).then_some(()));
        if !at_once {
            run.until(|run| (!run.name.exists()).then_some(()));
        }
        run.process.kill();
        run.end(); // which waits for the workers, too
    }
}

//! `LC_ALL=C wc` over whole trees, counted by worker processes.
//!
//! ```text
//! cargo run --release --example wordcount -- [--workers N] [--buffer MIB] [PATH ...]
//! ```
//!
//! The parent reads files straight into records of 4 KiB to 1 MiB and hands each to the worker with the least to do;
//! nothing is copied on the way. A worker answers with what it counted, and whether its piece begins and ends inside a
//! word, so that the pieces of one file can go to any worker. Nobody waits for what can't come:
//!
//! - The parent waits only for the oldest answer it lacks: when all channels are full, or the heap is.
//! - A worker goes on counting, and so freeing, when there is no memory for an answer; the answer follows later.
//! - Who is killed is noticed by whoever waits for it.
//!
//! As in the `wc` of coreutils 9.1, a word is a run of bytes that are not white space, at least one of them printable.
//! A file that grows while it is read is not chased. Ends with 0, with 1 if something could not be read, or with 2 if
//! the counting itself failed.

use bytemuck::{Pod, Zeroable};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use ipc_buffer::{
    AllocError, Buffer, Channel, ChannelOptions, Consumer, Layout, Producer, Record, RecordUninit, RecvError,
    RecvTimeoutError, ThreadContext, TryRecvError,
};
use std::collections::VecDeque;
use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::io::{self, Read};
use std::os::unix::{fs::OpenOptionsExt, process::CommandExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fmt, thread};
use walkdir::WalkDir;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// Bytes of the records that files are read into, in turn.
const SIZES: [usize; 5] = [4 << 10, 1 << 20, 16 << 10, 256 << 10, 64 << 10];
/// Pieces a worker may have. Both its channels have room for as many, so that nobody ever waits in a `send`.
const SLOTS: usize = 256;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let result = match args.next().filter(|first| first == "--worker") {
        Some(_) => work(&args.map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>()),
        None => Options::parse().and_then(|options| count(&options)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("wordcount: {error}");
        ExitCode::from(2)
    })
}

struct Options {
    workers: u32,
    buffer_mib: u32,
    paths: Vec<PathBuf>,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut workers = thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let (mut buffer_mib, mut paths) = (None, Vec::new());
        let mut args = env::args_os().skip(1);
        while let Some(arg) = args.next() {
            let mut number = || args.next().and_then(|n| n.to_str()?.parse().ok()).filter(|n| *n > 0);
            match arg.to_str() {
                Some("--workers") => {
                    // A buffer has 512 process slots, and one is the parent's.
                    workers = number().filter(|n| *n < 512).ok_or("--workers takes a number from 1 to 511")?;
                }
                Some("--buffer") => buffer_mib = Some(number().ok_or("--buffer takes a number of MiB")?),
                Some("--") => paths.extend(args.by_ref().map(PathBuf::from)),
                Some(option) if option.starts_with('-') => {
                    return Err("usage: wordcount [--workers N] [--buffer MIB] [--] [PATH ...]".into());
                }
                _ => paths.push(arg.into()),
            }
        }
        if paths.is_empty() {
            paths.push(".".into());
        }
        Ok(Self { workers, buffer_mib: buffer_mib.unwrap_or(workers.saturating_mul(8).max(64)), paths })
    }
}

/// What a piece holds. The tallies of two neighbours join into the tally of both.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable, Layout)]
struct Tally {
    lines: u64,
    words: u64,
    bytes: u64,
    /// 1 if the bytes before the first white space make a word, else 0.
    starts_in_word: u64,
    /// 1 if the bytes behind the last white space make a word, else 0.
    ends_in_word: u64,
    /// 1 if there is white space, else 0.
    has_space: u64,
    /// Time it took to count.
    busy_ns: u64,
}

impl Tally {
    /// Between two files: nothing, but no word reaches across it.
    const BREAK: Self =
        Self { lines: 0, words: 0, bytes: 0, starts_in_word: 0, ends_in_word: 0, has_space: 1, busy_ns: 0 };

    fn of(piece: &[u8]) -> Self {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
        let is_word = |run: &[u8]| run.iter().any(u8::is_ascii_graphic);
        let start = Instant::now();
        let tally = Self {
            lines: piece.iter().filter(|byte| **byte == b'\n').count() as u64,
            words: piece.split(is_space).filter(|run| is_word(run)).count() as u64,
            bytes: piece.len() as u64,
            starts_in_word: piece.split(is_space).next().is_some_and(is_word).into(),
            ends_in_word: piece.rsplit(is_space).next().is_some_and(is_word).into(),
            has_space: piece.iter().any(is_space).into(),
            busy_ns: 0,
        };
        Self { busy_ns: u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX), ..tally }
    }

    fn join(self, next: Self) -> Self {
        Self {
            lines: self.lines + next.lines,
            words: self.words + next.words - (self.ends_in_word & next.starts_in_word),
            bytes: self.bytes + next.bytes,
            starts_in_word: self.starts_in_word | (next.starts_in_word & !self.has_space),
            ends_in_word: next.ends_in_word | (self.ends_in_word & !next.has_space),
            has_space: self.has_space | next.has_space,
            busy_ns: self.busy_ns + next.busy_ns,
        }
    }
}

/// The channels of worker `number`: its pieces, its tallies.
fn channels(number: u32) -> (i64, i64) {
    let first = 2 * i64::from(number);
    (first, first + 1)
}

/// A worker's life: counts pieces until the parent leaves.
fn work(args: &[String]) -> Outcome<ExitCode> {
    let [name, number] = args else { return Err("--worker is not for you".into()) };
    let ctx = Buffer::options().must_exist(true).open(name)?.context()?;
    let (pieces, tallies) = channels(number.parse()?);
    let mut pieces = ctx.consumer::<[u8]>(pieces)?;
    let mut tallies = ctx.producer::<[Tally]>(tallies)?;
    if !pieces.has_producer() {
        // It left before we came: the channel is one that we have just made, and nobody will come.
        return Err("there is no parent to count for".into());
    }
    let mut owed = Vec::new();
    loop {
        let patience = if owed.is_empty() { Duration::MAX } else { Duration::from_millis(1) };
        let next = pieces.try_recv().or_else(|_| {
            ctx.flush(); // others may need what an idle worker caches
            pieces.recv_timeout(patience)
        });
        match next {
            Ok(piece) => owed.push(Tally::of(&piece)), // and the piece is free
            Err(RecvTimeoutError::Timeout(_)) => {}
            Err(RecvTimeoutError::Recv(RecvError::Disconnected)) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error.into()),
        }
        match ctx.slice_from(&owed) {
            Ok(answer) => {
                tallies.send(answer).map_err(ipc_buffer::Error::from)?;
                owed.clear();
            }
            Err(AllocError::OutOfMemory { .. }) => {} // counting on makes room
            Err(error) => return Err(error.into()),
        }
    }
}

/// A process that does not outlive this handle.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The parent's side of a worker.
struct Worker {
    number: u32,
    process: Process,
    pieces: Channel<[u8], Producer>,
    tallies: Channel<[Tally], Consumer>,
    /// Numbers of the pieces it has, in the order of its answers: oldest first.
    queue: VecDeque<u64>,
    queued_bytes: u64,
    answered: usize,
    done: Tally,
}

impl Worker {
    fn start(buffer: &Buffer, ctx: &ThreadContext, number: u32) -> Outcome<Self> {
        let (pieces, tallies) = channels(number);
        let slots = ChannelOptions::new().capacity(SLOTS);
        let (pieces, tallies) = (ctx.producer_with(pieces, &slots)?, ctx.consumer_with(tallies, &slots)?);
        let process = Command::new(env::current_exe()?)
            .args(["--worker", buffer.name(), &number.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0) // Ctrl-C is for the parent; its workers see it leave
            .spawn()?;
        let (process, queue) = (Process(process), VecDeque::new());
        Ok(Self { number, process, pieces, tallies, queue, queued_bytes: 0, answered: 0, done: Tally::default() })
    }

    /// Waits until it has attached to both channels.
    fn wait_for_start(&mut self) -> Outcome {
        while self.tallies.wait_for_producer(Duration::from_millis(100)).is_err() {
            if self.process.0.try_wait()?.is_some() {
                return Err(self.failed());
            }
        }
        Ok(())
    }

    /// Lets it go, as there are no more pieces; says what it has done.
    fn finish(mut self) -> Outcome<String> {
        drop(self.pieces);
        let status = self.process.0.wait()?;
        if !status.success() {
            return Err(format!("worker {} ended with {status}", self.number).into());
        }
        let Tally { bytes, busy_ns, .. } = self.done;
        let per_second = u128::from(bytes) * 1_000_000_000 / u128::from(busy_ns.max(1));
        let per_second = HumanBytes(u64::try_from(per_second)?);
        Ok(format!("worker {}: {} in {} pieces, {per_second}/s", self.number, HumanBytes(bytes), self.answered))
    }

    /// The error that it has left before its work was done.
    fn failed(&mut self) -> Box<dyn Error> {
        let (number, id, lost) = (self.number, self.process.0.id(), self.queue.len());
        let status = self.process.0.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        format!("worker {number} (process {id}) has left with {lost} pieces: {status}").into()
    }
}

/// The parent's view of all work.
struct Crew {
    workers: Vec<Worker>,
    ctx: ThreadContext,
    /// What is not yet in `total`, in the order of the files: tallies, and the places of those to come.
    window: VecDeque<Option<Tally>>,
    /// Number of the first place in the window.
    first: u64,
    total: Tally,
    turn: usize,
    progress: ProgressBar,
    unreadable: usize,
}

impl Crew {
    fn start(buffer: &Buffer, workers: u32, progress: ProgressBar) -> Outcome<Self> {
        let ctx = buffer.context()?;
        let mut workers: Vec<_> =
            (0..workers).map(|number| Worker::start(buffer, &ctx, number)).collect::<Outcome<_>>()?;
        workers.iter_mut().try_for_each(Worker::wait_for_start)?;
        let (window, total) = (VecDeque::new(), Tally::default());
        Ok(Self { workers, ctx, window, first: 0, total, turn: 0, progress, unreadable: 0 })
    }

    /// Counts one file. What the system refuses is said, and is not an error.
    fn count(&mut self, path: &Path) -> Outcome {
        let read = match open(path) {
            Ok(file) => self.read(file)?,
            Err(error) => Err(error),
        };
        self.window.push_back(Some(Tally::BREAK));
        self.fold();
        match read {
            Ok(None) => {}
            Ok(Some(bytes)) => self.say(path, &format_args!("changed while it was read; counted {bytes} bytes")),
            Err(error) => {
                self.unreadable += 1;
                self.say(path, &error);
            }
        }
        Ok(())
    }

    /// Hands out a file, as long as it is now; says how much that was if the file has another length afterwards.
    fn read(&mut self, mut file: File) -> Outcome<io::Result<Option<u64>>> {
        let len = |file: &File| file.metadata().map_or(0, |facts| facts.len());
        // Files of /proc and the like say 0, and end somewhere.
        let end = Some(len(&file)).filter(|len| *len > 0).unwrap_or(u64::MAX);
        let mut at = 0;
        while at < end {
            let mut piece = self.room(end - at)?;
            match file.read(piece.as_mut()) {
                Ok(0) => break,
                Ok(bytes) => {
                    let mut piece = piece.assume_init();
                    piece.truncate(bytes);
                    self.hand_out(piece)?;
                    at += bytes as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        let now = len(&file);
        Ok(Ok(Some(at).filter(|at| now != *at && (now > 0 || end < u64::MAX))))
    }

    /// A record for some of the `left` bytes of a file; waits for answers while the heap is full.
    fn room(&mut self, left: u64) -> Outcome<RecordUninit<[u8]>> {
        self.turn = (self.turn + 1) % SIZES.len();
        let mut len = usize::try_from(left).unwrap_or(usize::MAX).clamp(SIZES[0], SIZES[self.turn]);
        loop {
            match self.ctx.slice_uninit(len) {
                Err(AllocError::OutOfMemory { .. }) if self.wait()? => {}
                Err(AllocError::OutOfMemory { .. }) if len > SIZES[0] => {
                    // All is answered, and what is left lies in pieces, or in caches about to be given back.
                    thread::sleep(Duration::from_millis(1));
                    len = SIZES[0].max(len / 2);
                }
                result => return Ok(result?),
            }
        }
    }

    /// Gives the piece to the worker with the least to do; waits for answers while that has all it can take.
    fn hand_out(&mut self, piece: Record<[u8]>) -> Outcome {
        self.collect()?;
        loop {
            let Some(worker) = self.workers.iter_mut().min_by_key(|worker| (worker.queued_bytes, worker.done.bytes))
            else {
                return Ok(());
            };
            if worker.queue.len() < SLOTS {
                worker.queue.push_back(self.first + self.window.len() as u64);
                worker.queued_bytes += piece.len() as u64;
                self.window.push_back(None);
                return worker.pieces.send(piece).map_err(|_| worker.failed());
            }
            self.wait()?;
        }
    }

    /// Waits for the answer to the oldest piece that has none; false if all have.
    fn wait(&mut self) -> Outcome<bool> {
        let Some(oldest) = self.workers.iter().position(|worker| worker.queue.front() == Some(&self.first)) else {
            return Ok(false);
        };
        let worker = &mut self.workers[oldest];
        let answer = worker.tallies.recv().map_err(|_| worker.failed())?;
        self.take(oldest, &answer)?;
        self.collect()?;
        Ok(true)
    }

    /// Takes the answers that are there.
    fn collect(&mut self) -> Outcome {
        for index in 0..self.workers.len() {
            loop {
                match self.workers[index].tallies.try_recv() {
                    Ok(answer) => self.take(index, &answer)?,
                    Err(TryRecvError::Empty) => break,
                    Err(_) => return Err(self.workers[index].failed()),
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, index: usize, answer: &[Tally]) -> Outcome {
        let worker = &mut self.workers[index];
        for tally in answer {
            let number = worker.queue.pop_front().ok_or("a worker answers what it was not asked")?;
            worker.queued_bytes -= tally.bytes;
            worker.answered += 1;
            worker.done = worker.done.join(*tally);
            self.window[usize::try_from(number - self.first)?] = Some(*tally);
            self.progress.inc(tally.bytes);
        }
        self.fold();
        Ok(())
    }

    fn fold(&mut self) {
        while let Some(Some(tally)) = self.window.front() {
            self.total = self.total.join(*tally);
            self.window.pop_front();
            self.first += 1;
        }
    }

    fn say(&self, path: &Path, what: &dyn fmt::Display) {
        self.progress.suspend(|| say(path, what));
    }

    /// Waits for everything, and lets the workers go; gives the total, and a line about each worker.
    fn finish(mut self) -> Outcome<(Tally, Vec<String>)> {
        while self.wait()? {}
        self.progress.finish_and_clear();
        let lines = self.workers.into_iter().map(Worker::finish).collect::<Outcome<_>>()?;
        Ok((self.total, lines))
    }
}

fn say(path: &Path, what: &dyn fmt::Display) {
    eprintln!("wordcount: {}: {what}", path.display());
}

/// Opens what was a regular file a moment ago, and is waited for in no case.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("is no regular file any more")) }
}

/// What there is to count.
#[derive(Default)]
struct Found {
    files: Vec<PathBuf>,
    bytes: u64,
    /// Symbolic links, pipes, devices, sockets.
    left_out: usize,
    unreadable: usize,
}

impl Found {
    /// The regular files below `path`. A symbolic link is followed if it is `path` itself.
    fn below(&mut self, path: &Path) {
        for entry in WalkDir::new(path) {
            let facts = entry.and_then(|entry| {
                let facts = if entry.depth() == 0 { fs::metadata(entry.path()) } else { Ok(entry.metadata()?) };
                Ok((entry, facts))
            });
            match facts {
                Ok((_, Ok(facts))) if facts.is_dir() => {}
                Ok((entry, Ok(facts))) if facts.is_file() => {
                    self.bytes += facts.len();
                    self.files.push(entry.into_path());
                }
                Ok((entry, Ok(_))) if entry.depth() > 0 => self.left_out += 1,
                Ok((entry, Ok(_))) => {
                    self.unreadable += 1;
                    say(entry.path(), &"is no regular file");
                }
                Ok((entry, Err(error))) => {
                    self.unreadable += 1;
                    say(entry.path(), &error);
                }
                Err(error) => {
                    self.unreadable += 1;
                    eprintln!("wordcount: {error}");
                }
            }
        }
    }
}

/// The parent's life.
fn count(options: &Options) -> Outcome<ExitCode> {
    let mut found = Found::default();
    options.paths.iter().for_each(|path| found.below(path));
    if found.left_out > 0 {
        eprintln!("wordcount: left out {} symbolic links and special files", found.left_out);
    }
    // Shown if standard error is a terminal.
    let progress = ProgressBar::new(found.bytes)
        .with_style(ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} to go")?);
    let name = format!("wordcount-{}", std::process::id());
    let buffer = Buffer::options().capacity(u64::from(options.buffer_mib) << 20).create_new(true).open(&name)?;
    let mut crew = Crew::start(&buffer, options.workers, progress)?;
    // Everybody is in: without its name, the segment goes with the last of us even if all are killed at once.
    Buffer::unlink(&name)?;
    for file in &found.files {
        crew.count(file)?;
    }
    let unreadable = found.unreadable + crew.unreadable;
    let (total, workers) = crew.finish()?;
    writeln!(std::io::stdout(), "{:>8} {:>8} {:>8} total", total.lines, total.words, total.bytes)?;
    workers.iter().for_each(|line| eprintln!("{line}"));
    Ok(ExitCode::from(u8::from(unreadable > 0)))
}

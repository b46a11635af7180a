//! How long others pause while a dead process is reaped.
//!
//! ```text
//! cargo run --release --example reap_pause -- [--mib N] [--load NAME] [--only NAME]
//! ```
//!
//! A victim fills a buffer with 64-byte blocks and is killed; a reaper on a core of its own gives them back, and meanwhile an
//! observer on another core does one thing again and again, and notes how long each took. For each thing there are three
//! numbers: the longest while nothing happens, which is what the machine does to anybody; the longest while a neighbour on the
//! reaper's core reads as much memory; and the longest while the reaper is at work. `clock` reads the clock and nothing else: what
//! it says is not the library's doing. Last, how soon the victim's own peer hears of its death: the system takes its time to take
//! down the memory of a process, and until then it is alive.

mod roles;

use ipc_buffer::Buffer;
use std::error::Error;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, thread};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// What the victim has when it is killed.
const LOADS: &[(&str, &str)] = &[
    ("held", "records in its hands"),
    ("queued", "records sent, in one channel whose consumer lives"),
    ("deserted", "records sent, in one channel that nobody else is in"),
    ("channels", "records sent, in 8,000 channels that nobody else is in"),
];

/// What the observer does.
const THINGS: &[(&str, &str)] = &[
    ("clock", "reads the clock"),
    ("stream", "receives records that another process allocates and sends, and frees them"),
    ("echo", "sends a fresh record, and waits for a fresh answer"),
    ("alloc", "allocates a record, and frees one of 500"),
    ("attach", "makes a channel and leaves it"),
    ("ask", "asks for a channel that is not there"),
    ("open", "opens the buffer and closes it"),
];

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((first, rest)) if first == "--role" => roles::play(rest),
        _ => direct(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reap_pause: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A process of ours, at the other end of two pipes; killed when dropped.
struct Actor {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Actor {
    /// Starts a role, and waits until it is ready.
    fn start(role: &str, name: &str, core: usize, more: &[&str]) -> Outcome<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["--role", role, name, &core.to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let to = child.stdin.take().ok_or("no pipe")?;
        let from = BufReader::new(child.stdout.take().ok_or("no pipe")?).lines();
        let mut this = Self { child, to, from };
        match this.hear()?.as_str() {
            "ready" => Ok(this),
            other => Err(format!("{role}: {other}").into()),
        }
    }

    fn hear(&mut self) -> Outcome<String> {
        Ok(self.from.next().ok_or("an actor has left")??)
    }

    fn ask(&mut self, line: &str) -> Outcome<Vec<u64>> {
        writeln!(self.to, "{line}")?;
        self.hear()?.split(' ').map(|number| Ok(number.parse()?)).collect()
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Unlink(String);

impl Drop for Unlink {
    fn drop(&mut self) {
        let _ = Buffer::unlink(&self.0);
    }
}

/// From one moment to another, in nanoseconds of the monotonic clock.
#[derive(Clone, Copy)]
struct Window(u64, u64);

fn direct(args: &[String]) -> Outcome {
    let (mut mib, mut load, mut only) = (1024, None, None);
    for pair in args.chunks(2) {
        match pair {
            [flag, value] if flag == "--mib" => mib = value.parse::<u64>()?.max(8),
            [flag, value] if flag == "--load" => load = Some(value.clone()),
            [flag, value] if flag == "--only" => only = Some(value.clone()),
            _ => return Err("usage: reap_pause [--mib N] [--load NAME] [--only NAME]".into()),
        }
    }
    let wanted = |chosen: &Option<String>, name: &str| chosen.as_ref().is_none_or(|chosen| chosen == name);
    let cores = thread::available_parallelism()?.get();
    println!("a buffer of {mib} MiB, {cores} cores; longest pauses in us, and in brackets how many were over 1 ms");
    let loads: Vec<_> = LOADS.iter().filter(|(name, _)| wanted(&load, name)).collect();
    let things: Vec<_> = THINGS.iter().filter(|(name, _)| wanted(&only, name)).collect();
    for (load, what) in loads.iter().filter(|_| !things.is_empty()) {
        println!("\n{load}: {what}");
        println!("{:8} {:>16} {:>16} {:>16}   reaping", "", "nothing happens", "busy neighbour", "reaping");
        for (thing, _) in &things {
            observe(mib, load, thing, cores)?;
        }
    }
    if wanted(&only, "peer") {
        println!(
            "\npeer: when the blocked peer heard of it, in ms after the kill, and after the system was done with the victim"
        );
        for (load, _) in loads {
            let times: Result<Vec<String>, _> = (0..5).map(|_| lose(mib, load, cores)).collect();
            println!("{load:8} {}", times?.join(" "));
        }
    }
    Ok(())
}

fn observe(mib: u64, load: &str, thing: &str, cores: usize) -> Outcome {
    let name = format!("reap-pause-{}", std::process::id());
    let _unlink = Unlink(name.clone());
    let buffer = Buffer::options().capacity(mib << 20).open(&name)?;
    let ctx = buffer.context()?;
    let reapers_core = cores - 1;
    let (here, there) = if cores > 3 { (0, 1) } else { (0, 0) };
    let mut reaper = Actor::start("reaper", &name, reapers_core, &[])?;
    let mut neighbour = Actor::start("neighbour", &name, reapers_core, &[&mib.to_string()])?;
    let mut victim = Actor::start("victim", &name, reapers_core, &[load])?;
    let _heir = (load == "queued").then(|| ctx.consumer::<[u8; 40]>(roles::LOADED)).transpose()?;
    let partner = match thing {
        "stream" => Some(Actor::start("sender", &name, there, &[])?),
        "echo" => Some(Actor::start("echo", &name, there, &[])?),
        _ => None,
    };
    let mut observer = Actor::start("observer", &name, here, &[thing])?;

    thread::sleep(Duration::from_millis(100));
    let start = roles::now_ns();
    thread::sleep(Duration::from_millis(500));
    let idle = Window(start, roles::now_ns());
    let [start, end, ..] = neighbour.ask("go")?[..] else { return Err("the neighbour said too little".into()) };
    let busy = Window(start, end);
    thread::sleep(Duration::from_millis(20));
    victim.kill();
    let [start, end, records] = reaper.ask("go")?[..] else { return Err("the reaper said too little".into()) };
    let reaping = Window(start, end);
    let windows = [idle, busy, reaping].map(|Window(start, end)| format!("{start} {end}")).join(" ");
    let pauses = observer.ask(&windows)?;
    print!("{thing:8}");
    for pause in pauses.chunks(3) {
        print!(" {:>11} [{:2}]", pause[0] / 1000, pause[1]);
    }
    println!("   {} ms, {records} records, {} times meanwhile", (end - start) / 1_000_000, pauses[8]);
    drop((partner, observer, ctx));
    Ok(())
}

/// How long the victim's peer waits for it.
fn lose(mib: u64, load: &str, cores: usize) -> Outcome<String> {
    let name = format!("reap-pause-{}", std::process::id());
    let _unlink = Unlink(name.clone());
    let buffer = Buffer::options().capacity(mib << 20).open(&name)?;
    let ctx = buffer.context()?;
    let mut victim = Actor::start("victim", &name, cores - 1, &[load])?;
    let _heir = (load == "queued").then(|| ctx.consumer::<[u8; 40]>(roles::LOADED)).transpose()?;
    let mut peer = Actor::start("peer", &name, 0, &[])?;
    thread::sleep(Duration::from_millis(50));
    let killed = roles::now_ns();
    victim.kill();
    let gone = roles::now_ns();
    let heard = peer.hear()?.parse::<u64>()?;
    drop(ctx);
    let ms = |from: u64| heard.saturating_sub(from) / 1_000_000;
    Ok(format!("{}/{}", ms(killed), ms(gone)))
}

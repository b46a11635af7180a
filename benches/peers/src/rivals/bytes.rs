//! The kernel's own ways between processes: a pair of Unix sockets, and pipes. Bytes are copied in and out; each side keeps its
//! messages in a buffer of its own, so nothing is allocated.

use crate::links::{Link, Rx, Tx};
use crate::side::{self, Far};
use crate::words;
use bytemuck::{cast_slice, cast_slice_mut};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::fs::File;
use std::hint::spin_loop;
use std::io::{Error, ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Stream sockets; `SLEEPS` says how to wait: in the kernel, or as the others do.
pub struct Socket<const W: usize, const SLEEPS: bool>;

/// A pipe each way, as large as anybody may make them; `SLEEPS` as above.
pub struct Pipe<const W: usize, const SLEEPS: bool>;

pub struct ByteTx<F> {
    to: F,
    message: Box<[MaybeUninit<u64>]>,
}

pub struct ByteRx<F> {
    from: F,
    message: Box<[u64]>,
}

impl<F> ByteTx<F> {
    fn new<const W: usize>(to: F) -> Self {
        Self { to, message: Box::new_uninit_slice(W) }
    }
}

impl<F> ByteRx<F> {
    fn new<const W: usize>(from: F) -> Self {
        Self { from, message: vec![0; W].into() }
    }
}

impl<F: Write + 'static> Tx for ByteTx<F> {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        let mut left: &[u8] = cast_slice(words::fill(&mut self.message, value));
        while !left.is_empty() {
            match self.to.write(left) {
                Ok(written) => left = &left[written..],
                Err(error) => wait(error),
            }
        }
    }
}

impl<F: Read + 'static> Rx for ByteRx<F> {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        let mut left: &mut [u8] = cast_slice_mut(&mut self.message);
        while !left.is_empty() {
            match self.from.read(left) {
                Ok(0) => panic!("the other side has left"),
                Ok(read) => left = &mut left[read..],
                Err(error) => wait(error),
            }
        }
        words::read(&self.message)
    }
}

fn wait(error: Error) {
    match error.kind() {
        ErrorKind::WouldBlock => spin_loop(),
        ErrorKind::Interrupted => (),
        _ => panic!("{error}"),
    }
}

impl<const W: usize, const SLEEPS: bool> Link for Socket<W, SLEEPS> {
    const NAME: &'static str = "socket pair";
    type Tx = ByteTx<UnixStream>;
    type Rx = ByteRx<UnixStream>;

    fn near(name: &str, start: impl FnOnce(&str) -> Far) -> (Far, Self::Tx, Self::Rx) {
        // An abstract address: it leaves nothing behind.
        let address = SocketAddr::from_abstract_name(name).expect("an address");
        let listener = UnixListener::bind_addr(&address).expect("bind");
        let far = start(name);
        let (rx, tx) = ends::<W, SLEEPS>(listener.accept().expect("accept").0);
        (far, tx, rx)
    }

    fn far(key: &str) -> (Self::Rx, Self::Tx) {
        let address = SocketAddr::from_abstract_name(key).expect("an address");
        ends::<W, SLEEPS>(UnixStream::connect_addr(&address).expect("connect"))
    }
}

fn ends<const W: usize, const SLEEPS: bool>(socket: UnixStream) -> (ByteRx<UnixStream>, ByteTx<UnixStream>) {
    socket.set_nonblocking(!SLEEPS).expect("set_nonblocking");
    let other = socket.try_clone().expect("a second descriptor");
    (ByteRx::new::<W>(socket), ByteTx::new::<W>(other))
}

impl<const W: usize, const SLEEPS: bool> Link for Pipe<W, SLEEPS> {
    const NAME: &'static str = "pipe";
    type Tx = ByteTx<File>;
    type Rx = ByteRx<File>;

    fn near(_name: &str, start: impl FnOnce(&str) -> Far) -> (Far, Self::Tx, Self::Rx) {
        let ((far_rx, tx), (rx, far_tx)) = (pipe(SLEEPS), pipe(SLEEPS));
        let far = start(&format!("{} {}", side::key(&far_rx), side::key(&far_tx)));
        (far, ByteTx::new::<W>(tx), ByteRx::new::<W>(rx))
    }

    fn far(key: &str) -> (Self::Rx, Self::Tx) {
        let (rx, tx) = key.split_once(' ').expect("two keys");
        let open = |path, access| {
            let wait = if SLEEPS { OFlags::empty() } else { OFlags::NONBLOCK };
            File::from(rustix::fs::open(path, access | wait | OFlags::CLOEXEC, Mode::empty()).expect("open a pipe"))
        };
        (ByteRx::new::<W>(open(rx, OFlags::RDONLY)), ByteTx::new::<W>(open(tx, OFlags::WRONLY)))
    }
}

/// Its reading and its writing end.
fn pipe(sleeps: bool) -> (File, File) {
    let wait = if sleeps { PipeFlags::empty() } else { PipeFlags::NONBLOCK };
    let (rx, tx) = pipe_with(wait | PipeFlags::CLOEXEC).expect("a pipe");
    // What anybody may have by default; less is less, but works.
    let _ = fcntl_setpipe_size(&tx, 1 << 20);
    (rx.into(), tx.into())
}

//! ipc-channel: its leanest form, bytes without serialisation, between processes. It waits in the kernel: its way of not waiting
//! costs two more system calls for each look.

use crate::links::{Link, Rx, Tx};
use crate::side::Far;
use crate::words;
use bytemuck::cast_slice;
use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender, IpcOneShotServer, IpcSender, bytes_channel};
use std::mem::MaybeUninit;

/// Messages of `W` words.
pub struct Bytes<const W: usize>;

pub struct ByteTx {
    to: IpcBytesSender,
    message: Box<[MaybeUninit<u64>]>,
}

pub struct ByteRx {
    from: IpcBytesReceiver,
    words: usize,
}

/// What the far side sends the near one.
type Ends = (IpcBytesSender, IpcBytesReceiver);

impl<const W: usize> Bytes<W> {
    fn ends((to, from): Ends) -> (ByteTx, ByteRx) {
        (ByteTx { to, message: Box::new_uninit_slice(W) }, ByteRx { from, words: W })
    }
}

impl<const W: usize> Link for Bytes<W> {
    const NAME: &'static str = "ipc-channel";
    type Tx = ByteTx;
    type Rx = ByteRx;

    fn near(_name: &str, start: impl FnOnce(&str) -> Far) -> (Far, ByteTx, ByteRx) {
        let (server, key) = IpcOneShotServer::<Ends>::new().expect("a server");
        let far = start(&key);
        let (_, ends) = server.accept().expect("the far side's ends");
        let (tx, rx) = Self::ends(ends);
        (far, tx, rx)
    }

    fn far(key: &str) -> (ByteRx, ByteTx) {
        let (there_tx, there_rx) = bytes_channel().expect("a channel");
        let (back_tx, back_rx) = bytes_channel().expect("a channel");
        let hello = IpcSender::<Ends>::connect(key.to_owned()).expect("connect");
        hello.send((there_tx, back_rx)).expect("send the near side's ends");
        let (tx, rx) = Self::ends((back_tx, there_rx));
        (rx, tx)
    }
}

impl Tx for ByteTx {
    #[inline(always)]
    fn send(&mut self, value: u64) {
        self.to.send(cast_slice(words::fill(&mut self.message, value))).expect("a send");
    }
}

impl Rx for ByteRx {
    #[inline(always)]
    fn recv(&mut self) -> u64 {
        let message = self.from.recv().expect("a message");
        assert_eq!(message.len(), self.words * size_of::<u64>());
        // A vector of bytes is aligned as its allocator likes; all align more than this.
        words::read(cast_slice(&message))
    }
}

//! What a process has sent and received, kept outside of the buffer and of the process, so that a kill leaves it: raised before an
//! operation and after it.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Of one stream of numbers, which count from 0.
#[derive(Default)]
pub struct Counts {
    pub sending: AtomicU64,
    pub sent: AtomicU64,
    pub receiving: AtomicU64,
    pub received: AtomicU64,
}

impl Counts {
    /// Sends the next `count` numbers.
    pub fn send(&self, count: u64, send: impl FnOnce(Range<u64>)) {
        self.try_send(count, |numbers| {
            send(numbers);
            count
        });
    }

    /// Sends some of the next `most` numbers: as many as `send` says.
    pub fn try_send(&self, most: u64, send: impl FnOnce(Range<u64>) -> u64) -> u64 {
        let first = self.sent.load(SeqCst);
        self.sending.store(first + most, SeqCst);
        let sent = send(first..first + most);
        assert!(sent <= most, "{sent} sent of {most}");
        self.sent.store(first + sent, SeqCst);
        self.sending.store(first + sent, SeqCst);
        sent
    }

    /// Receives the next `count` numbers.
    pub fn receive(&self, count: u64, receive: impl FnOnce() -> Vec<u64>) {
        assert_eq!(self.try_receive(count, receive), count);
    }

    /// Receives some of the next `most` numbers.
    pub fn try_receive(&self, most: u64, receive: impl FnOnce() -> Vec<u64>) -> u64 {
        let first = self.received.load(SeqCst);
        self.receiving.store(first + most, SeqCst);
        let numbers = receive();
        let count = numbers.len() as u64;
        assert!(count <= most && numbers.iter().copied().eq(first..first + count), "{first} is next: {numbers:?}");
        self.received.store(first + count, SeqCst);
        self.receiving.store(first + count, SeqCst);
        count
    }

    /// Whether just these were delivered, and no others.
    pub fn check_heard(&self, heard: &[u64]) {
        let count = heard.len() as u64;
        let (sent, sending) = (self.sent.load(SeqCst), self.sending.load(SeqCst));
        assert!((sent..=sending).contains(&count), "{count} delivered of {sent} sent, {sending} begun");
        assert!(heard.iter().copied().eq(0..count), "{heard:?}");
    }

    /// Whether all that was sent was received.
    pub fn check_delivered(&self) {
        let [sent, sending, received] = [&self.sent, &self.sending, &self.received].map(|count| count.load(SeqCst));
        assert!((sent..=sending).contains(&received), "{received} delivered of {sent} sent, {sending} begun");
    }

    /// Whether just these of `asked` are still queued, and no others.
    pub fn check_rest(&self, rest: &[u64], asked: u64) {
        let first = rest.first().copied().unwrap_or(asked);
        let (received, receiving) = (self.received.load(SeqCst), self.receiving.load(SeqCst));
        assert!((received..=receiving).contains(&first), "{first} is next, {received} were received of {receiving}");
        assert!(rest.iter().copied().eq(first..asked), "{rest:?}");
    }
}

//! What the load tests share: random numbers that can be repeated, contents that show damage, endings.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use crate::common::{self, Name};
use ipc_buffer::{AllocError, Buffer, Record, ThreadContext};

/// splitmix64: small, good enough, the same everywhere.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0 .. limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// In `least ..= most`, every doubling as likely as the next.
    pub fn size(&mut self, least: usize, most: usize) -> usize {
        let doublings = u64::from((most / least.max(1)).ilog2()) + 1;
        let base = least.max(1) << self.below(doublings);
        (base + self.below(base as u64) as usize).clamp(least, most)
    }
}

/// Fills a record so that [`check`] sees if anybody else wrote there.
pub fn fill(bytes: &mut [u8], seed: u64) {
    bytes.fill(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7]);
    if bytes.len() >= 16 {
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
    }
}

/// Whether the bytes are what [`fill`] wrote. Two comparisons of whole slices: fast in debug builds too.
pub fn check(bytes: &[u8], seed: u64) {
    let (head, rest) = bytes.split_at(if bytes.len() >= 16 { 8 } else { 0 });
    assert!(head.is_empty() || head == seed.to_le_bytes(), "the record of {seed:#x} was overwritten");
    let fill = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    let Some(first) = rest.first() else { return };
    let same = *first == fill && rest[1..] == rest[..rest.len() - 1];
    assert!(same, "the record of {seed:#x} ({} bytes) was overwritten", bytes.len());
}

/// Words of record `number` of a stream: its number, its length, a sum over the rest.
pub fn numbered(ctx: &ThreadContext, number: u64, most_words: usize) -> Record<[u64]> {
    let words = 3 + (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize % (most_words - 2);
    let mut record = wait_for_memory(|| ctx.slice_uninit::<u64>(words)).assume_init();
    record[0] = number;
    record[1] = words as u64;
    let mut sum = number ^ words as u64;
    for (i, word) in record[3..].iter_mut().enumerate() {
        *word = number.wrapping_mul(i as u64 | 1);
        sum = sum.rotate_left(1) ^ *word;
    }
    record[2] = sum;
    record
}

/// The number of a record that [`numbered`] made, which must be whole.
pub fn number(record: &[u64]) -> u64 {
    assert_eq!(record[1], record.len() as u64, "length of {record:x?}");
    let sum = record[3..].iter().fold(record[0] ^ record[1], |sum, word| sum.rotate_left(1) ^ word);
    assert_eq!(sum, record[2], "checksum of {record:x?}");
    record[0]
}

/// Asks again while memory is short; the watchdog ends it if it stays so.
pub fn wait_for_memory<R>(mut ask: impl FnMut() -> Result<R, AllocError>) -> R {
    loop {
        match ask() {
            Ok(done) => return done,
            Err(AllocError::OutOfMemory { .. }) => std::thread::sleep(std::time::Duration::from_micros(100)),
            Err(other) => panic!("{other}"),
        }
    }
}

/// The end of a scenario: everything is free, and closing the last handle of the last process removes the segment.
pub fn end(buffer: Buffer, name: &Name) {
    common::all_free(&buffer);
    drop(buffer);
    assert!(!name.exists(), "{} is left behind", name.0);
}

//! Records whose bytes say whose they are, so that a second owner shows at the next look.

use ipc_buffer::{AllocError, Record, ThreadContext};

pub type Words = Record<[u64]>;

/// Who has a record, or what stream it is sent through: no two write the same.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Of {
    X = 1,
    Victim,
    Reaper,
    Passer,
    Sent,
}

/// What says that record `number` belongs there.
pub fn seed(of: Of, place: u8, number: u64) -> u64 {
    assert!(number < 1 << 40);
    (of as u64) << 56 | u64::from(place) << 48 | number
}

/// Word `i` of what has this seed.
fn word(seed: u64, i: usize) -> u64 {
    if i == 0 { seed } else { seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64) }
}

pub fn write(words: &mut [u64], seed: u64) {
    words.iter_mut().enumerate().for_each(|(i, it)| *it = word(seed, i));
}

#[track_caller]
pub fn check(words: &[u64], seed: u64) {
    let wrong = words.iter().enumerate().find(|(i, it)| **it != word(seed, *i));
    assert!(wrong.is_none(), "two owners: {seed:#x} of {} words has {:x?}", words.len(), wrong);
}

/// A record of `len` words with what the seed says; none if memory is short.
pub fn make(ctx: &ThreadContext, len: usize, seed: u64) -> Option<Words> {
    match ctx.slice_uninit::<u64>(len) {
        Ok(record) => Some(record.fill_with(|i| word(seed, i))),
        Err(AllocError::OutOfMemory { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Records in the hands of one process.
pub struct Hoard {
    of: Of,
    next: u64,
    held: Vec<(u64, Words)>,
}

impl Hoard {
    pub fn new(of: Of) -> Self {
        Self { of, next: 0, held: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        seed(self.of, 0, self.next)
    }

    /// Makes a record and keeps it; false if memory is short.
    pub fn make(&mut self, ctx: &ThreadContext, len: usize) -> bool {
        let seed = self.next();
        make(ctx, len, seed).map(|record| self.held.push((seed, record))).is_some()
    }

    /// Makes as many, unless memory is short.
    pub fn make_many(&mut self, ctx: &ThreadContext, len: usize, count: usize) {
        (0..count).all(|_| self.make(ctx, len));
    }

    /// Makes them and drops them.
    pub fn churn(&mut self, ctx: &ThreadContext, len: usize, count: usize) {
        let before = self.held.len();
        self.make_many(ctx, len, count);
        self.shrink(before);
    }

    /// Keeps what is another's no more.
    pub fn keep(&mut self, mut record: Words) {
        let seed = self.next();
        write(&mut record, seed);
        self.held.push((seed, record));
    }

    /// Looks at all of them.
    #[track_caller]
    pub fn look(&self) {
        self.held.iter().for_each(|(seed, record)| check(record, *seed));
    }

    /// Drops all but the first so many.
    #[track_caller]
    pub fn shrink(&mut self, count: usize) {
        while self.held.len() > count {
            let (seed, record) = self.held.pop().unwrap();
            check(&record, seed);
        }
    }

    /// Drops every second one.
    #[track_caller]
    pub fn thin(&mut self) {
        self.look();
        let mut number = 0;
        self.held.retain(|_| {
            number += 1;
            number % 2 == 0
        });
    }
}

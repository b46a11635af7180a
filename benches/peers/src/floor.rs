//! The floor: one cache line going to and fro between two cores.
//!
//! No hand-over between cores is faster than this machine is at this moment, and it moves: so it is measured in every round.

use crate::harness::{Contender, Work};
use crate::side::{Far, Pair, Span};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Its name among the contenders.
pub const NAME: &str = "ping-pong";

/// A line of its own, its neighbour (which the prefetcher pulls along) included.
#[repr(align(128))]
struct Line(AtomicU64);

impl Line {
    fn wait(&self, value: u64) {
        // Bare, with no pause: this is the floor.
        while self.0.load(Ordering::Acquire) != value {}
    }
}

/// Ping is 2i + 1, pong is 2i + 2; one operation is there and back.
pub fn contender(far_core: usize) -> Box<dyn Contender> {
    let near = Arc::new(Line(AtomicU64::new(0)));
    let far = Arc::clone(&near);
    let far = Far::thread(far_core, move || {
        Box::new(move |ops: u64| {
            for i in 0..ops {
                far.wait(2 * i + 1);
                far.0.store(2 * i + 2, Ordering::Release);
            }
            ops
        })
    });
    let near: Box<dyn Work> = Box::new(move |ops: u64| {
        for i in 0..ops {
            near.0.store(2 * i + 1, Ordering::Release);
            near.wait(2 * i + 2);
        }
        near.0.store(0, Ordering::Release);
        ops
    });
    Box::new(Pair::new(far, near, Span::Flow))
}

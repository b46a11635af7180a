//! When a side that has caught up with the other one looks again.
//!
//! A consumer at the producer's heels takes the line that is being written away from it for each message, and both then wait for
//! that line; so does a producer that waits for every slot the consumer frees. A side that lets the other one get ahead for a moment
//! finds many messages (or slots) at once, whose lines come together. But whoever waits for one answer must not be late for it. So
//! a side tries now and then whether waiting a little gains it something, and goes on as long as it does.
//!
//! Promises: a wait is a microsecond at most, and of messages that come one by one hardly one in a thousand meets it, once some
//! have come. Nothing is asked or counted as long as there is something to do.

use std::cell::Cell;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// The first try, and the longest wait.
const SHORT: Duration = Duration::from_nanos(125);
const LONG: Duration = Duration::from_nanos(1000);
/// What a message of a stream takes at most, if the wait is to have been worth it.
const QUICK: Duration = Duration::from_nanos(32);
/// Messages between two tries: at first, and after many that gained nothing.
const SOON: u64 = 8;
const LATE: u64 = 4096;

/// What one end remembers of its tries. Positions are those of [`End`](super::spsc::End).
#[derive(Debug)]
pub(super) struct Pace {
    /// Where the last try was made, until it is known what came of it.
    tried: Cell<Option<u64>>,
    /// Where the next one may be made.
    due: Cell<u64>,
    /// How long it takes.
    wait: Cell<Duration>,
    /// Messages until the one after that, if it gains nothing.
    apart: Cell<u64>,
}

impl Pace {
    pub(super) fn new(position: u64) -> Self {
        Self {
            tried: Cell::new(None),
            due: Cell::new(position.saturating_add(SOON)),
            wait: Cell::new(SHORT),
            apart: Cell::new(SOON),
        }
    }

    /// For an end with nothing to do at `position`: waits, if that is likely to gain something; true if it has.
    pub(super) fn hesitate(&self, position: u64) -> bool {
        let Some(wait) = self.next(position) else { return false };
        let start = Instant::now();
        while start.elapsed() < wait {
            spin_loop();
        }
        true
    }

    /// How long to wait at `position`, if at all.
    fn next(&self, position: u64) -> Option<Duration> {
        if let Some(tried) = self.tried.take() {
            self.judge(position, position.wrapping_sub(tried));
        }
        (position >= self.due.get()).then(|| {
            self.tried.set(Some(position));
            self.wait.get()
        })
    }

    /// What came of the last try: there is nothing to do again, at `position`, after `gained` messages.
    fn judge(&self, position: u64, gained: u64) {
        let wait = self.wait.get();
        if u128::from(gained) * QUICK.as_nanos() >= wait.as_nanos() {
            self.wait.set((2 * wait).min(LONG));
            // Not before: a dialogue with some requests in flight gains as much from short waits.
            if wait == LONG {
                self.apart.set(SOON);
            }
        } else {
            self.wait.set(SHORT);
            self.apart.set((2 * self.apart.get()).min(LATE));
            self.due.set(position.saturating_add(self.apart.get()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits and their sum, of an end that finds `at_once` messages whenever it finds any, until it has seen `messages`; each wait
    /// gains it one more for every `each` of its time.
    fn waits(at_once: u64, each: Option<Duration>, messages: u64) -> (u64, Duration) {
        let pace = Pace::new(0);
        let (mut position, mut count, mut sum) = (0, 0, Duration::ZERO);
        while position < messages {
            // Twice in vain, as one who polls.
            for _ in 0..2 {
                if let Some(wait) = pace.next(position) {
                    count += 1;
                    sum += wait;
                    let gained = each.map_or(0, |each| wait.as_nanos() / each.as_nanos());
                    position += u64::try_from(gained).unwrap();
                }
            }
            position += at_once;
        }
        (count, sum)
    }

    #[test]
    fn what_comes_one_by_one_is_hardly_kept_waiting() {
        let (count, sum) = waits(1, None, 1_000_000);
        assert!((100..1000).contains(&count), "{count} waits");
        assert_eq!(sum, SHORT * u32::try_from(count).unwrap());
        // Requests in flight, answered together: it takes a while to learn that this is no stream.
        let (_, sum) = waits(16, None, 1_000_000);
        assert!(sum < Duration::from_micros(1000), "{sum:?} for a million");
    }

    #[test]
    fn in_a_stream_every_catching_up_is_followed_by_a_wait() {
        let (count, sum) = waits(1, Some(Duration::from_nanos(20)), 1_000_000);
        assert!(sum > LONG * u32::try_from(count * 9 / 10).unwrap(), "{count} waits, {sum:?}");
        assert!((1_000_000 / 60..1_000_000 / 40).contains(&count), "{count} waits");
    }

    #[test]
    fn a_stream_after_a_long_dialogue_is_noticed() {
        let pace = Pace::new(0);
        (0..1_000_000).for_each(|position| {
            let _ = pace.next(position);
        });
        let start = 1_000_000;
        let (mut position, mut found) = (start, 0);
        while pace.wait.get() < LONG {
            position += 8;
            if pace.next(position).is_some() {
                position += 40;
                found += 1;
            }
        }
        assert!(found < 8 && position - start < 2 * LATE, "{found} tries, after {} messages", position - start);
    }
}

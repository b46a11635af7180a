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
    /// Where the next one may be made.
    due: Cell<u64>,
    /// How long it takes.
    wait: Cell<Duration>,
    /// Messages until the one after that, if it gains nothing.
    apart: Cell<u64>,
}

impl Pace {
    pub(super) fn new(position: u64) -> Self {
        Self { due: Cell::new(position.saturating_add(SOON)), wait: Cell::new(SHORT), apart: Cell::new(SOON) }
    }

    /// From now on nothing is tried.
    pub(super) fn never(&self) {
        self.due.set(u64::MAX);
    }

    /// For an end with nothing to do at `position`: waits, if that is likely to gain something; true if it has. `have_come` says
    /// whether there is so much to do now.
    pub(super) fn hesitate(&self, position: u64, have_come: impl Fn(u64) -> bool) -> bool {
        let Some(wait) = self.next(position) else { return false };
        let start = Instant::now();
        while start.elapsed() < wait {
            spin_loop();
        }
        // What comes while this end is elsewhere is not the wait's merit.
        self.judge(position, have_come(worth(wait)));
        true
    }

    /// How long to wait at `position`, if at all.
    fn next(&self, position: u64) -> Option<Duration> {
        (position >= self.due.get()).then(|| self.wait.get())
    }

    /// What came of the wait at `position`.
    fn judge(&self, position: u64, was_worth_it: bool) {
        let wait = self.wait.get();
        if was_worth_it {
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

/// Messages that a wait has to gain.
fn worth(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos() / QUICK.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits and their sum, of an end that finds `at_once` messages whenever it comes round, until it has seen `messages`; `come` says
    /// how many come in the time of a wait.
    fn waits(at_once: u64, messages: u64, come: impl Fn(Duration) -> u64) -> (u64, Duration) {
        let pace = Pace::new(0);
        let (mut position, mut count, mut sum) = (0, 0, Duration::ZERO);
        while position < messages {
            if let Some(wait) = pace.next(position) {
                let come = come(wait);
                pace.judge(position, come >= worth(wait));
                count += 1;
                sum += wait;
                position += come;
            }
            position += at_once;
        }
        (count, sum)
    }

    #[test]
    fn who_gains_nothing_stops_waiting() {
        // A dialogue; and one who comes round now and then, and takes what has gathered meanwhile.
        for at_once in [1, 40, 1000] {
            let (count, sum) = waits(at_once, 1_000_000 * at_once, |_| 0);
            assert!(count < 1000 * at_once, "{count} waits");
            assert_eq!(sum, SHORT * u32::try_from(count).unwrap());
        }
        // Requests in flight, answered together: it takes a while to learn that this is no stream.
        let (_, sum) = waits(1, 1_000_000, |_| 16);
        assert!(sum < Duration::from_micros(1000), "{sum:?} for a million");
    }

    #[test]
    fn in_a_stream_every_catching_up_is_followed_by_a_wait() {
        let (count, sum) = waits(1, 1_000_000, |wait| u64::try_from(wait.as_nanos() / 20).unwrap());
        assert!(sum > LONG * u32::try_from(count * 9 / 10).unwrap(), "{count} waits, {sum:?}");
        assert!((1_000_000 / 60..1_000_000 / 40).contains(&count), "{count} waits");
    }

    #[test]
    fn a_stream_after_a_long_dialogue_is_noticed() {
        let pace = Pace::new(0);
        (0..1_000_000)
            .filter(|position| pace.next(*position).is_some())
            .for_each(|position| pace.judge(position, false));
        let (mut position, mut tries) = (1_000_000, 0);
        while pace.wait.get() < LONG {
            position += 8;
            if pace.next(position).is_some() {
                pace.judge(position, true);
                tries += 1;
            }
        }
        assert!(tries < 8 && position < 1_000_000 + 2 * LATE, "{tries} tries, noticed at {position}");
    }
}

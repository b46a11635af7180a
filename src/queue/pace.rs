//! When a side that has caught up with the other one looks again.
//!
//! A consumer at the producer's heels takes the line that is being written away from it for each message, and both then wait for
//! that line; so does a producer that waits for every slot the consumer frees. A side that lets the other one get ahead for a moment
//! finds many messages (or slots) at once, whose lines come together. But whoever waits for one answer must not be late for it. So
//! a side tries now and then whether waiting a little gains it something, and goes on as long as it does. It does in a stream, which
//! goes on meanwhile, and not where all that was asked for has come and the other side waits, too: that shows at half time.
//!
//! Promises: a wait is two microseconds at most, and of messages that come one by one hardly one in a thousand meets it, once some
//! have come. Nothing is asked or counted as long as there is something to do.

use std::cell::Cell;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

/// The first try, and the longest wait.
const SHORT: Duration = Duration::from_nanos(125);
const LONG: Duration = Duration::from_nanos(2000);
/// What a message of a stream takes at most, if the wait is to have been worth it.
const QUICK: Duration = Duration::from_nanos(128);
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
    /// whether there is so much to do now; `most` is as much as there can be.
    pub(super) fn hesitate(&self, position: u64, most: u64, have_come: impl Fn(u64) -> bool) -> bool {
        let Some(wait) = self.next(position) else { return false };
        let start = Instant::now();
        let pause = |until: Duration| {
            while start.elapsed() < until {
                spin_loop();
            }
        };
        pause(wait / 2);
        // What comes while this end is elsewhere is not the wait's merit.
        let half = about(&have_come);
        let is_full = have_come(most);
        if !is_full {
            pause(wait);
        }
        // All that a small ring holds is no stream.
        self.judge(position, if is_full { most >= worth(wait, 0) } else { have_come(worth(wait, half)) });
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

/// Messages that a wait has to gain, of which `half` have come in half the time.
fn worth(wait: Duration, half: u64) -> u64 {
    let few = u64::try_from(wait.as_nanos() / QUICK.as_nanos()).map_or(u64::MAX, |few| few + 2);
    // Short ones are no measure: what is seen comes a line at a time.
    if wait < LONG / 2 { few } else { few.max(half + half.div_ceil(4)) }
}

/// How many there are: no more than that, and at least eight ninths of it.
fn about(have_come: impl Fn(u64) -> bool) -> u64 {
    let mut count = 0;
    while have_come((2 * count).max(1)) {
        count = (2 * count).max(1);
    }
    for step in [count / 2, count / 4, count / 8] {
        if step > 0 && have_come(count + step) {
            count += step;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_no_more_than_there_is() {
        for there in 0..1000 {
            let count = about(|n| n <= there);
            assert!(count <= there && 9 * count >= 8 * there, "{count} of {there}");
            // So who has seen all there is at half time sees no gain at the end.
            assert!(there == 0 || worth(LONG, count) > there, "{count} of {there}");
        }
    }

    /// Waits and their sum, of an end that finds `at_once` messages whenever it comes round, until it has seen `messages`; `come` says
    /// how many come in the time of a wait.
    fn waits(at_once: u64, messages: u64, come: impl Fn(Duration) -> u64) -> (u64, Duration) {
        let pace = Pace::new(0);
        let (mut position, mut count, mut sum) = (0, 0, Duration::ZERO);
        while position < messages {
            if let Some(wait) = pace.next(position) {
                let (half, come) = (come(wait / 2), come(wait));
                pace.judge(position, come >= worth(wait, about(|n| n <= half)));
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
        for in_flight in [16, 100, 1000] {
            let (_, sum) = waits(1, 1_000_000, |_| in_flight);
            assert!(sum < Duration::from_micros(1000), "{sum:?} for a million, {in_flight} in flight");
        }
    }

    #[test]
    fn in_a_stream_every_catching_up_is_followed_by_a_wait() {
        let (count, sum) = waits(1, 1_000_000, |wait| u64::try_from(wait.as_nanos() / 20).unwrap());
        assert!(sum > LONG * u32::try_from(count * 9 / 10).unwrap(), "{count} waits, {sum:?}");
        assert!((1_000_000 / 120..1_000_000 / 80).contains(&count), "{count} waits");
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

//! Wakers: others' code, run when ours is done.
//!
//! A waker may do anything when it is cloned, woken or dropped: poll its task there and then, ask for the context of the thread, drop the
//! last one, panic. So none is touched while anything here is half done: what is to be woken is collected, and woken last, after roles are
//! released, caches given back and handles dropped, with no lock and no `RefCell` held. One that panics has told so, by the
//! panic hook; the panic ends here, because the drop that woke it may itself be part of an unwinding, and because the other
//! wakers are to be woken all the same.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Wakes them all. The last thing that its caller does.
pub(crate) fn wake(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(|waker| shield(|| waker.wake()));
}

/// Drops them all, not woken. The last thing that its caller does.
#[cfg(feature = "async")]
pub(crate) fn let_go(wakers: impl IntoIterator<Item = Waker>) {
    wakers.into_iter().for_each(|waker| shield(|| drop(waker)));
}

/// Runs others' code, and stops its panic.
fn shield(others: impl FnOnce()) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(others)) {
        // Its drop is others' code, too.
        mem::forget(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{AtomicU32, Ordering};
    use std::sync::Arc;
    use std::task::Wake;

    struct Panics(AtomicU32);

    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload's drop");
        }
    }

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::panic::panic_any(Bomb);
        }
    }

    #[test]
    fn a_panic_stops_here_and_the_next_is_woken() {
        let panics = Arc::new(Panics(AtomicU32::new(0)));
        wake([Waker::from(Arc::clone(&panics)), Waker::from(Arc::clone(&panics))]);
        assert_eq!(panics.0.load(Ordering::Relaxed), 2);
    }
}

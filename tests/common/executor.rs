//! The least that runs a future: no runtime, a thread that parks.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future in this thread, which parks while it is pending.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Counts how often it is woken.
#[derive(Default)]
pub struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Bell {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn rung(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Waits until it has been woken more than `before` times.
    pub fn wait(&self, before: usize) {
        while self.rung() <= before {
            std::thread::yield_now();
        }
    }

    /// Polls `future` once, with this as its waker.
    pub fn poll<F: Future + Unpin>(self: &Arc<Self>, future: &mut F) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(self));
        std::pin::Pin::new(future).poll(&mut Context::from_waker(&waker))
    }

    /// Polls `future` until it waits to be woken, instead of asking for its next turn at once.
    pub fn settle<F: Future + Unpin>(self: &Arc<Self>, future: &mut F) -> Poll<F::Output> {
        loop {
            let before = self.rung();
            let polled = self.poll(future);
            if polled.is_ready() || self.rung() == before {
                return polled;
            }
        }
    }
}

/// A tokio runtime of this thread.
pub fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

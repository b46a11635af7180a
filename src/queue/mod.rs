//! Queues: words of shared memory through which granules and values pass from hand to hand. They know nothing of types.
//!
//! ```text
//! spsc     one producer, one consumer: the protocol, and its two ends, of records and of values
//! window   what is queued, as others than the consumer see it
//! granule, value    what a slot says in either kind of ring
//! ring     where it lies                              pace     when to let the other end get ahead
//! ```

mod granule;
mod pace;
pub(crate) mod ring;
pub(crate) mod spsc;
pub(crate) mod value;
pub(crate) mod window;

#[cfg(test)]
mod tests;

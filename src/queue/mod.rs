//! Queues: words of shared memory through which granules pass from hand to hand. They know nothing of types.

pub(crate) mod spsc;

//! Queues: words of shared memory through which granules and values pass from hand to hand. They know nothing of types.

pub(crate) mod granule;
mod pace;
pub(crate) mod spsc;
pub(crate) mod value;

#[cfg(test)]
mod tests;

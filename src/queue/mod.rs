//! Queues: words of shared memory through which granules and values pass from hand to hand. They know nothing of types.

mod granule;
mod pace;
pub(crate) mod ring;
pub(crate) mod spsc;
pub(crate) mod value;
pub(crate) mod window;

#[cfg(test)]
mod tests;

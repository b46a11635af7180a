//! How the library works inside, and what it promises when processes die.

#[doc = include_str!("design.md")]
pub mod design {}

#[doc = include_str!("guarantees.md")]
pub mod guarantees {}

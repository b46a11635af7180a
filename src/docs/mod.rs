//! How the library works inside.

#[doc = include_str!("design.md")]
pub mod design {}

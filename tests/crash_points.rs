//! Kills at labelled points; see sys/crash.rs.

fn main() {}

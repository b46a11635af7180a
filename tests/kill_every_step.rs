//! A process killed after any store to the segment, in any operation: what is left is a buffer that works.
//!
//! - *Breadth*: an operation is run with a stop after each store to the segment (see `tracee`); the segment as it is then is
//!   copied under another name. Nobody holds a lease there, so everybody in it is dead. The copy is opened, which reaps; it
//!   must be sound, owe nothing to the dead, deliver what was sent and not received, once and in order, and go on working.
//! - *Truth*: the same operation again, killed for good after the k-th event and some instructions, with a live process
//!   attached, which waits, reaps, and goes on.
//!
//! - *Second kill*: some of the copies are opened first by a process that is killed while it reaps, then judged as above.
//!
//! Without arguments: of each storing instruction the state after its first execution, and some of the others. `--full` (or
//! `IPC_BUFFER_KILL_FULL=1`): every distinct state; best with `--release`, which also is the code that is used. `--seed N` chooses
//! other samples; a failed kill says how to repeat it (`CASE --kill EVENTS,INSTRUCTIONS`). Other arguments choose cases by a part of
//! their names.
#![allow(clippy::unwrap_used, clippy::type_complexity, unreachable_pub)]
#![allow(unsafe_code)] // fork, ptrace

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("0 passed, 0 failed (the tracer knows the registers of x86-64 only)");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kill_every_step/cases.rs"]
mod cases;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod common;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kill_every_step/run.rs"]
mod run;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kill_every_step/tracee.rs"]
mod tracee;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "common/work.rs"]
mod work;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    // The tracer takes write permission away, and then the kernel populates nothing: memory is asked for by the file.
    // SAFETY: one thread, which has read nothing of the environment.
    unsafe { std::env::set_var("IPC_BUFFER_NO_POPULATE", "1") };
    run::main();
}

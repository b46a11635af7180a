//! What an operation costs, in instructions: the number of channels is not among the reasons.
//!
//! No harness: the operations run in children that are forked off and traced, one instruction after the other.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]
#![allow(unsafe_code)] // fork, ptrace

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("0 passed, 0 failed (the tracer knows the registers of x86-64 only)");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod common;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[path = "kill_every_step/tracee.rs"]
mod tracee;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    if std::env::args().any(|argument| argument == "--list") {
        println!("cost: test");
        return;
    }
    let _dog = common::Watchdog::new(std::time::Duration::from_secs(170));
    let alone = cost::of_operations(1);
    let in_company = cost::of_operations(10_000);
    println!("{}, of 1 and of 10000 channels: {alone:?} and {in_company:?} instructions", cost::OPERATIONS);
    assert_eq!(alone, in_company);
    println!("test cost ... ok");
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cost {
    use crate::common::Name;
    use crate::tracee::{Tracee, stop};
    use ipc_buffer::{Buffer, Channel, ChannelOptions, Consumer, Producer, Record, ThreadContext, ValueChannel};

    pub const OPERATIONS: &str = "send, recv, drop, value send, value recv";

    /// Instructions of each of [`OPERATIONS`], in the middle one of so many channels.
    pub fn of_operations(channels: i64) -> [u64; 5] {
        let name = Name::new("cost");
        let part = || {
            let buffer = Buffer::open(&name).unwrap();
            let ctx = buffer.context().unwrap();
            let others = (0..channels - 1).map(|id| ends(&ctx, id)).collect::<Vec<_>>();
            let (mut tx, mut rx) = ends(&ctx, channels);
            let mut vtx = ctx.value_producer::<u64>(-1).unwrap();
            let mut vrx = ctx.value_consumer::<u64>(-1).unwrap();
            // Twice: the first time, what is done once in a process is done.
            for _ in 0..2 {
                let record = ctx.record(5_u64).unwrap();
                stop();
                stop();
                send(&mut tx, record);
                stop();
                let record = recv(&mut rx);
                stop();
                free(record);
                stop();
                send_value(&mut vtx, 5);
                stop();
                let value = recv_value(&mut vrx);
                stop();
                assert_eq!(value, 5);
            }
            drop(others);
        };
        let mut child = Tracee::fork(&name.path(), part);
        (0..7).for_each(|_| child.run());
        child.run();
        let mut next = || {
            let mut steps = 0;
            while child.step() {
                steps += 1;
            }
            steps
        };
        let nothing: u64 = next();
        std::array::from_fn(|_| next() - nothing)
    }

    // Each by itself: what the caller keeps in registers is none of their business.

    #[inline(never)]
    fn send(tx: &mut Channel<u64, Producer>, record: Record<u64>) {
        tx.try_send(record).unwrap();
    }

    #[inline(never)]
    fn recv(rx: &mut Channel<u64, Consumer>) -> Record<u64> {
        rx.try_recv().unwrap()
    }

    #[inline(never)]
    fn free(record: Record<u64>) {
        drop(record);
    }

    #[inline(never)]
    fn send_value(tx: &mut ValueChannel<u64, Producer>, value: u64) {
        tx.try_send(value).unwrap();
    }

    #[inline(never)]
    fn recv_value(rx: &mut ValueChannel<u64, Consumer>) -> u64 {
        rx.try_recv().unwrap()
    }

    type Ends = (Channel<u64, Producer>, Channel<u64, Consumer>);

    fn ends(ctx: &ThreadContext, id: i64) -> Ends {
        let options = ChannelOptions::new().capacity(16);
        (ctx.producer_with(id, &options).unwrap(), ctx.consumer(id).unwrap())
    }
}

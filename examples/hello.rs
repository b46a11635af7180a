//! Two processes, one channel: `cargo run --example hello`.
use bytemuck::{Pod, Zeroable};
use ipc_buffer::{Buffer, Layout};
use std::{env, process, time::Duration};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable, Layout)]
struct Sample {
    second: u64,
    celsius: f64,
}

fn main() -> Outcome {
    env::args().nth(1).map_or_else(send, receive)
}

fn send() -> Outcome {
    let name = format!("hello-{}", process::id());
    let ctx = Buffer::open(&name)?.context()?;
    let mut samples = ctx.producer::<Sample>(1)?;
    let mut receiver = process::Command::new(env::current_exe()?).arg(name).spawn()?;
    samples.wait_for_consumer(Duration::from_secs(10))?;
    for (second, celsius) in [(0, 20.5), (1, 20.75), (2, 21.0)] {
        samples.send(ctx.record(Sample { second, celsius })?)?; // written once, in shared memory
    }
    drop(samples); // the receiver's loop ends when it has everything
    receiver.wait()?.success().then_some(()).ok_or("the receiver failed".into())
} // the last process out removes the segment

fn receive(name: String) -> Outcome {
    let ctx = Buffer::options().must_exist(true).open(&name)?.context()?;
    for sample in ctx.consumer::<Sample>(1)? {
        println!("process {} got {} C at {} s", process::id(), sample.celsius, sample.second); // read in place
    }
    Ok(())
}

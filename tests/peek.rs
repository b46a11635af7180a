//! Looking at what is queued: it stays there until it is taken, whoever ends meanwhile.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/work.rs"]
mod work;

use common::{Name, role, start, watchdog};
use ipc_buffer::{Buffer, ChannelOptions, RecvError, RecvTimeoutError, TryRecvError};
use std::collections::VecDeque;
use std::time::Duration;

#[test]
fn a_look_leaves_all_where_it_is() {
    let name = Name::new("look");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = (ctx.producer::<[u8]>(1).unwrap(), ctx.consumer::<[u8]>(1).unwrap());
    assert_eq!(rx.try_peek().unwrap_err(), TryRecvError::Empty);
    let wait = Duration::from_millis(1);
    assert_eq!(rx.peek_timeout(wait).unwrap_err(), RecvTimeoutError::Timeout(wait));
    tx.send(ctx.slice_from(b"first").unwrap()).unwrap();
    tx.send(ctx.slice_from(&[7; 100_000]).unwrap()).unwrap();
    for _ in 0..3 {
        let next = rx.try_peek().unwrap();
        assert_eq!(&**next, b"first");
        drop(next);
        let both = rx.try_peek_batch(10).unwrap();
        assert_eq!(both.iter().map(|record| record.len()).collect::<Vec<_>>(), [5, 100_000]);
    }
    assert_eq!((rx.len(), rx.position(), tx.position()), (2, 0, 2));
    let audit = common::sound(&buffer);
    assert_eq!(audit.queued.iter().map(|queued| queued.records).sum::<u64>(), 2, "nobody has them");
    // The sender goes on with its own meanwhile; what was looked at is taken as it was.
    let next = rx.peek().unwrap();
    assert_eq!(&*next.take().unwrap(), b"first");
    drop(tx);
    assert_eq!(rx.try_peek_batch(10).unwrap().take(10).unwrap().len(), 1);
    assert_eq!(rx.try_peek().unwrap_err(), TryRecvError::Recv(RecvError::Disconnected));
    assert_eq!(rx.peek().unwrap_err(), RecvError::Disconnected);
    assert_eq!(rx.position(), 2);
    drop((rx, ctx));
    work::end(buffer, &name);
}

/// Against a queue that is obviously right: sent, looked at and taken in all sizes, over many laps.
#[test]
fn looks_and_receives_in_any_order() {
    fn run<M: ipc_buffer::Message, T: ?Sized + ipc_buffer::Payload>(
        tx: &mut ipc_buffer::Channel<T, ipc_buffer::Producer, M>,
        rx: &mut ipc_buffer::Channel<T, ipc_buffer::Consumer, M>,
        make: impl Fn(u64) -> M,
        number: impl Fn(&M) -> u64,
    ) {
        let (mut model, mut state, mut sent) = (VecDeque::new(), 3_u64, 0);
        for _ in 0..3000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let count = usize::try_from(state >> 33).unwrap() % 9;
            match state >> 60 {
                0..5 => {
                    let room = count.min(tx.capacity() - model.len());
                    tx.try_send_batch((sent..sent + room as u64).map(&make)).unwrap();
                    model.extend(sent..sent + room as u64);
                    sent += room as u64;
                }
                5..8 => match rx.try_peek() {
                    Ok(next) => {
                        assert_eq!(Some(&number(&next)), model.front());
                        if count % 2 == 0 {
                            assert_eq!(Some(number(&next.take().unwrap())), model.pop_front());
                        }
                    }
                    Err(error) => assert!(error == TryRecvError::Empty && model.is_empty()),
                },
                8..13 => match rx.try_peek_batch(count) {
                    Ok(batch) => {
                        let seen: Vec<u64> = batch.iter().map(&number).collect();
                        assert_eq!(seen, model.iter().take(count).copied().collect::<Vec<_>>());
                        let taken: Vec<u64> = batch.take(count / 2).unwrap().iter().map(&number).collect();
                        assert_eq!(taken, model.drain(..(count / 2).min(seen.len())).collect::<Vec<_>>());
                    }
                    Err(error) => assert!(error == TryRecvError::Empty && model.is_empty()),
                },
                _ => assert_eq!(rx.try_recv().ok().as_ref().map(&number), model.pop_front()),
            }
            assert_eq!((rx.len(), rx.position(), tx.position()), (model.len(), sent - model.len() as u64, sent));
        }
        assert!(sent > 1000);
    }
    let name = Name::new("any-order");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let small = ChannelOptions::new().capacity(16);
    let (mut tx, mut rx) = (ctx.producer_with::<u64>(1, &small).unwrap(), ctx.consumer::<u64>(1).unwrap());
    run(&mut tx, &mut rx, |number| ctx.record(number).unwrap(), |record| **record);
    let (mut tx, mut rx) = (ctx.value_producer_with(2, &small).unwrap(), ctx.value_consumer(2).unwrap());
    run::<u64, u64>(&mut tx, &mut rx, |number| number, |number| *number);
    let (mut tx, mut rx) = (ctx.value_producer_with(3, &small).unwrap(), ctx.value_consumer(3).unwrap());
    run::<[u64; 3], [u64; 3]>(
        &mut tx,
        &mut rx,
        |number| [number, !number, 0],
        |[number, not, _]| {
            assert_eq!(*number, !not);
            *number
        },
    );
    drop((tx, rx, ctx));
    work::end(buffer, &name);
}

/// What is looked at lies in the segment, and stays there as long as the look lasts.
#[test]
fn a_look_keeps_its_context_open() {
    let name = Name::new("open");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let (mut tx, mut rx) = (ctx.producer::<u64>(1).unwrap(), ctx.consumer::<u64>(1).unwrap());
    tx.send_batch((0..3).map(|i| ctx.record(i).unwrap())).unwrap();
    let batch = rx.try_peek_batch(2).unwrap();
    drop((ctx, buffer));
    assert_eq!(batch.iter().map(|record| **record).collect::<Vec<_>>(), [0, 1]);
    drop(batch);
    // It was the last that kept it open.
    assert_eq!(rx.try_peek().unwrap_err(), TryRecvError::Recv(RecvError::ContextClosed));
    assert_eq!(tx.try_send_batch([]).ok(), Some(()));
    drop((tx, rx));
    assert!(!name.exists());
}

/// Who dies over its work has not received it.
#[test]
fn killed_over_a_look_nothing_is_received() {
    let persistent = ChannelOptions::new().persistent(true);
    if let Some((_, name)) = role() {
        let ctx = Buffer::open(&name).unwrap().context().unwrap();
        let mut rx = ctx.consumer_with::<u64>(1, &persistent).unwrap();
        assert_eq!(*rx.recv().unwrap(), 0);
        let batch = rx.try_peek_batch(2).unwrap();
        assert_eq!(batch.iter().map(|record| **record).sum::<u64>(), 3);
        let mut tell = ctx.value_producer::<u64>(2).unwrap();
        tell.send(1).unwrap();
        loop {
            std::thread::park();
        }
    }
    let _dog = watchdog();
    let name = Name::new("killed");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer_with::<u64>(1, &persistent).unwrap();
    tx.send_batch((0..4).map(|i| ctx.record(i).unwrap())).unwrap();
    let mut told = ctx.value_consumer::<u64>(2).unwrap();
    let mut child = start("killed_over_a_look_nothing_is_received", "looks", &name);
    told.recv().unwrap();
    child.kill();
    drop(told);
    let mut rx = ctx.consumer_with::<u64>(1, &persistent).unwrap();
    assert_eq!((**rx.peek().unwrap(), rx.position()), (1, 1));
    assert_eq!(rx.recv_batch(10).unwrap().iter().map(|record| **record).collect::<Vec<_>>(), [1, 2, 3]);
    drop((tx, rx));
    assert!(buffer.remove_channel(1).unwrap());
    drop(ctx);
    work::end(buffer, &name);
}

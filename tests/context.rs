//! Contexts: one per thread and buffer, and what closing one does.

mod common;

use common::Name;
use ipc_buffer::{Buffer, RecvError, TryRecvError, TrySendError};

#[test]
fn asking_twice_gives_the_same_context() {
    let name = Name::new("same");
    let buffer = Buffer::open(&name).unwrap();
    // A closed one that something refers to still is not in the way.
    let closed = buffer.context().unwrap();
    let _kept = closed.producer::<u64>(2).unwrap();
    drop(closed);
    let (one, two) = (buffer.context().unwrap(), buffer.context().unwrap());
    let _tx = one.producer::<u64>(1).unwrap();
    drop(one);
    let mut rx = two.consumer::<u64>(1).unwrap();
    assert_eq!(
        rx.try_recv().unwrap_err(),
        TryRecvError::Empty,
        "the producer made from the first handle is still there"
    );
}

#[test]
fn closing_returns_the_cache_and_detaches_the_endpoints() {
    let name = Name::new("close");
    let buffer = Buffer::open(&name).unwrap();
    let ctx = buffer.context().unwrap();
    let mut tx = ctx.producer::<u64>(1).unwrap();
    let mut rx = ctx.consumer::<u64>(1).unwrap();
    let kept = ctx.record(7_u64).unwrap();
    tx.send(ctx.record(1).unwrap()).unwrap();
    drop(ctx);
    assert_eq!(rx.try_recv().unwrap_err(), TryRecvError::Recv(RecvError::ContextClosed));
    assert!(!buffer.has_active_channels().unwrap());
    let Err(TrySendError::ContextClosed(kept)) = tx.try_send(kept) else { panic!("the context is closed") };
    let audit = common::sound(&buffer);
    assert_eq!((audit.cached_bytes, audit.owned[0].records, *kept), (0, 1, 7));
    drop(kept);
    common::all_free(&buffer);
    drop(buffer);
    assert!(!name.exists());
}

#![allow(unsafe_code, clippy::undocumented_unsafe_blocks)]
mod common;
use common::Name;
use ipc_buffer::Buffer;
#[test]
fn a_table_full_of_the_dead_can_be_opened() {
    let name = Name::new("full");
    let mut pids = vec![];
    for _ in 0..512 {
        let mut p = [0; 2];
        unsafe { libc::pipe(p.as_mut_ptr()) };
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let b = Buffer::open(&name);
            unsafe { libc::write(p[1], b"x".as_ptr().cast(), 1) };
            std::mem::forget(b);
            loop {
                unsafe { libc::pause() };
            }
        }
        unsafe {
            libc::read(p[0], [0_u8; 1].as_mut_ptr().cast(), 1);
            libc::close(p[0]);
            libc::close(p[1]);
        }
        pids.push(pid);
    }
    for p in &pids {
        unsafe { libc::kill(*p, libc::SIGKILL) };
    }
    for p in &pids {
        unsafe { libc::waitpid(*p, &mut 0, 0) };
    }
    let b = Buffer::open(&name);
    assert!(b.is_ok(), "{}", b.unwrap_err());
}

/// The same, with records, roles and queued records; twice, so that an adopted slot is adopted again.
#[test]
fn what_an_adopted_slot_had_is_given_back() {
    let name = Name::new("adopt");
    for _ in 0..2 {
        let mut pids = vec![];
        for i in 0..512 {
            let mut p = [0; 2];
            unsafe { libc::pipe(p.as_mut_ptr()) };
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                if let Ok(b) = Buffer::open(&name) {
                    if i % 5 == 0 {
                        let ctx = b.context().unwrap();
                        let mut tx = ctx.producer::<u64>(i).unwrap();
                        tx.send(ctx.record(1_u64).unwrap()).unwrap();
                        std::mem::forget((ctx.record(2_u64), ctx.slice_zeroed::<u8>(300_000), tx, ctx));
                    }
                    std::mem::forget(b);
                }
                unsafe { libc::write(p[1], b"x".as_ptr().cast(), 1) };
                loop {
                    unsafe { libc::pause() };
                }
            }
            unsafe {
                libc::read(p[0], [0_u8; 1].as_mut_ptr().cast(), 1);
                libc::close(p[0]);
                libc::close(p[1]);
            }
            pids.push(pid);
        }
        for p in &pids {
            unsafe { libc::kill(*p, libc::SIGKILL) };
        }
        for p in &pids {
            unsafe { libc::waitpid(*p, &mut 0, 0) };
        }
    }
    let b = Buffer::open(&name).unwrap();
    common::all_free(&b);
    drop(b);
    assert!(!name.exists());
}

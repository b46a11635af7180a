//! What a sandbox or an older kernel may do to a process.
#![allow(dead_code, unreachable_pub)] // each test binary uses its part
#![allow(unsafe_code)]

/// From now on this system call is refused to this thread, and to those it starts.
pub fn forbid(call: libc::c_long) {
    refuse(&[(call, None, libc::EPERM)]);
    // SAFETY: without arguments it does nothing, whichever of those forbidden here it is.
    assert_eq!(unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) }, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
}

/// A system call; if not all of them are meant, which of its arguments has which value (32 bits of it); and the error it ends with.
pub type Refused = (libc::c_long, Option<(u32, libc::c_int)>, libc::c_int);

/// From now on these system calls are refused to this thread, and to those it starts.
pub fn refuse(calls: &[Refused]) {
    /// Where a filter sees the number of the system call, and the lower half of an argument.
    const NUMBER: u32 = 0;
    const ARGUMENTS: u32 = 16 + if cfg!(target_endian = "big") { 4 } else { 0 };
    let step =
        |code: u32, jump_false, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: jump_false, k };
    let load = |at| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at);
    let or_skip = |steps, value| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, steps, value);
    let end = |result| step(libc::BPF_RET | libc::BPF_K, 0, result);
    let mut filter = Vec::new();
    for (call, argument, error) in calls {
        filter.extend([load(NUMBER), or_skip(if argument.is_some() { 3 } else { 1 }, u32::try_from(*call).unwrap())]);
        if let Some((index, value)) = argument {
            filter.extend([load(ARGUMENTS + 8 * index), or_skip(1, value.cast_unsigned())]);
        }
        filter.push(end(libc::SECCOMP_RET_ERRNO | error.unsigned_abs()));
    }
    filter.push(end(libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: sets a flag of this thread.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the filter is well-formed and lives for the call.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }, 0);
}

/// Whether the kernel knows this system call, which does nothing without arguments.
pub fn knows(call: libc::c_long) -> bool {
    // SAFETY: see above.
    let refused = unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) } == -1;
    !refused || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

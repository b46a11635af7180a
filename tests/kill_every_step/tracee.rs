//! A forked child under ptrace that stops after every store to a segment it has mapped.
//!
//! The child's mapping of the segment is kept read-only. A store faults; the fault is kept from the child, the mapping made
//! writable by a system call that the child is made to do, the one instruction stepped, and the mapping made read-only again. So
//! the child stands still after each store, whatever the instruction, and runs at full speed in between. System calls are
//! stops too: they move locks, names and memory.

use std::cell::Cell;
use std::fs;
use std::mem::zeroed;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

/// What a tracee did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The instruction at `at` (an address in the binary, for addr2line) stored to the segment, at this offset (or tried: a failed CAS is a store that changes nothing).
    Store { at: u64, offset: u64 },
    /// Came back from this system call.
    Call(i64),
    /// Stopped itself.
    Stopped,
}

/// A piece of the segment in the child's address space.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    offset: u64,
}

/// A traced child; killed (by its id) and waited for when dropped.
pub struct Tracee {
    pid: libc::pid_t,
    path: String,
    ranges: Vec<Range>,
    /// The number of the system call it is in.
    inside: Option<i64>,
    gone: Cell<bool>,
}

/// In a tracee: stops, until the parent goes on.
pub fn stop() {
    // SAFETY: no memory is involved.
    unsafe { libc::raise(libc::SIGSTOP) };
}

impl Tracee {
    /// Forks a child that will run `part`, and stands before it.
    pub fn fork(path: &str, part: impl FnOnce()) -> Self {
        // SAFETY: the child runs `part` and never returns from here.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: no memory is involved.
            unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
            stop();
            let ended = catch_unwind(AssertUnwindSafe(part));
            // SAFETY: ends the process.
            unsafe { libc::_exit(if ended.is_ok() { 0 } else { 101 }) };
        }
        let child = Self { pid, path: path.to_owned(), ranges: Vec::new(), inside: None, gone: Cell::new(false) };
        assert_eq!(child.wait(), libc::SIGSTOP, "the child stands before its part");
        let options = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;
        // SAFETY: sets options of our own tracee.
        unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) };
        child
    }

    /// Waits for the next stop; says which signal.
    fn wait(&self) -> i32 {
        let mut status = 0;
        // SAFETY: `status` is ours.
        let pid = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!(pid, self.pid, "waitpid: {}", std::io::Error::last_os_error());
        self.gone.set(!libc::WIFSTOPPED(status));
        assert!(!self.gone.get(), "the child ended by itself: status {status:#x}");
        libc::WSTOPSIG(status)
    }

    fn go(&self, how: libc::c_uint) -> i32 {
        // SAFETY: resumes our own tracee, without any signal.
        let done = unsafe { libc::ptrace(how, self.pid, 0, 0) };
        assert_eq!(done, 0, "ptrace: {}", std::io::Error::last_os_error());
        self.wait()
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: plain integers.
        let mut registers: libc::user_regs_struct = unsafe { zeroed() };
        // SAFETY: `registers` is what the request fills in.
        let done = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.pid, 0, &raw mut registers) };
        assert_eq!(done, 0, "PTRACE_GETREGS");
        registers
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) {
        // SAFETY: `registers` is what the request reads.
        let done = unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.pid, 0, std::ptr::from_ref(registers)) };
        assert_eq!(done, 0, "PTRACE_SETREGS");
    }

    /// Runs unobserved until it stops itself.
    pub fn run(&mut self) {
        let signal = self.go(libc::PTRACE_CONT);
        assert_eq!(signal, libc::SIGSTOP, "the child got through its part");
    }

    /// From here on, stores are events.
    pub fn observe(&mut self) {
        self.look_for_mappings();
    }

    /// Lets it store freely again.
    pub fn release(&mut self) {
        self.protect(libc::PROT_READ | libc::PROT_WRITE);
    }

    /// Makes the child do a system call.
    fn call(&self, number: i64, a: u64, b: u64, c: u64) -> i64 {
        let saved = self.registers();
        let number = number.cast_unsigned();
        let call = libc::user_regs_struct {
            rip: a_syscall_instruction(),
            rax: number,
            orig_rax: u64::MAX, // not in a call that might be restarted
            rdi: a,
            rsi: b,
            rdx: c,
            ..saved
        };
        self.set_registers(&call);
        assert_eq!(self.go(libc::PTRACE_SINGLESTEP), libc::SIGTRAP, "one instruction");
        let result = self.registers().rax.cast_signed();
        self.set_registers(&saved);
        result
    }

    fn protect(&self, how: i32) {
        for range in &self.ranges {
            let result = self.call(libc::SYS_mprotect, range.start, range.end - range.start, how as u64);
            assert_eq!(result, 0, "mprotect in the child");
        }
    }

    fn look_for_mappings(&mut self) {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.pid)).expect("maps of the child");
        let number = |text: &str| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        let of_segment = |line: &&str| line.contains(&format!("{} ", self.path)) || line.ends_with(&self.path);
        let range = |line: &str| {
            let mut fields = line.split_whitespace();
            let (start, end) = fields.next().and_then(|range| range.split_once('-')).expect("a range");
            let offset = fields.nth(1).expect("an offset");
            Range { start: number(start), end: number(end), offset: number(offset) }
        };
        self.ranges = maps.lines().filter(of_segment).map(range).collect();
        self.protect(libc::PROT_READ);
    }

    /// Goes on to the next event.
    pub fn next(&mut self) -> Event {
        loop {
            let signal = self.go(libc::PTRACE_SYSCALL);
            if signal == libc::SIGTRAP | 0x80 {
                let Some(number) = self.inside.take() else {
                    self.inside = Some(self.registers().orig_rax.cast_signed());
                    continue;
                };
                if matches!(number, libc::SYS_tkill | libc::SYS_tgkill) {
                    // The signal is on its way.
                    continue;
                }
                if matches!(number, libc::SYS_mmap | libc::SYS_munmap | libc::SYS_mprotect) {
                    self.look_for_mappings();
                }
                return Event::Call(number);
            }
            if signal == libc::SIGSTOP {
                return Event::Stopped;
            }
            let registers = self.registers();
            let address = self.fault();
            let range = self.ranges.iter().find(|range| (range.start..range.end).contains(&address));
            let range = *range.filter(|_| signal == libc::SIGSEGV).unwrap_or_else(|| {
                panic!("the child got signal {signal} at {:#x}, address {address:#x}", registers.rip)
            });
            self.protect(libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(self.go(libc::PTRACE_SINGLESTEP), libc::SIGTRAP, "one instruction");
            self.protect(libc::PROT_READ);
            let at = registers.rip.wrapping_sub(&raw const __ehdr_start as u64);
            return Event::Store { at, offset: address - range.start + range.offset };
        }
    }

    /// The address of the signal it stopped for.
    fn fault(&self) -> u64 {
        // SAFETY: plain integers.
        let mut info: libc::siginfo_t = unsafe { zeroed() };
        // SAFETY: `info` is what the request fills in.
        unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, self.pid, 0, &raw mut info) };
        // SAFETY: read as a number only.
        unsafe { info.si_addr() }.addr() as u64
    }

    /// Executes one instruction; false if that was the one that stops it.
    pub fn step(&mut self) -> bool {
        self.go(libc::PTRACE_SINGLESTEP) == libc::SIGTRAP
    }

    /// Whether it has entered a system call and not come back.
    pub fn is_in_a_call(&self) -> bool {
        self.inside.is_some()
    }

    /// SIGKILL, and waits.
    pub fn kill(&mut self) {
        if !self.gone.replace(true) {
            // SAFETY: our own child, not waited for yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            // SAFETY: as above; the status is not asked for.
            unsafe { libc::waitpid(self.pid, null_mut(), 0) };
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        self.kill();
    }
}

unsafe extern "C" {
    /// Where the binary is loaded; from the linker.
    static __ehdr_start: u8;
}

/// Where the C library has one; the same place in every child.
fn a_syscall_instruction() -> u64 {
    let start = libc::syscall as *const u8;
    // SAFETY: the function is longer than that: it moves seven registers before the call, and tests the result after it.
    let code = unsafe { std::slice::from_raw_parts(start, 40) };
    let at = code.windows(2).position(|two| two == [0x0f, 0x05]).expect("a system call in syscall()");
    start.addr() as u64 + at as u64
}

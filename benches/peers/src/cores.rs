//! Where the two sides run: one core each, for the whole run.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Two cores this process may use; different physical ones if there are such.
pub fn pair() -> [usize; 2] {
    let allowed = sched_getaffinity(None).expect("sched_getaffinity");
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let near = cores[0];
    let apart = cores[1..].iter().find(|core| !are_siblings(near, **core));
    let far = apart.or(cores.get(1)).copied().unwrap_or(near);
    [near, far]
}

/// Whether two cores are threads of one physical core, or one and the same.
pub fn are_siblings(a: usize, b: usize) -> bool {
    let core_of = |core: usize| {
        let topology = format!("/sys/devices/system/cpu/cpu{core}/topology");
        let read = |file: &str| std::fs::read_to_string(format!("{topology}/{file}")).ok();
        Some((read("physical_package_id")?, read("core_id")?))
    };
    a == b || core_of(a).is_some_and(|one| Some(one) == core_of(b))
}

/// Keeps the calling thread on `core`; threads it starts inherit that.
pub fn pin(core: usize) {
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).expect("sched_setaffinity");
}

//! The agent's own place among the processes.
#![expect(
    unsafe_code,
    reason = "neither std nor rustix can set a scheduling policy"
)]

use rustix::mm::{MlockAllFlags, mlockall};

/// Between the threads of the kernel that serve interrupts (50 by default) and everything else.
const PRIORITY: i32 = 50;

/// What could be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Realtime {
    /// Scheduled before every ordinary process.
    pub scheduled: bool,
    /// Locked in memory.
    pub locked: bool,
}

/// Puts the calling thread, and threads and processes that it starts, before all ordinary ones,
/// and this process's memory beyond the reach of swapping. Freezing a hundred busy processes takes
/// tens of milliseconds that way, and seconds otherwise.
pub fn realtime() -> Realtime {
    let parameters = libc::sched_param {
        sched_priority: PRIORITY,
    };
    // SAFETY: `parameters` is a whole sched_param that outlives the call, which only reads it.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    // Not what is mapped, but what is used: whole stacks of threads would be a waste.
    let used = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Realtime {
        scheduled: result == 0,
        locked: mlockall(used).is_ok(),
    }
}

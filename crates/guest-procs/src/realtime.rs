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
    // Not what is mapped, but what is used: whole stacks of threads would be a waste.
    let used = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    Realtime {
        scheduled: schedule(libc::SCHED_FIFO, PRIORITY),
        locked: mlockall(used).is_ok(),
    }
}

/// Puts the calling thread back among the ordinary ones: what is urgent is done, and the guest's
/// services want to run, too.
pub fn ordinary() {
    // Who may go up may go down.
    schedule(libc::SCHED_OTHER, 0);
}

fn schedule(policy: libc::c_int, priority: i32) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: `parameters` is a whole sched_param that outlives the call, which only reads it.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

//! Many processes with many threads, all asleep.

use std::process::Command;
use std::thread::{sleep, spawn};
use std::time::Duration;

use crate::Outcome;

/// Each thread wakes so often.
const NAP: Duration = Duration::from_millis(50);

/// So many processes; with none, the caller becomes one of them.
pub(crate) fn run(processes: &str, threads: &str) -> Outcome {
    let processes: usize = processes.parse()?;
    if processes == 0 {
        for _ in 1..threads.parse::<usize>()? {
            spawn(|| rest(NAP));
        }
        rest(NAP);
    }
    for _ in 0..processes {
        let member = ["crowd", "0", threads];
        Command::new("/proc/self/exe").args(member).spawn()?;
    }
    println!("crowd ready");
    rest(Duration::from_secs(3600))
}

fn rest(nap: Duration) -> ! {
    loop {
        sleep(nap);
    }
}

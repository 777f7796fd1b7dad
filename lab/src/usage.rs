//! What processes of the host use.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of a process, its ended children's included; of a zombie, too.
pub fn cpu(pid: u32) -> Result<Duration> {
    cpu_in(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
}

/// The same from the text of its `/proc/PID/stat`, which may be another machine's.
pub fn cpu_in(stat: &str) -> Result<Duration> {
    // Its name, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("no process")?;
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // Linux counts in hundredths here, whatever its own tick is.
    Ok(Duration::from_millis(ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_of_a_process_and_its_children() -> Result<()> {
        let stat = "12 (a) b) S 1 12 12 0 -1 4194304 1 0 0 0 150 25 3 2 20 0 1 0 9";
        assert_eq!(cpu_in(stat)?, Duration::from_millis(1800));
        assert!(cpu_in("").is_err());
        cpu(std::process::id()).map(drop)
    }
}

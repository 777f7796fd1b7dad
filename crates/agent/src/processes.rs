//! What `/proc` says about a process.

use std::fs;

use depgraph::ProcessId;
use guest_proto::shortened;

const COMMAND_MAX: usize = 120;
const CGROUP_MAX: usize = 200;

/// What rules look at.
#[derive(Debug, Default, Clone)]
pub(crate) struct Place {
    pub(crate) exe: String,
    pub(crate) cgroup: String,
}

/// What people want to see besides.
#[derive(Debug, Default, Clone)]
pub(crate) struct Info {
    pub(crate) command: String,
    pub(crate) anonymous_kib: u64,
}

/// Where a process belongs; one that has just ended leaves gaps.
pub(crate) fn place(id: ProcessId) -> Place {
    let exe = fs::read_link(format!("/proc/{}/exe", id.pid)).unwrap_or_default();
    Place {
        exe: exe.to_string_lossy().into_owned(),
        cgroup: shortened(cgroup(&text(id, "cgroup")), CGROUP_MAX),
    }
}

/// What it was started as, and its memory; nothing if it has ended.
pub(crate) fn info(id: ProcessId) -> Option<Info> {
    let status = text(id, "status");
    if has_ended(&status) {
        return None;
    }
    let command = text(id, "cmdline").replace('\0', " ");
    Some(Info {
        command: shortened(command.trim_end(), COMMAND_MAX),
        anonymous_kib: field(&status, "RssAnon:"),
    })
}

/// Gone, or waiting for its parent to ask. A first thread may end before the others do.
fn has_ended(status: &str) -> bool {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    match state.map(str::trim_start) {
        None => true,
        Some(state) => state.starts_with(['Z', 'X']) && field(status, "Threads:") <= 1,
    }
}

fn text(id: ProcessId, name: &str) -> String {
    let bytes = fs::read(format!("/proc/{}/{name}", id.pid)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Differs from an earlier one if the process has run in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Processor time: of somebody who does not stop running.
    ticks: u64,
    /// How often its threads were switched: of somebody who runs for less than a tick.
    switches: u64,
}

/// How much a process has run.
pub(crate) fn activity(pid: u32) -> Option<Activity> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let switches = threads.flatten().map(|thread| {
        let status = fs::read(thread.path().join("status")).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        field(&status, "voluntary_ctxt_switches:") + field(&status, "nonvoluntary_ctxt_switches:")
    });
    Some(Activity {
        ticks: ticks_of(&stat)?,
        switches: switches.sum(),
    })
}

/// Memory of the machine, in KiB.
pub(crate) fn memory_kib() -> u64 {
    field(
        &fs::read_to_string("/proc/meminfo").unwrap_or_default(),
        "MemTotal:",
    )
}

/// Every process, by /proc alone: for kernels without probes.
pub(crate) fn list() -> Vec<(ProcessId, u32, String)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // Kernel threads have no memory.
            let kernel = fs::read(format!("/proc/{pid}/cmdline")).ok()?.is_empty()
                && fs::read_link(format!("/proc/{pid}/exe")).is_err();
            if kernel {
                return None;
            }
            let (name, parent, start) = stat_fields(&stat)?;
            Some((ProcessId { pid, start }, parent, name))
        })
        .collect()
}

/// Name, parent and start. The name may hold anything, brackets and spaces included.
fn stat_fields(stat: &str) -> Option<(String, u32, u64)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((name, parent, start))
}

fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The second version's path; else the longest, as the first has one a controller.
fn cgroup(text: &str) -> &str {
    let path = |line: &'_ str| {
        line.splitn(3, ':')
            .nth(2)
            .map(str::len)
            .map(|n| line.len() - n)
    };
    let unified = text.lines().find(|line| line.starts_with("0::"));
    unified
        .and_then(|line| path(line).map(|at| &line[at..]))
        .unwrap_or("")
}

fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|value| value.split_ascii_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

    use super::*;

    #[test]
    fn a_name_may_hold_brackets() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 55 66 0 0 20 0 1 0 4242 1000 10";
        assert_eq!(stat_fields(stat), Some(("a) b".into(), 3, 4242)));
        assert_eq!(ticks_of(stat), Some(55 + 66));
        assert_eq!(stat_fields("7 (a"), None);
    }

    /// Stops a child, and waits until it has left its processor: then all is counted.
    fn stop(pid: Pid) -> Result<Option<Activity>, Box<dyn std::error::Error>> {
        kill_process(pid, Signal::STOP)?;
        waitpid(Some(pid), WaitOptions::UNTRACED)?;
        // The kernel answers when the process is off its processor.
        fs::read_to_string(format!("/proc/{pid}/syscall"))?;
        Ok(activity(u32::try_from(pid.as_raw_pid())?))
    }

    #[test]
    fn whoever_has_run_shows_it() -> Result<(), Box<dyn std::error::Error>> {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn()?;
        let pid = Pid::from_child(&child);
        let first = stop(pid)?;
        assert!(first.is_some());
        assert_eq!(first, activity(child.id()), "it stands");
        kill_process(pid, Signal::CONT)?;
        assert_ne!(first, stop(pid)?, "it has run, however short");
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    #[test]
    fn a_process_lives_as_long_as_one_of_its_threads() {
        assert!(!has_ended("Name:\ta\nState:\tR (running)\nThreads:\t1\n"));
        assert!(!has_ended("State:\tZ (zombie)\nThreads:\t2\n"));
        assert!(has_ended("State:\tZ (zombie)\nThreads:\t1\n"));
        assert!(has_ended(""));
    }

    #[test]
    fn the_second_version_of_cgroups_counts() {
        assert_eq!(
            cgroup("4:cpu:/x\n0::/system.slice/a:b.service\n"),
            "/system.slice/a:b.service"
        );
        assert_eq!(cgroup("4:cpu:/x\n"), "");
    }

    #[test]
    fn fields_are_found_by_name() {
        assert_eq!(
            field("VmRSS:\t 10 kB\nRssAnon:\t  512 kB\n", "RssAnon:"),
            512
        );
        assert_eq!(field("", "RssAnon:"), 0);
    }
}

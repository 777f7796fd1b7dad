//! What `/proc` says about a process.

use std::fs;

use depgraph::ProcessId;
use guest_procs::Stat;
use guest_proto::shortened;

use crate::command;
use crate::tracker::Task;

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
    Some(Info {
        command: command::told(&text(id, "cmdline")),
        anonymous_kib: field(&status, "RssAnon:"),
    })
}

/// Its anonymous memory; nothing if it has ended.
pub(crate) fn anonymous_kib(id: ProcessId) -> Option<u64> {
    let status = text(id, "status");
    (!has_ended(&status)).then(|| field(&status, "RssAnon:"))
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
    let stat = Stat::of(pid).ok()?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let switches = threads.flatten().map(|thread| {
        let status = fs::read(thread.path().join("status")).unwrap_or_default();
        let status = String::from_utf8_lossy(&status);
        field(&status, "voluntary_ctxt_switches:") + field(&status, "nonvoluntary_ctxt_switches:")
    });
    Some(Activity {
        ticks: stat.used,
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

/// Every process, by /proc alone: where no program in the kernel lists them.
pub(crate) fn tasks() -> Vec<Task> {
    numbers("/proc")
        .filter_map(|pid| {
            let stat = Stat::of(pid).ok().filter(|stat| !stat.is_kernel_thread())?;
            let start = stat.start;
            let id = ProcessId { pid, start };
            Some(Task {
                id,
                parent: stat.parent,
                tracer: tracer(pid),
                is_kernel: false,
                name: text(id, "comm").trim_end().to_owned(),
            })
        })
        .collect()
}

/// The process that traces another, or one of its threads.
fn tracer(pid: u32) -> Option<ProcessId> {
    let tracers = numbers(&format!("/proc/{pid}/task")).map(|thread| {
        let status = fs::read(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
        field(&String::from_utf8_lossy(&status), "TracerPid:")
    });
    let pid = u32::try_from(tracers.max()?).ok().filter(|pid| *pid > 0)?;
    let start = Stat::of(pid).ok()?.start;
    Some(ProcessId { pid, start })
}

/// The entries of a folder that are numbers.
fn numbers(folder: &str) -> impl Iterator<Item = u32> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The second version's path.
fn cgroup(text: &str) -> &str {
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified.unwrap_or("")
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

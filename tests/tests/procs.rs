//! In a real guest: whose pages are whose, and whether whatever is stopped goes on again.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use lab::{Host, Lab, LabOptions, Vm, VmOptions, results};
use serde_json::{Value, json};
use unmoor_tests::{await_writing, start_writer, verify_writer};

/// Frames of a MiB.
const PER_MIB: f64 = 256.0;

/// A guest without a network, and the lab around it.
struct Guest {
    vm: Vm,
    _lab: Lab,
}

impl Guest {
    fn boot() -> Result<Self> {
        let lab = Lab::new(&LabOptions::default())?;
        let options = VmOptions {
            network: false,
            ..VmOptions::default()
        };
        let mut vm = Vm::start(&lab, Host::A, &options)?;
        vm.wait_booted()?;
        Ok(Guest { vm, _lab: lab })
    }

    fn sh(&mut self, command: &str) -> Result<String> {
        Ok(self.vm.guest(command)?.trim().to_owned())
    }

    fn pid_of(&mut self, name: &str) -> Result<String> {
        self.sh(&format!(
            "for one in /proc/[0-9]*; do \
               tr '\\0' ' ' <$one/cmdline | grep -q '^{name}' && echo ${{one#/proc/}}; \
             done 2>/dev/null | grep ."
        ))
    }

    /// Starts a command in a control group of that path, which is made; yields its process id.
    fn start_in(&mut self, group: &str, command: &str) -> Result<String> {
        self.sh(&format!(
            "mkdir -p /sys/fs/cgroup/{group} 2>/dev/null; \
             sh -c 'echo $$ >/sys/fs/cgroup/{group}/cgroup.procs; exec {command}' \
             >/dev/null 2>&1 & echo $!; \
             until grep -qsx $! /sys/fs/cgroup/{group}/cgroup.procs || [ ! -e /sys/fs/cgroup/{group} ]; \
             do usleep 10000; done"
        ))
    }

    /// What the probe says, as numbers by `line.key`.
    fn probe(&mut self, arguments: &str) -> Result<BTreeMap<String, f64>> {
        let output = self.sh(&format!("guest-procs-probe {arguments}"))?;
        Ok(numbers(&output))
    }

    /// Ticks of CPU time that a process has used.
    fn cpu_time(&mut self, pid: &str) -> Result<u64> {
        Ok(self
            .sh(&format!("awk '{{print $14+$15}}' /proc/{pid}/stat"))?
            .parse()?)
    }

    /// Ticks that it uses in half a second.
    fn cpu_time_used(&mut self, pid: &str) -> Result<u64> {
        let before = self.cpu_time(pid)?;
        self.sh("usleep 500000")?;
        Ok(self.cpu_time(pid)? - before)
    }

    fn group_of(&mut self, pid: &str) -> Result<String> {
        self.sh(&format!("sed -n 's/^0:://p' /proc/{pid}/cgroup"))
    }

    /// Runs the probe until it is killed; waits until it has frozen.
    fn start_frozen(&mut self, arguments: &str) -> Result<(String, BTreeMap<String, f64>)> {
        let output = self.sh(&format!(
            "guest-procs-probe {arguments} >/run/probe.log 2>&1 & \
             until grep -q '^frozen' /run/probe.log; do usleep 10000; done; \
             echo \"probe pid=$!\"; cat /run/probe.log"
        ))?;
        let found = numbers(&output);
        let pid = figure(&found, "probe.pid")?;
        Ok((format!("{pid}"), found))
    }
}

/// `line key=value ...`; what is no number is left out.
fn numbers(text: &str) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let name = line.split(' ').next().unwrap_or("");
        for (key, value) in line.split(' ').filter_map(|word| word.split_once('=')) {
            if let Ok(value) = value.parse() {
                let line = name.split('=').next().unwrap_or("");
                found.insert(format!("{line}.{key}"), value);
            }
        }
    }
    found
}

fn figure(of: &BTreeMap<String, f64>, name: &str) -> Result<f64> {
    of.get(name)
        .copied()
        .with_context(|| format!("no {name} in {of:?}"))
}

/// The writer's own memory belongs to it, and to nobody else.
#[test]
fn frames_belong_to_their_process() -> Result<()> {
    let mut guest = Guest::boot()?;
    start_writer(&mut guest.vm, 64, 0, "full")?;
    let writer = guest.pid_of("lab-guest writer")?;
    let redis = guest.pid_of("redis-server")?;
    let own = guest.probe(&format!("owners {writer}"))?;
    let frames = figure(&own, "all.frames")?;
    assert!(frames >= 64.0 * PER_MIB, "{own:?}");
    // The writer's own books and a runtime, not more.
    assert!(frames <= 66.0 * PER_MIB, "{own:?}");
    let other = guest.probe(&format!("owners {redis}"))?;
    let both = guest.probe(&format!("owners {writer} {redis}"))?;
    let sum = frames + figure(&other, "all.frames")?;
    // Equal but for what the two of them have been given since: no frame counts for both.
    let difference = figure(&both, "all.frames")? - sum;
    assert!(difference.abs() <= 16.0, "{own:?} {other:?} {both:?}");
    results::record(
        "procs_owners",
        &json!({ "writer": own, "redis": other, "both": both }),
    )
}

/// After a fork the frames are nobody's own, until they are copied.
#[test]
fn what_a_fork_shares_belongs_to_nobody() -> Result<()> {
    let mut guest = Guest::boot()?;
    let output = guest.sh("guest-procs-probe family 16 >/run/family 2>&1 & \
         until grep -q child /run/family; do usleep 10000; done; cat /run/family")?;
    let family = numbers(&output);
    let (parent, child) = (
        figure(&family, "parent.parent")?,
        figure(&family, "parent.child")?,
    );
    let frames = |guest: &mut Guest, pid| -> Result<f64> {
        figure(&guest.probe(&format!("owners {pid}"))?, "all.frames")
    };
    let all = 16.0 * PER_MIB;
    let shared = [frames(&mut guest, parent)?, frames(&mut guest, child)?];
    assert!(
        shared.iter().all(|frames| *frames < all / 8.0),
        "{shared:?}"
    );
    guest.sh("touch /run/cow; until [ -e /run/cow.done ]; do usleep 10000; done")?;
    let copied = [frames(&mut guest, parent)?, frames(&mut guest, child)?];
    assert!(copied.iter().all(|frames| *frames >= all), "{copied:?}");
    results::record("procs_fork", &json!({ "shared": shared, "copied": copied }))
}

#[test]
fn what_is_written_is_hot() -> Result<()> {
    let mut guest = Guest::boot()?;
    // 16 of 64 MiB in the second; the rest is for huge pages and for what is written on the way.
    start_writer(&mut guest.vm, 64, 16, "full")?;
    let writer = guest.pid_of("lab-guest writer")?;
    let owned = guest.probe(&format!("owners {writer}"))?;
    let hot = guest.probe(&format!("hot 1000 {writer}"))?;
    let (all, hot_frames) = (figure(&owned, "all.frames")?, figure(&hot, "hot.frames")?);
    assert!(
        hot_frames > 4.0 * PER_MIB && hot_frames < all * 0.75,
        "{hot:?}"
    );
    verify_writer(&mut guest.vm)?;
    results::record("procs_hot", &json!({ "owned": owned, "hot": hot }))
}

#[test]
fn free_frames_are_as_many_as_the_kernel_says() -> Result<()> {
    let mut guest = Guest::boot()?;
    let free = guest.probe("free")?;
    let counted = figure(&free, "free.frames")? * 4.0;
    let told = figure(&free, "memfree.kib")?;
    assert!((counted - told).abs() <= 8.0 * 1024.0, "{free:?}");
    let verdict = guest.sh("guest-procs-probe free | sed -n 's/^verdict //p'")?;
    // Debian's kernel zeroes pages when they are handed out; it said so when it booted.
    assert_eq!(verdict, "safe");
    results::record("procs_free", &json!({ "free": free, "verdict": verdict }))
}

/// Freezes a crowd for a while, and yields what the probe measured.
fn freeze_crowd(guest: &mut Guest, group: &str) -> Result<BTreeMap<String, f64>> {
    let start = "lab-guest crowd 100 4";
    let first = guest.start_in(group, start)?;
    let pids = format!("{first} $(cat /proc/{first}/task/*/children)");
    guest.sh(&format!(
        "until [ $(cat /proc/{first}/task/*/children | wc -w) = 100 ]; do usleep 20000; done; \
         usleep 500000"
    ))?;
    println!(
        "{}",
        guest.sh(&format!("guest-procs-probe freeze 300 {pids}"))?
    );
    println!(
        "{}",
        guest.sh(&format!("guest-procs-probe freeze 300 {pids}"))?
    );
    let measured = guest.probe(&format!("freeze 300 {pids}"))?;
    guest.sh(&format!("kill -9 {pids}"))?;
    assert_eq!(figure(&measured, "frozen.refused")?, 0.0, "{measured:?}");
    assert_eq!(figure(&measured, "thawed.count")?, 101.0, "{measured:?}");
    Ok(measured)
}

#[test]
fn a_crowd_freezes_with_its_group() -> Result<()> {
    let mut guest = Guest::boot()?;
    let measured = freeze_crowd(&mut guest, "crowd")?;
    assert_eq!(figure(&measured, "frozen.whole")?, 101.0);
    results::record("procs_freeze_group", &measured)
}

/// Twenty that want all of both CPUs.
#[test]
fn a_busy_group_freezes() -> Result<()> {
    let mut guest = Guest::boot()?;
    let mut pids = Vec::new();
    for _ in 0..20 {
        pids.push(guest.start_in("busy", "sh -c \"while :; do :; done\"")?);
    }
    let measured = guest.probe(&format!("freeze 300 {}", pids.join(" ")))?;
    assert_eq!(figure(&measured, "frozen.whole")?, 20.0, "{measured:?}");
    results::record("procs_freeze_busy", &measured)
}

/// With one more in their group, who is not to be stopped.
#[test]
fn a_crowd_freezes_apart_from_its_group() -> Result<()> {
    let mut guest = Guest::boot()?;
    guest.start_in("crowd", "sleep 1000")?;
    let measured = freeze_crowd(&mut guest, "crowd")?;
    assert_eq!(figure(&measured, "frozen.own")?, 101.0);
    results::record("procs_freeze_apart", &measured)
}

/// Without control groups there is still a way.
#[test]
fn a_crowd_freezes_without_groups() -> Result<()> {
    let mut guest = Guest::boot()?;
    let first = guest.start_in(".", "lab-guest crowd 0 1")?;
    // The file system is busy until the last who uses it has gone.
    guest.sh(&format!(
        "kill {first}; until umount /sys/fs/cgroup 2>/dev/null; do usleep 20000; done"
    ))?;
    let measured = freeze_crowd(&mut guest, "nowhere")?;
    assert_eq!(figure(&measured, "frozen.traced")?, 101.0);
    results::record("procs_freeze_traced", &measured)
}

/// Who is stopped stands, the others run, and all is as before afterwards.
#[test]
fn a_member_of_a_mixed_group_freezes_alone() -> Result<()> {
    let mut guest = Guest::boot()?;
    let busy = "sh -c \"while :; do :; done\"";
    let stopped = guest.start_in("mixed", busy)?;
    let other = guest.start_in("mixed", busy)?;
    let (probe, frozen) = guest.start_frozen(&format!("freeze 6000 {stopped}"))?;
    assert_eq!(figure(&frozen, "frozen.own")?, 1.0, "{frozen:?}");
    assert_eq!(guest.group_of(&stopped)?, "/mixed/unmoor-frozen");
    assert_eq!(guest.cpu_time_used(&stopped)?, 0);
    assert!(guest.cpu_time_used(&other)? > 0);
    guest.sh(&format!(
        "while [ -e /proc/{probe}/exe ]; do usleep 20000; done"
    ))?;
    assert_eq!(guest.group_of(&stopped)?, "/mixed");
    assert!(guest.cpu_time_used(&stopped)? > 0);
    guest.sh("[ ! -e /sys/fs/cgroup/mixed/unmoor-frozen ] && [ ! -e /run/unmoor-agent/frozen ]")?;
    Ok(())
}

/// Who does not stand in time runs on, whatever the means.
#[test]
fn who_is_late_runs_on() -> Result<()> {
    let mut guest = Guest::boot()?;
    let mut pids = Vec::new();
    for group in ["late", "mixed", "mixed", "."] {
        pids.push(guest.start_in(group, "sh -c \"while :; do :; done\"")?);
    }
    let [whole, own, _, traced] = &pids[..] else {
        bail!("not four");
    };
    let frozen = guest.probe(&format!("freeze-late {whole} {own} {traced}"))?;
    assert!(figure(&frozen, "frozen.refused")? > 0.0, "{frozen:?}");
    for pid in &pids {
        assert!(guest.cpu_time_used(pid)? > 0, "{pid} stands");
    }
    assert_eq!(guest.group_of(own)?, "/mixed");
    guest.sh("[ ! -e /sys/fs/cgroup/mixed/unmoor-frozen ] && [ ! -e /run/unmoor-agent/frozen ]")?;
    Ok(())
}

/// A parent has SIGCHLD blocked: one that was sent would be pending.
#[test]
fn a_parent_is_not_told() -> Result<()> {
    let mut guest = Guest::boot()?;
    let mut seen = Vec::new();
    // In its own group, apart from its parent, and traced.
    for (group, means) in [("family", "frozen.own"), (".", "frozen.traced")] {
        let parent = guest.start_in(group, "guest-procs-probe family 1")?;
        let child = guest.sh(&format!(
            "until [ -n \"$(cat /proc/{parent}/task/*/children)\" ]; do usleep 10000; done; \
             cat /proc/{parent}/task/*/children"
        ))?;
        let pending = format!("sed -n 's/^S[hi][dg]Pnd:.//p' /proc/{parent}/status");
        let frozen = guest.probe(&format!("freeze 300 {child}"))?;
        assert_eq!(figure(&frozen, means)?, 1.0, "{frozen:?}");
        let signals = guest.sh(&pending)?;
        let none = signals
            .lines()
            .all(|set| u64::from_str_radix(set, 16) == Ok(0));
        assert!(none, "{group}: {signals}");
        // The counter-test: an end is told.
        guest.sh(&format!("kill -9 {child}; usleep 200000"))?;
        let signals = guest.sh(&pending)?;
        assert!(signals.contains("10000"), "{group}: {signals}");
        seen.push(json!({ "means": means, "frozen": frozen }));
    }
    results::record("procs_parent", &Value::from(seen))
}

/// Whatever the means: when the one who froze is killed, everything goes on within a second.
#[test]
fn nothing_stays_frozen_when_the_freezer_is_killed() -> Result<()> {
    let mut guest = Guest::boot()?;
    let setting = "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan";
    let scanned = guest.sh(&format!("cat {setting}"))?;
    let busy = "sh -c \"while :; do :; done\"";
    let whole = guest.start_in("whole", busy)?;
    let own = guest.start_in("mixed", busy)?;
    guest.start_in("mixed", "sleep 1000")?;
    start_writer(&mut guest.vm, 16, 30, "full")?;
    let traced = guest.pid_of("lab-guest writer")?;
    let (probe, frozen) = guest.start_frozen(&format!("freeze-and-hang {whole} {own} {traced}"))?;
    for means in ["frozen.whole", "frozen.own", "frozen.traced"] {
        assert_eq!(figure(&frozen, means)?, 1.0, "{frozen:?}");
    }
    for pid in [&whole, &own, &traced] {
        assert_eq!(guest.cpu_time_used(pid)?, 0, "{pid} runs");
    }
    assert_ne!(guest.sh(&format!("cat {setting}"))?, scanned);
    // The kernel counts hundredths of a second there.
    let took = guest.sh(&format!(
        "now() {{ awk '{{print int($1*100)}}' /proc/uptime; }}; begun=$(now); kill -9 {probe}; \
         until grep -q 'frozen 0' /sys/fs/cgroup/whole/cgroup.events \
           && [ ! -e /sys/fs/cgroup/mixed/unmoor-frozen ] \
           && grep -q 'TracerPid:.0' /proc/{traced}/status && [ ! -e /run/unmoor-agent/frozen ]; \
         do [ $(($(now)-begun)) -lt 1000 ] || break; usleep 10000; done; echo $((($(now)-begun)*10))"
    ))?;
    let took: u64 = took.parse()?;
    if took > 1000 {
        bail!("it took {took} ms until everything went on");
    }
    assert_eq!(guest.group_of(&own)?, "/mixed");
    for pid in [&whole, &own] {
        assert!(guest.cpu_time_used(pid)? > 0, "{pid} stands");
    }
    await_writing(&mut guest.vm)?;
    guest.sh("until [ ! -e /run/unmoor-agent/quiet ]; do usleep 10000; done")?;
    assert_eq!(guest.sh(&format!("cat {setting}"))?, scanned);
    verify_writer(&mut guest.vm)?;
    results::record(
        "procs_killed",
        &json!({ "frozen": frozen, "thawed_after_ms": took }),
    )
}

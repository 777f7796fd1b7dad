//! Every way in which processes influence one another, in a real guest: the flow is seen, in the
//! right direction, and makes the right process dependent; the same exchange between two others
//! that nobody outside has to do with leaves them independent.
//!
//! The table in `docs/mechanisms.md` is made here.

use anyhow::{Result, ensure};
use guest_proto::Losses;
use lab::{Host, Kernel, Lab, LabOptions, Vm, VmOptions};
use serde_json::json;
use unmoor::agent::Words;
use unmoor_tests::mechanisms::{Mechanism, judge, judge_leniently, mechanisms, run};

const FOLDER: &str = "/run/m";

/// Whether tasks are preempted in the kernel, probes included: there, it skips probes of some
/// kinds that are running already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Preemption {
    /// Debian's default.
    Voluntary,
    Full,
}

const IS_FULLY_PREEMPTIBLE: &str = "mount -t debugfs debug /sys/kernel/debug && \
    grep -q '(full)' /sys/kernel/debug/sched/preempt";

/// Every mechanism in a guest with that kernel. `name` is that of the recorded table.
fn check(name: &str, kernel: Kernel, preemption: Preemption, words: &str) -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let options = VmOptions {
        memory: "1G".into(),
        agent: true,
        kernel,
        kernel_words: match preemption {
            Preemption::Voluntary => words.into(),
            Preemption::Full => format!("preempt=full {words}"),
        },
        ..VmOptions::default()
    };
    let mut vm = Vm::start(&lab, Host::A, &options)?;
    vm.wait_booted()?;
    if preemption == Preemption::Full {
        vm.guest(IS_FULLY_PREEMPTIBLE)?;
    }
    let mechanisms = mechanisms(&mut vm)?;
    let seen = run(&mut vm, FOLDER)?;
    let (report, skipped) = (&seen.report, &seen.skipped);
    ensure!(!report.processes.is_empty());
    // No kernel of the table lacks a place for one.
    ensure!(seen.probes.lost.is_empty(), "{:?}", seen.probes);
    let lost = report.summary.losses != Losses::default();
    ensure!(
        lost || report.summary.doubt.is_none(),
        "{:?}",
        report.summary
    );

    let words = Words::new(&report.processes);
    let processes = seen.processes();
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for mechanism in &mechanisms {
        let left_out = seen.skips(mechanism);
        let found = if left_out {
            Vec::new()
        } else if lost || preemption == Preemption::Full {
            judge_leniently(mechanism, &processes)
        } else {
            judge(mechanism, &processes, &words)
        };
        rows.push(json!({
            "mechanism": mechanism.name,
            "expectation": mechanism.expectation,
            "direction": mechanism.direction,
            "tested": !left_out,
            "seen": processes
                .get(format!("{}/1b", mechanism.name).as_str())
                .or(processes.get(format!("{}/1a", mechanism.name).as_str()))
                .and_then(|record| words.step(record)),
            "wrong": found,
        }));
        wrong.extend(
            found
                .iter()
                .map(|what| format!("{}: {what}", mechanism.name)),
        );
    }
    lab::results::record(name, &rows)?;
    println!("skipped: {skipped:?}");
    for what in &wrong {
        println!("{what}");
    }
    println!("{} mechanisms, {} wrong", mechanisms.len(), wrong.len());
    println!("{:?}", report.summary);
    assert!(wrong.is_empty());
    if name == DOCUMENTED {
        document(&mechanisms, skipped)?;
    }
    Ok(())
}

/// The record of the run that the documentation tells of.
const DOCUMENTED: &str = "mechanisms";

/// Where a mechanism is seen, as the programs in `crates/agent/bpf` are called.
fn probes(mechanism: &str) -> &'static str {
    match mechanism {
        "udp4-recv" => "lsm/socket_sendmsg, lsm/socket_recvmsg",
        "tcp4-connect" | "tcp6" => "lsm/socket_connect",
        "udp4-send" | "udp6" | "raw-icmp" | "packet" | "uring-send" => "lsm/socket_sendmsg",
        "vsock-ext" => "lsm/socket_connect",
        "lo-tcp4" | "lo-tcp6" | "lo-udp4" | "lo-udp6" | "vsock-lo" | "netlink" => {
            "lsm/socket_sendmsg, lsm/socket_recvmsg"
        }
        "unix-dgram" => "lsm/unix_may_send, lsm/socket_recvmsg",
        "unix-block" | "pipe-block" => "tp_btf/sched_waking",
        name if name.starts_with("unix-") => "lsm/socket_sendmsg, lsm/socket_recvmsg",
        "scm-rights" => "lsm/socket_sendmsg, lsm/file_permission of what was passed",
        "splice" | "uring-splice" => "fentry/do_splice",
        "tee" => "fentry/do_tee",
        "vmsplice" => "fentry/__x64_sys_vmsplice",
        "truncate" => "lsm/path_truncate, lsm/file_truncate",
        "inotify" => "fentry/inotify_handle_inode_event",
        "flock" | "posix-lock" => "lsm/file_lock",
        "file-mmap" | "memfd" | "shm-open" | "sysv-shm" => "lsm/mmap_file",
        "file-private" => "lsm/mmap_file, iter/task_vma",
        "anon-shared" | "map-before" | "futex" => "iter/task_vma",
        "process-vm-w" | "process-vm-r" | "proc-mem" | "ptrace" | "pidfd-getfd" => {
            "lsm/ptrace_access_check"
        }
        "sysv-msg" => "lsm/msg_queue_msgsnd, lsm/msg_queue_msgrcv",
        "sysv-sem" => "lsm/sem_semop",
        "posix-mq" => "fentry/do_mq_timedsend, fentry/do_mq_timedreceive",
        "signal" | "sigqueue" | "pidfd-signal" | "timer-signal" => "tp_btf/signal_generate",
        "fork" | "exec" | "parent-only" => "tp_btf/sched_process_fork",
        "exit-wait" => "tp_btf/sched_waking, tp_btf/signal_generate",
        _ => "lsm/file_permission",
    }
}

/// The table in the documentation is the one that this run makes.
fn document(mechanisms: &[Mechanism], skipped: &[String]) -> Result<()> {
    let mut text = String::from(
        "# Mechanisms\n\nMade by `tests/tests/mechanisms.rs`, which exercises each of them in a real \
         guest: see [agent.md](agent.md).\n\n\
         | mechanism | object | probe | the other process | expected | tested |\n\
         |---|---|---|---|---|---|\n",
    );
    for mechanism in mechanisms {
        let left_out = skipped.contains(&format!("{}/1a", mechanism.name));
        let (other, expected) = match mechanism.expectation.as_str() {
            "linked" => (mechanism.direction.as_str(), "dependent through it"),
            "apart" => (mechanism.direction.as_str(), "not connected"),
            _ => ("-", "direct"),
        };
        text += &format!(
            "| {} | {} | {} | {other} | {expected} | {} |\n",
            mechanism.name,
            mechanism.kind,
            probes(&mechanism.name),
            if left_out { "not in this lab" } else { "yes" },
        );
    }
    let made = lab::results::folder().join("mechanisms.md");
    std::fs::write(&made, &text)?;
    let kept = std::fs::read_to_string(lab::root().join("docs/mechanisms.md")).unwrap_or_default();
    ensure!(
        kept == text,
        "docs/mechanisms.md tells something else: copy {} there",
        made.display()
    );
    Ok(())
}

#[test]
fn every_mechanism_is_seen_and_connects_only_those_who_use_it() -> Result<()> {
    check(DOCUMENTED, Kernel::V6_1, Preemption::Voluntary, "")
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_mechanism_is_seen_on_a_newer_kernel() -> Result<()> {
    check("mechanisms-6.12", Kernel::V6_12, Preemption::Voluntary, "")
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_mechanism_is_seen_on_the_newest_kernel() -> Result<()> {
    check(
        "mechanisms-newest",
        Kernel::NewestCloud,
        Preemption::Voluntary,
        "",
    )
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_mechanism_is_seen_under_preemption() -> Result<()> {
    check("mechanisms-preempt", Kernel::V6_1, Preemption::Full, "")
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_mechanism_is_seen_on_a_newer_kernel_under_preemption() -> Result<()> {
    check(
        "mechanisms-6.12-preempt",
        Kernel::V6_12,
        Preemption::Full,
        "",
    )
}

/// As on distributions that build the BPF LSM but do not switch it on: the same programs, attached
/// one call earlier.
#[test]
#[ignore = "slow: run by make test-slow"]
fn every_mechanism_is_seen_where_the_kernel_has_no_bpf_lsm() -> Result<()> {
    check(
        "mechanisms-fentry",
        Kernel::V6_1,
        Preemption::Voluntary,
        "lsm=lockdown,capability,yama",
    )
}

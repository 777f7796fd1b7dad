//! Every way in which processes influence one another, in a real guest: the flow is seen, in the
//! right direction, and makes the right process dependent; the same exchange between two others
//! that nobody outside has to do with leaves them independent.
//!
//! `lab-guest mechanisms` has two groups for each mechanism. In the first, process `1a` has a
//! contact with the outside before it exchanges something with `1b`; in the second, `2a` and `2b`
//! do the same without the contact. The table in `docs/mechanisms.md` is made here.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use depgraph::{Class, Direction, Interface, ObjectKind, Relation, Source, Via};
use guest_proto::{Losses, ProcessRecord, Reason, Tier};
use lab::{CLIENT, Host, Kernel, Lab, LabOptions, Vm, VmOptions};
use serde_json::json;
use unmoor::agent::{Report, Words};
use unmoor_tests::connect_agent;

/// Longest wait for the mechanisms: they are some 270 processes under emulation.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);
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

/// A line of `lab-guest mechanisms --list`.
#[derive(Debug)]
struct Mechanism {
    name: String,
    expectation: String,
    kind: String,
    direction: String,
}

fn mechanisms(vm: &mut Vm) -> Result<Vec<Mechanism>> {
    let list = vm.guest("lab-guest mechanisms --list")?;
    list.lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, expectation, kind, direction] = fields[..] else {
                bail!("not a mechanism: {line}");
            };
            Ok(Mechanism {
                name: name.into(),
                expectation: expectation.into(),
                kind: kind.into(),
                direction: direction.into(),
            })
        })
        .collect()
}

fn wait_for(vm: &mut Vm, what: &str, command: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while vm.guest(command).is_err() {
        ensure!(Instant::now() < deadline, "never: {what}");
        sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Runs all mechanisms in one window; what was seen, and the members that could not do it here.
fn run(vm: &mut Vm) -> Result<(Report, Vec<String>)> {
    let outside = format!("{CLIENT}:9");
    vm.guest(&format!(
        "setsid lab-guest mechanisms {FOLDER} {outside} >/dev/null 2>&1 </dev/null &"
    ))?;
    wait_for(vm, "ready", &format!("test -e {FOLDER}/ready"))?;
    let (mut client, welcome) = connect_agent(vm)?;
    ensure!(welcome.tier == Tier::Probes, "{welcome:?}");
    let armed = client.arm(Vec::new())?;
    println!("{welcome:?} {armed:?}");
    vm.guest(&format!("touch {FOLDER}/go"))?;
    let finished = format!(
        "cd {FOLDER}; test $(ls | grep -cE '^(done|failed|skipped)\\.') -ge $(ls | grep -c '^ready\\.')"
    );
    wait_for(vm, "all mechanisms done", &finished)?;
    let report = client.report()?;
    client.disarm()?;
    let failed = vm.guest(&format!(
        "cd {FOLDER}; grep . failed.* /dev/null 2>/dev/null; true"
    ))?;
    ensure!(failed.is_empty(), "mechanisms failed: {failed}");
    let skipped = vm.guest(&format!("cd {FOLDER}; ls | grep '^skipped\\.' || true"))?;
    let skipped = skipped
        .lines()
        .filter_map(|line| line.strip_prefix("skipped."))
        .map(|line| line.replacen('.', "/", 1))
        .collect();
    Ok((report, skipped))
}

/// What is wrong with what was seen of a mechanism; nothing if all is as it should be.
fn judge(
    mechanism: &Mechanism,
    processes: &BTreeMap<&str, &ProcessRecord>,
    words: &Words<'_>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let member = |which: &str| processes.get(format!("{}/{which}", mechanism.name).as_str());
    let told = |record: &ProcessRecord| {
        format!(
            "{} ({})",
            Words::class(record.class),
            words.chain(record).join("; ")
        )
    };
    // A raw or packet socket hears everything: holding one is a contact by itself.
    let is_raw = mechanism.kind == "raw";
    for clean in ["2a", "2b"] {
        if !is_raw
            && let Some(record) = member(clean)
            && record.class != Class::Independent
        {
            wrong.push(format!("{clean} is {}", told(record)));
        }
    }
    if let Some(first) = member("1a")
        && !matches!(first.class, Class::Dependent { distance: 0 })
    {
        wrong.push(format!("1a is {}", told(first)));
    }
    let Some(second) = member("1b") else {
        if mechanism.expectation != "direct" {
            wrong.push("1b is not there".into());
        } else if let Some(first) = member("1a")
            && !is_interface(mechanism, first)
        {
            wrong.push(format!("1a is {}", told(first)));
        }
        return wrong;
    };
    match mechanism.expectation.as_str() {
        "linked" if !is_link(mechanism, second) => wrong.push(format!("1b is {}", told(second))),
        "apart" if second.class != Class::Independent => {
            wrong.push(format!("1b is {}", told(second)));
        }
        _ => {}
    }
    wrong
}

/// In direct contact, and through the interface that the mechanism is about.
fn is_interface(mechanism: &Mechanism, record: &ProcessRecord) -> bool {
    let Reason::Source(Source::Outside(external)) = record.reason else {
        return false;
    };
    // The least of a process's contacts is told; each begins with a datagram to the outside only
    // where it is not itself the contact.
    match mechanism.kind.as_str() {
        "udp" => external.interface == Interface::Udp,
        "tcp" => matches!(external.interface, Interface::Tcp),
        "raw" => matches!(
            external.interface,
            Interface::OtherIp { .. } | Interface::Packet
        ),
        "tty" => matches!(external.interface, Interface::Serial { .. }),
        "vsock" => external.interface == Interface::Vsock,
        _ => false,
    }
}

/// One flow away from the contact, through the right kind of object, in the right direction.
fn is_link(mechanism: &Mechanism, record: &ProcessRecord) -> bool {
    let Reason::Flow { via, .. } = record.reason else {
        return false;
    };
    if record.class != (Class::Dependent { distance: 1 }) {
        return false;
    }
    match (mechanism.kind.as_str(), via) {
        (kind, Via::Object { object, ours, .. }) => {
            use ObjectKind as K;
            // A receiving socket is an object of its own, as a pipe is: each direction has one.
            let one_way = matches!(object.kind, K::UnixSocket | K::Udp | K::Pipe)
                || object.kind == K::Tcp && object.b == u64::MAX; // a listening one
            let direction = match mechanism.direction.as_str() {
                "reads" => ours.reads(),
                "writes" => ours.writes(),
                _ => one_way || ours == Direction::Both,
            };
            let kinds: &[ObjectKind] = match kind {
                "pipe" => &[K::Pipe],
                // What was passed is used as well.
                "unix" if mechanism.name == "scm-rights" => &[K::Pipe, K::UnixSocket],
                "trace" if mechanism.name == "pidfd-getfd" => &[K::Pipe],
                "unix" => &[K::UnixSocket],
                "tcp" => &[K::Tcp],
                "udp" => &[K::Udp],
                "vsock" => &[K::Vsock],
                "netlink" => &[K::Netlink],
                "tty" => &[K::Terminal],
                "file" | "lock" => &[K::File],
                "shared-memory" => &[K::SharedMemory, K::File],
                "message-queue" => &[K::MessageQueue],
                "semaphore" => &[K::Semaphore],
                "posix-queue" => &[K::PosixQueue],
                "event" | "watch" => &[K::Event],
                _ => &[],
            };
            direction && kinds.contains(&object.kind)
        }
        // Who was blocked before the window opened is seen when he is woken.
        (
            _,
            Via::Relation {
                relation: Relation::Woke,
                ..
            },
        ) => mechanism.name.ends_with("-block"),
        ("signal", Via::Relation { relation, .. }) => relation == Relation::Signalled,
        ("trace", Via::Relation { relation, .. }) => relation == Relation::Traced,
        ("fork", Via::Relation { relation, .. }) => relation == Relation::Forked,
        ("exit", Via::Relation { relation, .. }) => {
            matches!(relation, Relation::Exited | Relation::Ended)
        }
        _ => false,
    }
}

/// What is wrong where too much may be connected, be it that events were lost or that a preempted
/// process is taken for the one that wakes another: whoever must stay live does not.
fn judge_leniently(
    mechanism: &Mechanism,
    processes: &BTreeMap<&str, &ProcessRecord>,
) -> Vec<String> {
    let expected: &[&str] = match mechanism.expectation.as_str() {
        "linked" => &["1a", "1b"],
        _ => &["1a"],
    };
    expected
        .iter()
        .filter_map(|which| processes.get(format!("{}/{which}", mechanism.name).as_str()))
        .filter(|record| !record.class.stays_live())
        .map(|record| format!("{} is {}", record.name, Words::class(record.class)))
        .collect()
}

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
    let (report, skipped) = run(&mut vm)?;
    ensure!(!report.processes.is_empty());
    let lost = report.summary.losses != Losses::default();
    ensure!(
        lost || report.summary.doubt.is_none(),
        "{:?}",
        report.summary
    );

    let words = Words::new(&report.processes);
    let processes: BTreeMap<&str, &ProcessRecord> = report
        .processes
        .iter()
        .map(|record| (record.name.as_str(), record))
        .collect();
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    for mechanism in &mechanisms {
        let left_out = skipped
            .iter()
            .any(|name| name == &format!("{}/1a", mechanism.name));
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
        document(&mechanisms, &skipped)?;
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

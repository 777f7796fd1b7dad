//! Every way in which processes influence one another, exercised in a real guest, and what a tracker
//! should find.
//!
//! `lab-guest mechanisms` has two groups for each mechanism. In the first, process `1a` has a
//! contact with the outside before it exchanges something with `1b`; in the second, `2a` and `2b`
//! do the same without the contact.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use depgraph::{Class, Direction, Interface, ObjectKind, Relation, Source, Via};
use guest_proto::{ProbeState, ProcessRecord, Reason, Tier};
use lab::{CLIENT, Vm};
use unmoor::agent::{Report, Words};

use crate::connect_agent;

/// Longest wait for the mechanisms: they are some 270 processes under emulation.
const LIMIT: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A line of `lab-guest mechanisms --list`.
#[derive(Debug, Clone)]
pub struct Mechanism {
    /// Its name.
    pub name: String,
    /// `linked`, `direct` or `apart`.
    pub expectation: String,
    /// Through what kind of object.
    pub kind: String,
    /// What the other process does.
    pub direction: String,
}

/// The mechanisms that the guest can exercise.
pub fn mechanisms(vm: &mut Vm) -> Result<Vec<Mechanism>> {
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

/// Waits until a command succeeds in the guest.
pub fn wait_for(vm: &mut Vm, what: &str, command: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while vm.guest(command).is_err() {
        ensure!(Instant::now() < deadline, "never: {what}");
        sleep(LOOK_EVERY);
    }
    Ok(())
}

/// What was seen of all mechanisms in one window.
#[derive(Debug)]
pub struct Seen {
    /// What every process is.
    pub report: Report,
    /// Members that could not do their part here.
    pub skipped: Vec<String>,
    /// The probes that work.
    pub probes: ProbeState,
}

impl Seen {
    /// Whether a mechanism cannot be exercised here.
    pub fn skips(&self, mechanism: &Mechanism) -> bool {
        let first = format!("{}/1a", mechanism.name);
        self.skipped.contains(&first)
    }

    /// The processes by their names.
    pub fn processes(&self) -> BTreeMap<&str, &ProcessRecord> {
        let records = self.report.processes.iter();
        records
            .map(|record| (record.name.as_str(), record))
            .collect()
    }
}

/// Exercises all mechanisms in one window. `folder` is the guest's, and must be fresh.
pub fn run(vm: &mut Vm, folder: &str) -> Result<Seen> {
    begin(vm, folder)?;
    let (mut client, welcome) = connect_agent(vm)?;
    ensure!(welcome.tier == Tier::Probes, "{welcome:?}");
    let probes = client.probe_state()?;
    let armed = client.arm(Vec::new())?;
    println!("{welcome:?} {armed:?}");
    finish(vm, folder)?;
    let report = client.report()?;
    client.disarm()?;
    let failed = vm.guest(&format!(
        "cd {folder}; grep . failed.* /dev/null 2>/dev/null; true"
    ))?;
    ensure!(failed.is_empty(), "mechanisms failed: {failed}");
    let skipped = vm.guest(&format!("cd {folder}; ls | grep '^skipped\\.' || true"))?;
    let skipped = skipped
        .lines()
        .filter_map(|line| line.strip_prefix("skipped."))
        .map(|line| line.replacen('.', "/", 1))
        .collect();
    Ok(Seen {
        report,
        skipped,
        probes,
    })
}

/// Exercises all mechanisms without a window.
pub fn exercise(vm: &mut Vm, folder: &str) -> Result<()> {
    begin(vm, folder)?;
    finish(vm, folder)
}

/// Starts the processes, which then wait.
fn begin(vm: &mut Vm, folder: &str) -> Result<()> {
    let outside = format!("{CLIENT}:9");
    vm.guest(&format!(
        "setsid lab-guest mechanisms {folder} {outside} >/dev/null 2>&1 </dev/null &"
    ))?;
    wait_for(vm, "ready", &format!("test -e {folder}/ready"))
}

/// Has them do their part, and waits for the last.
fn finish(vm: &mut Vm, folder: &str) -> Result<()> {
    vm.guest(&format!("touch {folder}/go"))?;
    let finished = format!(
        "cd {folder}; test $(ls | grep -cE '^(done|failed|skipped)\\.') -ge $(ls | grep -c '^ready\\.')"
    );
    wait_for(vm, "all mechanisms done", &finished)
}

/// Ends all processes of a run.
pub fn clear(vm: &mut Vm) -> Result<()> {
    // The kernel's own threads have such names, too, and bear it.
    vm.guest(
        "for process in /proc/[0-9]*; do \
           grep -qE '^mechanisms$|/[12][ab]' $process/comm 2>/dev/null && \
           kill -9 ${process#/proc/}; done; true",
    )?;
    wait_for(
        vm,
        "the mechanisms' end",
        "! grep -qsE '/[12][ab]' /proc/[0-9]*/comm",
    )
}

/// What is wrong with what was seen of a mechanism; nothing if all is as it should be.
pub fn judge(
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
pub fn judge_leniently(
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

//! Agents that lie while a VM moves: at most the VM pays for it, never the host.

use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use depgraph::{Class, ProcessId};
use guest_proto::{
    Answer, Armed, Candidate, Capabilities, Failure, FrozenReport, PageSet, PageSetBuilder,
    ProbeState, ProcessRecord, Reason, Refusal, Request, Run, Summary, Tier, ToAgent, VERSION,
    Welcome,
};
use lab::VmOptions;
use lab::relay::Unmoor;
use serde_json::Value;
use tempfile::TempDir;
use unmoor_tests::pretender::{message, pretend};
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, relay_memory_limit, start_writer, verify_writer,
};

/// Frames of a guest of 512 MiB.
const FRAMES: u64 = 128 << 10;
const HELD_MAX: u64 = 64 << 20;

const NOBODY: ProcessId = ProcessId {
    pid: 4242,
    start: 17,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// One process owns and writes everything, stands when asked to, and is never called.
    AllIsOneProcess,
    /// Nobody uses any memory.
    AllIsFree,
    /// There is more memory than there is.
    BeyondTheEnd,
}

fn frames(count: u64) -> PageSet {
    let mut set = PageSetBuilder::new(16);
    set.push_run(Run { first: 0, count });
    set.build()
}

fn pages(to: &ToAgent, count: u64) -> Vec<u8> {
    let end = Answer::PagesEnd {
        gone: Vec::new(),
        dropped: 0,
        by_process: vec![(NOBODY, count)],
    };
    let mut bytes = message(to, false, Answer::Pages(frames(count)));
    bytes.extend(message(to, true, end));
    bytes
}

fn record() -> ProcessRecord {
    ProcessRecord {
        id: NOBODY,
        parent: 1,
        name: "liar".into(),
        command: "liar".into(),
        cgroup: "/".into(),
        class: Class::Independent,
        reason: Reason::None,
        anonymous_kib: FRAMES * 4,
        rule: None,
        pause_limit: None,
    }
}

fn lie(lie: Lie, to: &ToAgent) -> Vec<u8> {
    let answer = match &to.request {
        Request::Hello { .. } => Answer::Welcome(Welcome {
            version: VERSION,
            software: "liar".into(),
            kernel: "6.1".into(),
            tier: Tier::Probes,
            capabilities: Capabilities {
                owners: true,
                freezer: true,
            },
        }),
        Request::Survey { .. } => Answer::Candidates(vec![Candidate {
            id: NOBODY,
            anonymous_kib: FRAMES * 4,
        }]),
        Request::Arm { .. } => Answer::Armed(Armed {
            attach_us: 0,
            snapshot_us: 0,
            probes: 0,
            missing: Vec::new(),
        }),
        Request::Report => {
            let mut bytes = message(to, false, Answer::Processes(vec![record()]));
            let summary = Answer::Summary(Summary::default());
            bytes.extend(message(to, true, summary));
            return bytes;
        }
        Request::FreePages if lie != Lie::AllIsFree => Answer::Failed(Failure {
            refusal: Refusal::Unsupported,
            message: "no".into(),
        }),
        Request::Owners { .. } if lie == Lie::AllIsFree => return pages(to, 1),
        Request::Owners { .. } if lie == Lie::BeyondTheEnd => return pages(to, u64::MAX),
        Request::Owners { .. } | Request::Written | Request::FreePages => {
            return pages(to, FRAMES);
        }
        Request::WatchWrites { .. } => Answer::Watching,
        Request::Freeze { .. } => Answer::Frozen(FrozenReport {
            frozen: vec![NOBODY],
            refused: Vec::new(),
            took_us: 0,
        }),
        Request::Dependents { .. } => Answer::Dependents(Vec::new()),
        Request::Renew { .. } => Answer::Renewed,
        Request::Thaw => Answer::Thawed(Vec::new()),
        Request::Disarm => Answer::Disarmed,
        Request::ProbeState => Answer::ProbeState(ProbeState::default()),
    };
    message(to, true, answer)
}

/// A VM that is being moved with such an agent.
struct Moving {
    pair: Pair,
    receiver: Unmoor,
    sender: Unmoor,
    agent: JoinHandle<()>,
    _folder: TempDir,
}

fn begin(what: Lie) -> Result<Moving> {
    let mut pair = Pair::new(&VmOptions::default())?;
    start_writer(&mut pair.source, 64, 20, "full")?;
    let (folder, agent) = pretend(move |to| lie(what, to))?;
    let channel = folder.path().join("agent").display().to_string();
    let receiver = pair.receive(&["--once"])?;
    let limit = format!("{}MiB", HELD_MAX >> 20);
    let sender = pair.send(&["--agent", &channel, "--hold-limit", &limit])?;
    Ok(Moving {
        pair,
        receiver,
        sender,
        agent,
        _folder: folder,
    })
}

impl Moving {
    /// It arrives; the relay has not grown beyond its bound.
    fn arrives(mut self) -> Result<(Pair, Value)> {
        let summary = self.sender.summary(MIGRATION_LIMIT)?;
        assert_eq!(self.receiver.exit(SHORT)?, 0);
        drop(self.sender);
        self.agent.join().ok().context("the liar panicked")?;
        let memory = summary["relay_memory_bytes"].as_u64().unwrap_or(u64::MAX);
        let bound = relay_memory_limit(&summary) + HELD_MAX + 6 * FRAMES;
        ensure!(memory <= bound, "{memory} > {bound}: {summary}");
        // Wherever they are: what is held goes at the end, and the VM stands for it.
        let held = summary["held_peak_pages"].as_u64().unwrap_or(u64::MAX) * 4096;
        ensure!(held <= HELD_MAX, "{summary}");
        assert_eq!(self.pair.source.status()?, "postmigrate");
        Ok((self.pair, summary))
    }
}

#[test]
fn a_process_that_owns_everything_and_never_stands_loses_nothing() -> Result<()> {
    let (mut pair, summary) = begin(Lie::AllIsOneProcess)?.arrives()?;
    ensure!(
        summary["frozen"][0]["name"] == "liar",
        "nothing was believed: {summary}"
    );
    verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)
}

#[test]
fn frames_that_do_not_exist_end_the_conversation_alone() -> Result<()> {
    let (mut pair, summary) = begin(Lie::BeyondTheEnd)?.arrives()?;
    assert_eq!(summary["frozen"].as_array().map(Vec::len), Some(0));
    verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)
}

/// What the guest has thrown away is gone, and nothing else: either it arrives, or, where a device
/// needed what is missing, the destination refuses it and it runs on at the source, whole.
#[test]
fn a_guest_that_declares_all_its_memory_free_harms_itself_alone() -> Result<()> {
    let mut moving = begin(Lie::AllIsFree)?;
    if moving.sender.exit(MIGRATION_LIMIT)? == 0 {
        let (_pair, summary) = moving.arrives()?;
        ensure!(summary["pages_free"].as_u64() > Some(0), "{summary}");
        return Ok(());
    }
    let failed = moving.sender.await_event("failed", SHORT)?;
    assert_eq!(failed["exit"], 1, "{failed}");
    assert_eq!(failed["vm"], "the VM has been resumed at the source");
    ensure!(moving.receiver.exit(SHORT)? != 0, "the receiver is content");
    let mut pair = moving.pair;
    assert_eq!(pair.source.status()?, "running");
    verify_writer(&mut pair.source)?;
    await_writing(&mut pair.source)
}

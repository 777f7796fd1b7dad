//! The agent in a real guest, and what the host makes of agents that are not what they should be.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use depgraph::{Class, ProcessId, Source};
use guest_proto::{
    Answer, Armed, Capabilities, Decided, PageSet, ProbeState, ProcessRecord, Reason, Request,
    ThawReason, Tier, ToAgent, VERSION, Welcome, encode,
};
use lab::client::{RedisReport, Running};
use lab::{Host, Lab, LabOptions, Vm, VmOptions, program, results};
use serde_json::{Value, json};
use unmoor::agent::{Client, Report};
use unmoor_tests::pretender::{message, pretend};
use unmoor_tests::{SHORT, connect_agent, start_writer};

fn guest(lab: &Lab, agent: bool) -> Result<Vm> {
    let options = VmOptions {
        agent,
        ..VmOptions::default()
    };
    let mut vm = Vm::start(lab, Host::A, &options)?;
    vm.wait_booted()?;
    Ok(vm)
}

fn explain(agent: &Path, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("unmoor"));
    command.arg("explain").arg("--agent").arg(agent).args(more);
    Ok(command.output()?)
}

fn named<'a>(report: &'a Report, name: &str) -> Result<&'a ProcessRecord> {
    let found = report.processes.iter().find(|record| record.name == name);
    found.with_context(|| format!("no process {name}"))
}

#[test]
fn explain_tells_who_depends_on_the_outside_and_why() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    start_writer(&mut vm, 64, 20, "full")?;
    let client = Running::redis(&lab, 100)?;
    drop(connect_agent(&vm)?);

    let output = explain(&vm.agent_path(), &["--window", "2s", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let process = |name: &str| {
        let mut all = told["processes"].as_array().into_iter().flatten();
        all.find(|process| process["name"] == name)
            .cloned()
            .context(name.to_owned())
    };
    let redis = process("redis-server")?;
    assert_eq!(redis["class"], "direct", "{redis}");
    let why = redis["why"][0].as_str().unwrap_or("");
    assert!(why.contains("TCP") && why.contains("10.77.0."), "{why}");
    let is_writer = |process: &Value| {
        let command = process["command"].as_str();
        command.is_some_and(|command| command.contains("writer 64"))
            && process["class"] == "independent"
            && process["anonymous_kib"].as_u64() > Some(64 << 10)
            && process["dirty_bytes_per_s"].as_u64() > Some(1 << 20)
    };
    let mut all = told["processes"].as_array().into_iter().flatten();
    assert!(all.any(is_writer), "{told}");
    assert_eq!(told["lost_events"], 0);

    // As people see it.
    let output = explain(&vm.agent_path(), &["--window", "1s"])?;
    let table = String::from_utf8(output.stdout)?;
    assert!(
        table.contains("redis-server") && table.contains("may pause, with"),
        "{table}"
    );
    let rules = [
        "--window",
        "1s",
        "--dot",
        "--rule",
        "always-live name:redis-server",
    ];
    let output = explain(&vm.agent_path(), &rules)?;
    let dot = String::from_utf8(output.stdout)?;
    assert!(
        dot.starts_with("digraph") && dot.contains("marked always-live"),
        "{dot}"
    );
    client.finish::<Value>()?;

    let check = |agent: &Path| -> Result<String> {
        let mut command = Command::new(program("unmoor"));
        command.arg("check").arg("--qmp").arg(vm.qmp_path());
        let output = command.arg("--agent").arg(agent).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let able = check(&vm.agent_path())?;
    assert!(
        able.contains("follows processes, knows page owners, can freeze"),
        "{able}"
    );
    let absent = check(Path::new("/nonexistent"))?;
    assert!(absent.contains("every page live"), "{absent}");
    results::record("explain", &told)
}

#[test]
fn rules_of_the_guest_and_of_the_host_decide() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    start_writer(&mut vm, 16, 1, "full")?;
    let (mut client, _) = connect_agent(&vm)?;
    vm.guest(
        "mkdir -p /etc/unmoor/agent.d; echo 'may-pause exe:*redis*' >/etc/unmoor/agent.d/50.conf; \
         echo nonsense >/etc/unmoor/agent.d/60.conf",
    )?;
    client.arm(Vec::new())?;
    let report = client.report()?;
    let redis = named(&report, "redis-server")?;
    assert_eq!(redis.class, Class::MayPause);
    assert_eq!(redis.reason, Reason::Rule("may-pause exe:*redis*".into()));
    assert!(vm.guest("cat /run/agent.log")?.contains("60.conf:1: "));

    client.arm(vec!["always-live exe:*redis*".parse()?])?;
    let report = client.report()?;
    let redis = named(&report, "redis-server")?;
    assert_eq!(redis.reason, Reason::Source(Source::AlwaysLive));
    Ok(())
}

/// A process that uses more objects than anybody keeps count of is dependent itself; nobody else
/// is, and no event is lost.
#[test]
fn a_process_that_uses_countless_objects_concerns_nobody_else() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    start_writer(&mut vm, 16, 1, "full")?;
    let (mut client, _) = connect_agent(&vm)?;
    vm.guest("(sleep 3; exec lab-guest load pipes 70000) >/run/load 2>&1 </dev/null &")?;
    client.arm(Vec::new())?;
    vm.guest("until grep -q . /run/load; do usleep 100000; done; cat /run/load")?;
    let report = client.report()?;
    assert_eq!(report.summary.doubt, None, "{:?}", report.summary);
    assert_eq!(report.summary.losses.table_full, 0);
    let writer = report
        .processes
        .iter()
        .find(|record| record.command.contains("writer 16"))
        .context("no writer")?;
    assert_eq!(writer.class, Class::Independent, "{:?}", writer.reason);
    results::record(
        "countless_objects",
        &json!({"objects": report.summary.objects, "edges": report.summary.edges}),
    )
}

/// A host that broke off in the middle of a message leaves nothing behind that its successor
/// would stumble over.
#[test]
fn the_agent_understands_the_host_that_comes_after_one_that_broke_off() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let vm = guest(&lab, true)?;
    drop(connect_agent(&vm)?);
    let mut message = Vec::new();
    let request = ToAgent {
        session: 1,
        id: 1,
        request: Request::Arm { rules: Vec::new() },
    };
    encode(&request, &mut message)?;
    for cut in [1, message.len() / 2, message.len() - 1] {
        let mut broken = UnixStream::connect(vm.agent_path())?;
        broken.write_all(&message[..cut])?;
        drop(broken);
        let (mut client, _) = connect_agent(&vm)?;
        client.arm(Vec::new())?;
        ensure!(!client.report()?.processes.is_empty());
        client.disarm()?;
        ensure!(client.report().is_err(), "a report without a window");
    }
    Ok(())
}

#[test]
fn a_guest_without_an_agent_is_told_plainly() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let vm = guest(&lab, false)?;
    let output = explain(&vm.agent_path(), &[])?;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr)?;
    assert!(told.contains("unmoor-agent runs in the guest"), "{told}");
    let output = explain(Path::new("/nonexistent"), &[])?;
    let told = String::from_utf8(output.stderr)?;
    assert!(told.contains("/nonexistent"), "{told}");
    Ok(())
}

/// The writer, in a control group of its own, and a window in which it is independent.
fn writer_in_a_window(vm: &mut Vm, mib: u32) -> Result<(Client, ProcessId)> {
    start_writer(vm, mib, 50, "full")?;
    vm.guest(
        "mkdir /sys/fs/cgroup/batch; for process in /proc/[0-9]*; do \
         tr '\\0' ' ' <$process/cmdline 2>/dev/null | grep -q '^lab-guest writer' && \
         echo ${process#/proc/} >/sys/fs/cgroup/batch/cgroup.procs; done; true",
    )?;
    let (mut client, _) = connect_agent(vm)?;
    client.arm(Vec::new())?;
    let report = client.report()?;
    let is_writer = |record: &&ProcessRecord| record.command.contains("lab-guest writer");
    let writer = report.processes.iter().find(is_writer);
    let writer = writer.context("no writer")?;
    ensure!(writer.class == Class::Independent, "{writer:?}");
    assert_eq!(writer.cgroup, "/batch");
    Ok((client, writer.id))
}

/// The processor time that a process has used, in ticks.
fn used(vm: &mut Vm, id: ProcessId) -> Result<u64> {
    let ticks = vm.guest(&format!("cut -d' ' -f14 /proc/{}/stat", id.pid))?;
    Ok(ticks.trim().parse()?)
}

fn runs(vm: &mut Vm, id: ProcessId) -> Result<()> {
    let before = used(vm, id)?;
    let deadline = Instant::now() + SHORT;
    while used(vm, id)? == before {
        ensure!(Instant::now() < deadline, "{id:?} still stands");
    }
    Ok(())
}

fn stands(vm: &mut Vm, id: ProcessId) -> Result<bool> {
    let before = used(vm, id)?;
    vm.guest("usleep 300000")?;
    Ok(used(vm, id)? == before)
}

const LEASE: Duration = Duration::from_secs(20);
const DEADLINE: Duration = Duration::from_secs(5);

fn freeze(client: &mut Client, id: ProcessId, lease: Duration) -> Result<()> {
    let report = client.freeze(vec![id], lease, DEADLINE)?;
    ensure!(
        report.frozen == [id] && report.refused.is_empty(),
        "{report:?}"
    );
    Ok(())
}

#[test]
fn what_is_frozen_runs_again_whatever_happens() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    let (mut client, writer) = writer_in_a_window(&mut vm, 64)?;

    // The host says so.
    freeze(&mut client, writer, LEASE)?;
    assert!(
        stands(&mut vm, writer)?,
        "the writer runs though it is frozen"
    );
    assert_eq!(client.thaw()?, [writer]);
    runs(&mut vm, writer)?;

    // The host says nothing for too long; while it does, the writer stands.
    freeze(&mut client, writer, Duration::from_secs(2))?;
    for _ in 0..3 {
        assert!(stands(&mut vm, writer)?);
        client.renew(Duration::from_secs(2))?;
    }
    runs(&mut vm, writer)?;
    client.report()?;
    assert_eq!(
        client.news(),
        Some((vec![writer], ThawReason::LeaseExpired))
    );

    // The window ends.
    freeze(&mut client, writer, LEASE)?;
    client.disarm()?;
    runs(&mut vm, writer)?;

    // The agent dies: within a second.
    client.arm(Vec::new())?;
    freeze(&mut client, writer, LEASE)?;
    assert!(stands(&mut vm, writer)?);
    let took = vm.guest(&format!(
        "kill -9 $(pidof unmoor-agent | tr ' ' '\\n' | sort -n | head -n 1); \
         begin=$(cut -d. -f1 /proc/uptime); \
         until grep -q 'frozen 0' /sys/fs/cgroup/batch/cgroup.events; do usleep 10000; done; \
         echo $(($(cut -d. -f1 /proc/uptime) - begin)); cat /proc/{}/cgroup",
        writer.pid
    ))?;
    assert!(took.starts_with("0\n") || took.starts_with("1\n"), "{took}");
    assert!(took.contains("0::/batch"), "{took}");
    runs(&mut vm, writer)
}

#[test]
fn whoever_is_turned_to_while_frozen_answers() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    let (mut client, writer) = writer_in_a_window(&mut vm, 16)?;
    for (way, command) in [
        ("its socket", "lab-guest writer-ctl stat".to_owned()),
        ("a signal", format!("kill -CONT {}", writer.pid)),
    ] {
        client.arm(Vec::new())?;
        freeze(&mut client, writer, LEASE)?;
        assert!(stands(&mut vm, writer)?, "frozen before {way}");
        let begin = Instant::now();
        vm.guest(&command)?;
        runs(&mut vm, writer)?;
        let took = begin.elapsed();
        ensure!(took < LEASE, "{way}: only the end of the lease thawed it");
        let report = client.report()?;
        let news = client.news();
        assert_eq!(news, Some((vec![writer], ThawReason::Called)), "{way}");
        let record = report.processes.iter().find(|record| record.id == writer);
        let record = record.context("no writer")?;
        assert!(record.class.stays_live(), "{way}: {record:?}");
        results::record(
            &format!("called_by_{}", way.replace(' ', "_")),
            &json!({"answered_ms": took.as_millis()}),
        )?;
    }
    Ok(())
}

#[test]
fn dependent_processes_are_not_frozen() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    let outside = Running::redis(&lab, 50)?;
    let (mut client, writer) = writer_in_a_window(&mut vm, 16)?;
    let report = client.report()?;
    let redis = named(&report, "redis-server")?.id;
    let report = client.freeze(vec![redis, writer], LEASE, DEADLINE)?;
    assert_eq!(report.frozen, [writer]);
    assert_eq!(report.refused, [(redis, "it is dependent".to_owned())]);
    client.thaw()?;
    let seen: RedisReport = outside.finish()?;
    assert_eq!((seen.lost, seen.wrong), (0, 0));
    Ok(())
}

#[test]
fn the_agent_tells_which_pages_are_whose() -> Result<()> {
    const FRAMES: u64 = (512 << 20) / 4096;
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = guest(&lab, true)?;
    let (mut client, writer) = writer_in_a_window(&mut vm, 64)?;
    let begin = Instant::now();
    let owned = client.owners(vec![writer], FRAMES)?;
    let owners_ms = begin.elapsed().as_secs_f64() * 1e3;
    let own = (64 << 20) / 4096;
    ensure!(
        (own..own + 1024).contains(&owned.count()),
        "{}",
        owned.count()
    );
    assert_eq!((owned.dropped, owned.gone.len()), (0, 0));
    client.watch_writes(vec![writer])?;
    runs(&mut vm, writer)?;
    let written = client.written(FRAMES)?;
    ensure!(written.count() > 0 && written.count() <= owned.count() + 64);
    let free = client.free_pages(FRAMES)?;
    let told = vm.guest("grep MemFree /proc/meminfo")?;
    let free_kib: u64 = told
        .split_ascii_whitespace()
        .nth(1)
        .context("no MemFree")?
        .parse()?;
    let found_kib = free.count() * 4;
    ensure!(
        found_kib.abs_diff(free_kib) < 32 << 10,
        "{found_kib} of {free_kib} KiB"
    );
    // Beyond the guest's memory there is nothing.
    ensure!(client.free_pages(1000).is_err());
    results::record(
        "page_owners",
        &json!({
            "owned": owned.count(),
            "written": written.count(),
            "free": free.count(),
            "owners_ms_per_gib": owners_ms * 16.0,
        }),
    )
}

fn polite(to: &ToAgent) -> Vec<u8> {
    let answer = match to.request {
        Request::Hello { .. } => Answer::Welcome(Welcome {
            version: VERSION,
            software: "hostile".into(),
            kernel: "\u{1b}[2J".into(),
            tier: Tier::Probes,
            capabilities: Capabilities::default(),
        }),
        Request::Arm { .. } => Answer::Armed(Armed {
            attach_us: u64::MAX,
            snapshot_us: u64::MAX,
            probes: 0,
            missing: Vec::new(),
        }),
        Request::ProbeState => Answer::ProbeState(ProbeState::default()),
        _ => Answer::Disarmed,
    };
    message(to, true, answer)
}

/// Ends with an error that has these words, and without having grown.
fn refused(answer: impl Fn(&ToAgent) -> Vec<u8> + Send + 'static, words: &str) -> Result<()> {
    let (folder, agent) = pretend(answer)?;
    let path = folder.path().join("agent");
    // The limit makes a host that keeps what it is sent fail.
    let command = format!(
        "ulimit -v 400000; exec {} explain --window 10ms --agent {}",
        program("unmoor").display(),
        path.display()
    );
    let output = Command::new("sh").args(["-c", &command]).output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains(words), "{told}");
    agent.join().ok().context("the agent panicked")
}

#[test]
fn a_hostile_agent_costs_the_host_little() -> Result<()> {
    refused(
        |_| b"\0login: \0".repeat(20_000),
        "not the agent's protocol",
    )?;
    refused(|_| vec![1; 64 << 20], "no agent answers")?;
    refused(
        |to| match to.request {
            Request::Report => message(to, false, Answer::Processes(Vec::new())).repeat(20_000),
            _ => polite(to),
        },
        "no end",
    )?;
    refused(polite, "not asked")?;
    // Records that contradict each other, with texts that play tricks.
    let circle = |to: &ToAgent| {
        let record = |pid: u32, toward: u32| ProcessRecord {
            id: ProcessId { pid, start: 0 },
            parent: pid,
            name: "\u{1b}[31m".into(),
            command: String::new(),
            cgroup: "/".into(),
            class: Class::Dependent { distance: u32::MAX },
            reason: Reason::Flow {
                via: depgraph::Via::Relation {
                    relation: depgraph::Relation::Woke,
                    by_us: true,
                },
                toward: ProcessId {
                    pid: toward,
                    start: 0,
                },
                object: "\u{7}".into(),
            },
            anonymous_kib: u64::MAX,
            rule: Some(Decided {
                rule: "\u{1b}[1m".into(),
                from: "\u{1b}[1m".into(),
            }),
            pause_limit: None,
        };
        let records = vec![record(1, 2), record(2, 1), record(2, 3)];
        let mut bytes = message(to, false, Answer::Processes(records));
        bytes.extend(message(
            to,
            true,
            Answer::Summary(guest_proto::Summary::default()),
        ));
        bytes
    };
    // Page frames that no guest has.
    let beyond = Answer::Pages(PageSet::of(vec![1, 1 << 50]));
    refused(
        move |to| match to.request {
            Request::Report => circle(to),
            Request::WatchWrites { .. } => message(to, true, Answer::Watching),
            Request::Written => message(to, false, beyond.clone()),
            _ => polite(to),
        },
        "beyond number",
    )?;
    let (folder, agent) = pretend(move |to| match to.request {
        Request::Report => circle(to),
        _ => polite(to),
    })?;
    let quick = ["--window", "10ms", "--sample", "0s"];
    let output = explain(&folder.path().join("agent"), &quick)?;
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.contains(&0x1b) && !output.stdout.contains(&7));
    assert!(!output.stderr.contains(&0x1b), "{output:?}");
    agent.join().ok().context("the agent panicked")?;
    Ok(())
}

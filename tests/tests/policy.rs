//! Rules of the administrator, from the guest's files and from the host, on real QEMU.

use anyhow::{Context, Result, ensure};
use depgraph::{Class, ProcessId};
use guest_proto::{ProcessRecord, Reason};
use lab::{Host, Lab, LabOptions, Vm, VmOptions};
use serde_json::Value;
use unmoor::agent::Report;
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, await_writing, connect_agent, verify_writer};

fn guest() -> VmOptions {
    VmOptions {
        agent: true,
        ..VmOptions::default()
    }
}

/// A writer that is too fast for the link; what it has to read from is the caller's.
fn start_writer(vm: &mut Vm, input: &str) -> Result<()> {
    vm.guest(&format!(
        "lab-guest writer 100 0 full <{input} >/run/writer.log 2>&1 & \
         until grep -q ready /run/writer.log; do usleep 20000; done"
    ))?;
    Ok(())
}

fn writer(report: &Report) -> Result<&ProcessRecord> {
    let mut all = report.processes.iter();
    let found = all.find(|record| record.command.contains("lab-guest writer"));
    found.context("no writer")
}

/// Moves the VM. The downtime may be so long that the writer can be moved live as well.
fn moved(pair: &mut Pair, more: &[&str]) -> Result<(Value, Vec<Value>)> {
    let to = pair.destination.agent_path().display().to_string();
    let from = pair.source.agent_path().display().to_string();
    let mut receiver = pair.receive(&["--once", "--agent", &to])?;
    let mut args = vec!["--agent", &from, "--downtime-limit", "5s"];
    args.extend(more);
    let mut sender = pair.send(&args)?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0, "{:?}", receiver.events());
    verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)?;
    Ok((summary, sender.events().to_vec()))
}

fn frozen(summary: &Value) -> usize {
    summary["frozen"].as_array().map_or(0, Vec::len)
}

#[test]
fn what_a_policy_file_keeps_live_is_not_paused() -> Result<()> {
    let mut pair = Pair::new(&guest())?;
    start_writer(&mut pair.source, "/dev/null")?;
    drop(connect_agent(&pair.source)?);
    let policy = pair.lab.run_dir().join("policy");
    std::fs::write(&policy, "# of the host\nalways-live name:lab-guest\n")?;
    let policy = policy.display().to_string();
    let (summary, _) = moved(&mut pair, &["--policy", &policy])?;
    assert_eq!(frozen(&summary), 0, "{summary}");
    Ok(())
}

#[test]
fn a_pause_beyond_its_limit_spares_a_process() -> Result<()> {
    let mut pair = Pair::new(&guest())?;
    start_writer(&mut pair.source, "/dev/null")?;
    // The guest says so; the host's own rule about others is no obstacle.
    pair.source.guest(
        "mkdir -p /etc/unmoor/agent.d; \
         echo 'pause-limit name:lab-guest up-to 700ms' >/etc/unmoor/agent.d/50.conf",
    )?;
    drop(connect_agent(&pair.source)?);
    let rule = "may-pause cgroup:/nobody* up-to 20s";
    let (summary, events) = moved(&mut pair, &["--rule", rule])?;
    assert_eq!(frozen(&summary), 0, "{summary}");
    let told = events.iter().find(|event| event["event"] == "live");
    let why = told.and_then(|event| event["why"].as_str()).unwrap_or("");
    assert!(
        why.starts_with("it would stand for") && why.ends_with("and may for 0.7 s"),
        "{why}: {events:?}"
    );
    Ok(())
}

#[test]
fn a_dependent_process_that_may_pause_is_paused() -> Result<()> {
    let mut pair = Pair::new(&guest())?;
    // Whoever holds a device may be spoken to through it.
    start_writer(&mut pair.source, "/dev/rtc0")?;
    let (mut client, _) = connect_agent(&pair.source)?;
    client.arm(Vec::new())?;
    let report = client.report()?;
    let before = writer(&report)?;
    assert_eq!(before.class, Class::Dependent { distance: 0 }, "{before:?}");
    assert_eq!((&before.rule, &before.pause_limit), (&None, &None));
    client.disarm()?;
    drop(client);
    let rule = "may-pause exe:*/lab-guest up-to 20s";
    let (summary, _) = moved(&mut pair, &["--rule", rule, "--max-pause", "100ms"])?;
    assert_eq!(frozen(&summary), 1, "{summary}");
    Ok(())
}

#[test]
fn a_policy_that_is_wrong_is_told_with_file_and_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("policy");
    let told = |text: &str| -> Result<(Option<i32>, String)> {
        std::fs::write(&file, text)?;
        let mut command = std::process::Command::new(lab::program("unmoor"));
        command.args(["explain", "--agent", "/nonexistent", "--policy"]);
        let output = command.arg(&file).output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, words) = told("# ours\nsink pid:1\n\nlive exe:/a\nsink pid:2 up-to 1s\n")?;
    assert_eq!(code, Some(2), "{words}");
    for part in [
        "policy:4: a rule begins with always-live, may-pause, sink or pause-limit",
        "policy:5: up-to goes with may-pause and pause-limit",
    ] {
        assert!(words.contains(part), "{words}");
    }
    let (code, words) = told(&format!("sink name:{}\n", "x".repeat(40 << 10)))?;
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("is at most 32768"), "{words}");
    // What is right gets as far as the agent.
    let (code, words) = told("may-pause cgroup:/batch* up-to 20s\n")?;
    assert_eq!(code, Some(1), "{words}");
    std::fs::remove_file(&file)?;
    let mut command = std::process::Command::new(lab::program("unmoor"));
    command.args(["explain", "--agent", "/nonexistent", "--policy"]);
    let output = command.arg(&file).output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr)?.contains("No such file"));
    Ok(())
}

/// The class of a process, and its reason.
fn of(report: &Report, id: ProcessId) -> Result<(Class, &Reason)> {
    let record = report.processes.iter().find(|record| record.id == id);
    record
        .map(|record| (record.class, &record.reason))
        .context("gone")
}

#[test]
fn units_that_face_clients_stay_live() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = Vm::start(&lab, Host::A, &guest())?;
    vm.wait_booted()?;
    start_writer(&mut vm, "/dev/null")?;
    let (mut client, _) = connect_agent(&vm)?;
    client.arm(Vec::new())?;
    let report = client.report()?;
    let writer = writer(&report)?.id;
    let redis = report.processes.iter().find(|r| r.name == "redis-server");
    let redis = redis.context("no redis")?.id;
    assert_eq!(of(&report, writer)?.0, Class::Independent);

    // Both in one unit, the writer deeper in it.
    vm.guest(&format!(
        "mkdir -p /sys/fs/cgroup/web.slice/web.service/workers; cd /sys/fs/cgroup/web.slice/web.service; \
         echo {} >cgroup.procs; echo {} >workers/cgroup.procs",
        redis.pid, writer.pid
    ))?;
    let facing = "always-live facing:clients".parse()?;
    client.arm(vec![facing])?;
    let report = client.report()?;
    let (class, reason) = of(&report, writer)?;
    assert!(class.stays_live());
    let expected = Reason::Unit {
        unit: "web.service".into(),
        facing: redis,
    };
    assert_eq!(reason, &expected);
    let told = unmoor::agent::Words::new(&report.processes);
    let record = report.processes.iter().find(|record| record.id == writer);
    let words = told.chain(record.context("gone")?);
    assert_eq!(
        words,
        [format!(
            "web.service faces the outside through redis-server ({}): always-live facing:clients (host)",
            redis.pid
        )]
    );
    assert!(matches!(of(&report, redis)?.1, Reason::Source(_)));
    let second = std::time::Duration::from_secs(1);
    let refused = client.freeze(vec![writer], second, second)?;
    assert!(refused.frozen.is_empty(), "{refused:?}");

    // What is said of the processes themselves comes before what is said of their unit.
    let rules = [
        "always-live facing:clients",
        "may-pause name:lab-guest up-to 20s",
    ];
    let rules = rules
        .map(str::parse)
        .into_iter()
        .collect::<Result<_, _>>()?;
    client.arm(rules)?;
    let report = client.report()?;
    assert_eq!(of(&report, writer)?.0, Class::MayPause);
    Ok(())
}

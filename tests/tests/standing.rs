//! A guest whose kernel takes no probes: the agent says so, and knows what stands.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use depgraph::{Class, Interface, Source, Uncertainty};
use guest_proto::{ProcessRecord, Reason, Tier};
use lab::{GUEST, Host, Lab, LabOptions, Vm, VmOptions};
use unmoor::agent::{Client, Report};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn is_dependent(record: &ProcessRecord) -> bool {
    record.class.stays_live()
}

/// The only process that was started as that.
fn of<'a>(report: &'a Report, command: &str) -> Result<&'a ProcessRecord> {
    let record = report.processes.iter().find(|it| it.command == command);
    record.with_context(|| format!("no process `{command}` in {:?}", report.processes))
}

fn interface(record: &ProcessRecord) -> Option<Interface> {
    match record.reason {
        Reason::Source(Source::Outside(external)) if external.standing => Some(external.interface),
        _ => None,
    }
}

#[test]
fn without_probes_whoever_runs_or_has_a_way_out_is_dependent() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = Vm::start(&lab, Host::A, &VmOptions::default())?;
    vm.wait_booted()?;
    // The kernel's type information, which the probes cannot do without.
    vm.guest("mount -t tmpfs none /sys/kernel/btf")?;
    for command in [
        "lab-guest writer 16 0 touch",
        "sleep 1000",
        "nc -l -p 7100",
        "httpd -f -p 127.0.0.1:7102",
        "unmoor-agent",
    ] {
        vm.guest(&format!("setsid {command} >/dev/null 2>&1 </dev/null &"))?;
    }
    // One that does not come to the end of its input.
    vm.guest("(sleep 2000 | setsid nc -l -p 7101) >/dev/null 2>&1 </dev/null &")?;
    let sockets = "cat /proc/net/tcp /proc/net/tcp6";
    for port in [7100, 7101, 7102] {
        wait_for(
            &mut vm,
            &format!("{sockets} | grep -qE ':{port:04X} 0+:0000 0A'"),
        )?;
    }
    let connect = format!("exec 3<>/dev/tcp/{GUEST}/7101 && echo up && exec sleep 1000");
    let mut peer = lab
        .command(Host::Client, "bash")
        .args(["-c", &connect])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = peer.stdout.take().context("no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line == "up\n");
    // And somebody holds it.
    let accepted = "awk '/:1BBD / && $4 == \"01\" && $10 != 0 { found = 1 } END { exit !found }'";
    wait_for(&mut vm, &format!("{sockets} | {accepted}"))?;

    let (mut client, welcome) = Client::connect(&vm.agent_path())?;
    let Tier::StandingFactsOnly { reason } = &welcome.tier else {
        bail!("{welcome:?}");
    };
    assert!(reason.contains("BTF"), "{reason}");
    let armed = client.arm(Vec::new())?;
    println!("{reason}: {armed:?}");
    assert_eq!(armed.probes, 0);

    let deadline = Instant::now() + LIMIT;
    let report = loop {
        let report = client.report()?;
        if is_dependent(of(&report, "lab-guest writer 16 0 touch")?) || Instant::now() > deadline {
            break report;
        }
        sleep(LOOK_EVERY);
    };
    let writer = of(&report, "lab-guest writer 16 0 touch")?;
    let untracked = Reason::Source(Source::Uncertain(Uncertainty::Untracked));
    assert_eq!(writer.reason, untracked);
    for idle in ["sleep 1000", "sleep 2000", "httpd -f -p 127.0.0.1:7102"] {
        let record = of(&report, idle)?;
        assert_eq!(record.class, Class::Independent, "{record:?}");
    }
    for (command, way) in [
        ("nc -l -p 7100", Interface::TcpListening),
        ("nc -l -p 7101", Interface::Tcp),
    ] {
        let record = of(&report, command)?;
        assert_eq!(interface(record), Some(way), "{record:?}");
    }
    peer.kill()?;
    peer.wait()?;
    Ok(())
}

fn wait_for(vm: &mut Vm, command: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while vm.guest(command).is_err() {
        ensure!(Instant::now() < deadline, "never: {command}");
        sleep(LOOK_EVERY);
    }
    Ok(())
}

//! Real services, shells, pipelines and containers in a Debian guest: what every single process
//! of it should be, and what the agent says.
//!
//! Everything is started by systemd before the window opens (`scenarios/start.sh`), clients
//! outside drive part of it while the window is open, and each process is then compared with the
//! table of [`expectations`].
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use depgraph::Class;
use guest_proto::{ProcessRecord, Tier};
use lab::client::{RedisReport, Running};
use lab::{GUEST, Host, Lab, LabOptions, Vm, VmOptions};
use serde_json::{Value, json};
use unmoor::agent::{Client, Report, Words};

const PROGRAMS: &str = include_str!("scenarios/programs.py");
const START: &str = include_str!("scenarios/start.sh");

const WINDOW: Duration = Duration::from_secs(10);
const KEY_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for the clients' first answers: an interpreter starts slowly under emulation.
const WARM_LIMIT: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const REDIS_RATE: u32 = 50;

/// Of all processes, in percent.
const FALSE_DEPENDENTS_MAX: f64 = 10.0;
const AGENT_MEMORY_MAX_KIB: u64 = 32 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Dependent,
    Independent,
    Sink,
}
use Expected::{Dependent, Independent, Sink};

/// What processes should be: the first that fits decides.
struct Expectation {
    /// A part of the control group's path.
    group: &'static str,
    /// A part of the command line.
    command: &'static str,
    /// So many there are at least.
    least: usize,
    expected: Expected,
    because: &'static str,
}

const fn row(
    group: &'static str,
    command: &'static str,
    least: usize,
    expected: Expected,
    because: &'static str,
) -> Expectation {
    Expectation {
        group,
        command,
        least,
        expected,
        because,
    }
}

/// Every process of the guest. The rules are those of the design's dependency model.
#[rustfmt::skip]
fn expectations() -> Vec<Expectation> {
    vec![
        // 1. Redis and batch jobs.
        row("redis-server", "", 1, Dependent, "clients outside use it"),
        row("s1-batch", "", 1, Independent, "computes"),
        row("s1-chess", "", 1, Independent, "computes, tells the journal"),
        // 2. nginx and what is behind it.
        row("nginx.service", "master", 1, Dependent, "holds the listening socket (rule 2)"),
        row("nginx.service", "worker", 1, Dependent, "serves clients outside"),
        row("s2-backend", "", 1, Dependent, "answers nginx"),
        row("s2-tail", "sh -c", 1, Independent, "merely the parent (rule 5)"),
        row("s2-tail", "", 1, Dependent, "reads the log that nginx writes (rule 3)"),
        row("s2-own-server", "", 1, Independent, "asked from inside only"),
        row("s2-own-client", "", 1, Independent, "asks inside only"),
        // 3. PostgreSQL.
        row("s3-web", "programs.py", 1, Dependent, "serves a client outside"),
        row("s3-web", "psql", 1, Dependent, "asked by that server"),
        row("postgresql", " driven ", 1, Dependent, "asked by that psql"),
        row("postgresql", " own ", 1, Dependent, "shares memory with that backend (rule 4)"),
        row("postgresql", "", 6, Dependent, "shares memory with that backend (rule 4)"),
        row("s3-own", "sh -c", 1, Independent, "merely the parent (rule 5)"),
        row("s3-own", "", 2, Dependent, "asks a backend that shares memory with the driven one"),
        // 4. Pipelines.
        row("s4-out", "sh -c", 1, Independent, "merely the parent (rule 5)"),
        row("s4-out", "", 3, Dependent, "a pipeline to the network"),
        row("s4-file", "", 4, Independent, "a pipeline to a file that nobody reads"),
        // 5. Shells.
        row("ssh.service", "", 1, Dependent, "listens (rule 2)"),
        row("/session-", "sshd: ", 3, Dependent, "has an established connection"),
        row("/session-", "driven-shell", 1, Dependent, "somebody types"),
        row("/session-", "idle-shell", 1, Independent, "nobody types: thawed when somebody does"),
        row("/session-", "compute", 1, Independent, "silent since before the window"),
        row("/session-", "dots", 1, Dependent, "writes to the terminal"),
        row("/session-", "sleep 1000", 1, Dependent, "begun by sshd in the window (rule 5)"),
        row("/session-", "", 0, Dependent, "typed in the driven shell, in the window"),
        row("/user@0.service", "", 1, Sink, "a systemd (rule 6)"),
        // 6. The journal.
        row("s6-", "", 3, Independent, "the journal passes nothing on (rule 6)"),
        // 7. Containers.
        row("s7-pids", "", 4, Independent, "a pipeline in a PID namespace of its own"),
        row("s7-net-", "", 2, Independent, "the loopback of a network namespace of its own"),
        // 8. Everything else.
        row("s8-", "", 2, Independent, "hubs pass nothing on (rule 6)"),
        row("/init.scope", "", 1, Sink, "PID 1 (rule 6)"),
        row("systemd-journald", "", 1, Sink, "a hub (rule 6)"),
        row("systemd-udevd", "", 1, Sink, "a hub (rule 6)"),
        row("systemd-logind", "", 1, Sink, "a hub (rule 6)"),
        row("dbus.service", "", 1, Sink, "a hub (rule 6)"),
        row("cron.service", "", 1, Independent, "nothing outside concerns it"),
        row("getty@tty", "", 0, Dependent, "listens to a console (rule 1)"),
        row("lab-echo", "", 1, Dependent, "bound to a port (rule 2)"),
        row("lab-control", "", 1, Dependent, "has a virtio port (rule 1)"),
    ]
}

/// A loop of bash where the clients are, and the lines that it writes for each answer.
struct Driver {
    child: Child,
    output: PathBuf,
    keys: Option<ChildStdin>,
}

impl Driver {
    fn start(lab: &Lab, name: &str, script: &str) -> Result<Self> {
        Self::spawn(lab, name, "bash", &["-c", script], Stdio::null())
    }

    /// A shell in the guest, under this name; it reads commands.
    fn shell(lab: &Lab, name: &str, commands: &str) -> Result<Self> {
        let mut shell = Self::ssh(lab, name, &["-tt"], &[])?;
        shell.type_in(&format!("exec -a {name} bash\n{commands}"))?;
        Ok(shell)
    }

    fn ssh(lab: &Lab, name: &str, options: &[&str], command: &[&str]) -> Result<Self> {
        let key = lab.run_dir().join("key").display().to_string();
        let address = format!("root@{GUEST}");
        let mut arguments = vec!["-F", "none", "-i", &key];
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "BatchMode=yes",
        ] {
            arguments.extend(["-o", option]);
        }
        arguments.extend(options);
        arguments.push(&address);
        arguments.extend(command);
        let mut ssh = Self::spawn(lab, name, "ssh", &arguments, Stdio::piped())?;
        ssh.keys = ssh.child.stdin.take();
        Ok(ssh)
    }

    fn spawn(lab: &Lab, name: &str, program: &str, args: &[&str], stdin: Stdio) -> Result<Self> {
        let output = lab.run_dir().join(format!("{name}.out"));
        let child = lab
            .command(Host::Client, program)
            .args(args)
            .stdin(stdin)
            .stdout(File::create(&output)?)
            .stderr(File::create(output.with_extension("err"))?)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Driver {
            child,
            output,
            keys: None,
        })
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        let keys = self.keys.as_mut().context("it has no keyboard")?;
        keys.write_all(text.as_bytes())?;
        Ok(())
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    fn answers(&self) -> usize {
        self.heard().lines().count()
    }

    fn wait_for(&self, what: &str) -> Result<()> {
        let deadline = Instant::now() + WARM_LIMIT;
        while !self.heard().contains(what) {
            let error = fs::read_to_string(self.output.with_extension("err"));
            ensure!(
                Instant::now() < deadline,
                "{} never gets `{what}`: {}{error:?}",
                self.output.display(),
                self.heard(),
            );
            sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a file in the guest, where commands are single lines.
fn put(vm: &mut Vm, path: &str, text: &str) -> Result<()> {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('\'', "\\047")
        .replace('\n', "\\n")
        .replace('%', "%%");
    vm.guest(&format!("printf '{escaped}' >{path}"))?;
    Ok(())
}

/// The clients outside, each with its first answer.
fn drivers(lab: &Lab, vm: &mut Vm) -> Result<(Vec<Driver>, Driver, Driver)> {
    let http = format!(
        "while exec 3<>/dev/tcp/{GUEST}/8080; do printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; \
         grep hello <&3; sleep 0.3; done"
    );
    let database = format!(
        "exec 3<>/dev/tcp/{GUEST}/5480; while echo >&3; read -r line <&3; do \
         echo \"$line hello\"; sleep 0.3; done"
    );
    let pipeline = format!("exec 3<>/dev/tcp/{GUEST}/9000; grep -n --line-buffered y <&3");
    let clients = vec![
        Driver::start(lab, "http", &http)?,
        Driver::start(lab, "database", &database)?,
        Driver::start(lab, "pipeline", &pipeline)?,
    ];
    let key = lab.run_dir().join("key");
    fs::write(&key, vm.guest("cat /root/.ssh/scenario")?)?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let jobs = "cd /opt/scenarios\nnice -n 19 python3 programs.py compute &\n\
                python3 programs.py dots &\n";
    let driven = Driver::shell(lab, "driven-shell", jobs)?;
    let idle = Driver::shell(lab, "idle-shell", "echo ready=$((40 + 2))\n")?;
    for (client, what) in clients.iter().zip(["hello", "hello", "y"]) {
        client.wait_for(what)?;
    }
    driven.wait_for("....")?;
    idle.wait_for("ready=42")?;
    Ok((clients, driven, idle))
}

/// The number that a command prints.
fn number(vm: &mut Vm, command: &str) -> Result<u64> {
    let text = vm.guest(command)?;
    text.trim().parse().with_context(|| text.clone())
}

/// The processes that were there before the window, but for the kernel's and the agent.
fn old_processes(vm: &mut Vm, opened: Instant) -> Result<BTreeSet<u32>> {
    let age = opened.elapsed().as_secs() + 2;
    let list = vm.guest(&format!(
        "ps -eo pid=,ppid=,etimes=,comm= | \
         awk '$1 != 2 && $2 != 2 && $3 > {age} && $4 != \"unmoor-agent\" {{ print $1 }}'"
    ))?;
    Ok(list.lines().map(|pid| pid.parse().unwrap()).collect())
}

/// The processes of a unit, as the first PID namespace numbers them.
fn pids_of(vm: &mut Vm, unit: &str) -> Result<BTreeSet<u32>> {
    let list = vm.guest(&format!(
        "cat /sys/fs/cgroup/system.slice/{unit}.service/cgroup.procs"
    ))?;
    Ok(list.lines().map(|pid| pid.parse().unwrap()).collect())
}

/// How a process compares.
fn is_wrong(expected: Expected, class: Class) -> Option<&'static str> {
    let lives = class.stays_live();
    match expected {
        Dependent | Sink if !lives => Some("false independent"),
        Independent if lives => Some("false dependent"),
        // It lives, but ties others together.
        Sink if class != Class::Sink => Some("no sink"),
        _ => None,
    }
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn real_programs_are_what_they_should_be() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let options = VmOptions {
        memory: "2G".into(),
        ..VmOptions::debian()
    };
    let mut vm = Vm::start(&lab, Host::A, &options)?;
    vm.wait_booted()?;
    vm.guest("mkdir -p /opt/scenarios")?;
    put(&mut vm, "/opt/scenarios/programs.py", PROGRAMS)?;
    put(&mut vm, "/opt/scenarios/start.sh", START)?;
    vm.guest("systemctl is-active unmoor-agent && bash /opt/scenarios/start.sh 2>&1")?;
    let redis = Running::redis(&lab, REDIS_RATE)?;
    let (clients, mut driven, _idle) = drivers(&lab, &mut vm)?;

    let (mut agent, welcome) = Client::connect(&vm.agent_path())?;
    ensure!(welcome.tier == Tier::Probes, "{welcome:?}");
    let before: Vec<usize> = clients.iter().map(Driver::answers).collect();
    let armed = agent.arm(Vec::new())?;
    let opened = Instant::now();
    let login = Driver::ssh(&lab, "login", &[], &["echo begun; exec sleep 1000"])?;
    while opened.elapsed() < WINDOW {
        driven.type_in("logger typed; loginctl --no-pager\n")?;
        sleep(KEY_EVERY);
    }
    login.wait_for("begun")?;
    let asked = Instant::now();
    let report = agent.report()?;
    let report_ms = asked.elapsed().as_secs_f64() * 1e3;
    let after: Vec<usize> = clients.iter().map(Driver::answers).collect();
    // Its own memory, and the kernel's for its probes and their tables.
    let agent_kib = number(
        &mut vm,
        "awk '$1 == \"VmRSS:\" { print $2 }' /proc/$(pidof unmoor-agent)/status",
    )?;
    let tables_kib = number(
        &mut vm,
        "awk '$1 == \"memlock:\" { sum += $2 } END { print int(sum / 1024) }' \
         /proc/$(pidof unmoor-agent)/fdinfo/*",
    )?;
    // All but the short-lived ones are still there.
    let seen: BTreeSet<u32> = report.processes.iter().map(|one| one.id.pid).collect();
    let in_namespace = pids_of(&mut vm, "s7-pids")?;
    let old = old_processes(&mut vm, opened)?;
    let ended = Instant::now();
    agent.disarm()?;
    let disarm_ms = ended.elapsed().as_secs_f64() * 1e3;
    let redis: RedisReport = redis.finish()?;

    let (rows, wrong) = compare(&report);
    let (count, share) = totals(&report, &wrong);
    let figures = json!({
        "processes": count,
        "false_independents": wrong["false independent"],
        "false_dependents": wrong["false dependent"],
        "no_sinks": wrong["no sink"],
        "unforeseen": wrong["unforeseen"],
        "false_dependents_percent": share,
        "attach_us": armed.attach_us,
        "snapshot_us": armed.snapshot_us,
        "probes": armed.probes,
        "missing_probes": armed.missing,
        "report_ms": report_ms,
        "disarm_ms": disarm_ms,
        "window_ms": report.summary.window_ms,
        "edges": report.summary.edges,
        "objects": report.summary.objects,
        "graph_processes": report.summary.processes,
        "lost_table_full": report.summary.losses.table_full,
        "lost_probes_skipped": report.summary.losses.probes_skipped,
        "agent_rss_kib": agent_kib,
        "agent_tables_kib": tables_kib,
    });
    println!("{figures:#}");
    lab::results::record("scenarios", &json!({ "figures": figures, "rows": rows }))?;

    ensure!(report.summary.doubt.is_none(), "{:?}", report.summary);
    for (before, after) in before.iter().zip(&after) {
        assert!(after > before, "a client outside heard nothing: {after:?}");
    }
    assert!(redis.answered > 0 && redis.lost == 0, "{redis:?}");
    assert!(in_namespace.len() >= 4 && in_namespace.is_subset(&seen));
    assert!(old.len() > 40 && old.is_subset(&seen), "{old:?} {seen:?}");
    for kind in ["false independent", "no sink", "unforeseen"] {
        assert_eq!(wrong[kind], json!([]), "{kind}");
    }
    assert!(
        share <= FALSE_DEPENDENTS_MAX,
        "{share} % are falsely dependent"
    );
    assert!(agent_kib + tables_kib < AGENT_MEMORY_MAX_KIB);
    Ok(())
}

/// Each process with what it should be, and the processes that are something else, by kind.
fn compare(report: &Report) -> (Vec<Value>, Value) {
    let words = Words::new(&report.processes);
    let expectations = expectations();
    let mut found = vec![0; expectations.len()];
    let mut rows = Vec::new();
    let mut wrong = json!({
        "false independent": [], "false dependent": [], "no sink": [], "unforeseen": [],
    });
    let mut note = |kind: &str, what: String| {
        println!("{kind}: {what}");
        wrong[kind].as_array_mut().unwrap().push(what.into());
    };
    for record in &report.processes {
        let told = told(record, &words);
        println!("{told}");
        let fits = |one: &Expectation| {
            record.cgroup.contains(one.group) && record.command.contains(one.command)
        };
        let Some(at) = expectations.iter().position(fits) else {
            note("unforeseen", told);
            continue;
        };
        found[at] += 1;
        let one = &expectations[at];
        let kind = is_wrong(one.expected, record.class);
        if let Some(kind) = kind {
            note(kind, format!("{told} [expected: {}]", one.because));
        }
        rows.push(json!({
            "name": record.name,
            "command": record.command,
            "cgroup": record.cgroup,
            "expected": format!("{:?}", one.expected),
            "because": one.because,
            "class": Words::class(record.class),
            "why": words.chain(record),
            "wrong": kind,
        }));
    }
    for (one, found) in expectations.iter().zip(found) {
        if found < one.least {
            let what = format!("only {found} of `{}` `{}`", one.group, one.command);
            note("unforeseen", what);
        }
    }
    (rows, wrong)
}

fn told(record: &ProcessRecord, words: &Words<'_>) -> String {
    format!(
        "{:<11} {:>5} {:<15} {} `{}` ({})",
        Words::class(record.class),
        record.id.pid,
        record.name,
        record.cgroup,
        record.command,
        words.chain(record).join("; "),
    )
}

/// How many processes there are, and how many percent of them are falsely dependent.
fn totals(report: &Report, wrong: &Value) -> (usize, f64) {
    let count = report.processes.len();
    let false_dependents = wrong["false dependent"].as_array().unwrap().len();
    #[expect(
        clippy::cast_precision_loss,
        reason = "there are fewer processes than that"
    )]
    let share = 100.0 * false_dependents as f64 / count as f64;
    (count, share)
}

//! Against a scripted monitor: a mock of QEMU's answers, to reach states and failures that a real
//! QEMU does not offer on demand. The real one is exercised by the end-to-end tests.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hypervisor::{
    Client, Error, Incoming, MigrationStatus, RamInfo, Recovered, Report, RunState, Saved, Vm,
    Wanted, check_destination, check_source, discard_destination, recover_source,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(5);
const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": []}}"#;

/// What a scripted QEMU answers: a result, or the words of a refusal; `None` closes the monitor.
type Answer = Option<Result<Value, String>>;

struct Script {
    _folder: tempfile::TempDir,
    path: PathBuf,
    commands: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Script {
    fn new(mut answer: impl FnMut(&str, &Value) -> Answer + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let commands = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&commands);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{GREETING}\r").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap();
                seen.lock()
                    .unwrap()
                    .push((name.to_owned(), command["arguments"].clone()));
                let answered = match name {
                    "qmp_capabilities" => Some(Ok(json!({}))),
                    _ => answer(name, &command["arguments"]),
                };
                let reply = match answered {
                    Some(Ok(value)) => json!({"return": value, "id": command["id"], "new": 1}),
                    Some(Err(desc)) => {
                        json!({"error": {"class": "GenericError", "desc": desc}, "id": command["id"]})
                    }
                    None => return,
                };
                let event =
                    json!({"event": "STOP", "timestamp": {"seconds": 7, "microseconds": 9}});
                // An event between every command and its answer, the answer in single bytes.
                writeln!(stream, "{event}").unwrap();
                for byte in format!("{reply}\r\n").bytes() {
                    stream.write_all(&[byte]).unwrap();
                }
            }
        });
        Script {
            _folder: folder,
            path,
            commands,
        }
    }

    fn vm(&self) -> Vm {
        Vm::connect(&self.path, LIMIT).unwrap()
    }

    fn commands(&self, name: &str) -> Vec<Value> {
        let all = self.commands.lock().unwrap();
        let of = all.iter().filter(|(command, _)| command == name);
        of.map(|(_, arguments)| arguments.clone()).collect()
    }

    /// The names of all commands, in order, without questions.
    fn orders(&self) -> Vec<String> {
        let all = self.commands.lock().unwrap();
        let names = all.iter().map(|(command, _)| command.clone());
        names.filter(|name| !name.starts_with("query-")).collect()
    }
}

/// A monitor that does what `serve` does with its only connection.
fn raw(
    serve: impl FnOnce(UnixStream) + Send + 'static,
) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    (folder, path, server)
}

/// Greets, answers `count` commands with nothing, and leaves the connection open.
fn answer(mut stream: &UnixStream, count: usize) {
    writeln!(stream, "{GREETING}\r").unwrap();
    let mut lines = BufReader::new(stream).lines();
    for _ in 0..count {
        let command: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        writeln!(stream, "{}\r", json!({"return": {}, "id": command["id"]})).unwrap();
    }
}

fn connect_error(path: &Path, limit: Duration) -> Error {
    Client::connect(path, limit).unwrap_err()
}

/// A QEMU in a given state; `change` overrides answers.
fn qemu(
    status: &'static str,
    mut change: impl FnMut(&str, &Value) -> Option<Answer> + Send + 'static,
) -> Script {
    Script::new(move |command, arguments| {
        if let Some(answer) = change(command, arguments) {
            return answer;
        }
        Some(Ok(match command {
            "query-status" => json!({"status": status}),
            "query-migrate" => json!({}),
            "query-migrate-capabilities" => json!([
                {"capability": "xbzrle", "state": true},
                {"capability": "return-path", "state": true},
                {"capability": "events", "state": false},
                {"capability": "multifd", "state": false},
                {"capability": "auto-converge", "state": true},
            ]),
            "query-migrate-parameters" => {
                json!({"max-bandwidth": 134_217_728, "downtime-limit": 300, "tls-creds": ""})
            }
            "query-memory-size-summary" => json!({"base-memory": 1 << 20}),
            "query-cpus-fast" => json!([{}, {}]),
            "qom-get" => json!("pc-q35-10.0-machine"),
            "qom-list" => {
                json!([{"name": "n0", "type": "child<virtio-net-pci>"}, {"name": "type", "type": "string"}])
            }
            "query-block" => json!([{"inserted": {"file": "/disk", "ro": false}}]),
            _ => json!({}),
        }))
    })
}

#[test]
fn the_greeting_tells_the_version_and_the_mode_is_negotiated_once() {
    let script = qemu("running", |_, _| None);
    let mut vm = script.vm();
    assert_eq!(vm.version().to_string(), "10.0.2");
    vm.migrate("fd:x").unwrap();
    assert_eq!(script.orders(), ["qmp_capabilities", "migrate"]);
}

#[test]
fn unknown_fields_and_states_are_read_over() {
    let script = qemu("running", |command, _| {
        let answer = match command {
            "query-status" => json!({"status": "novel", "singlestep": false, "x": {"y": [1]}}),
            "query-migrate" => json!({
                "status": "novel-phase",
                "ram": {"remaining": 5, "total": 9, "dirty-sync-count": 2, "x": []},
                "blocked-reasons": ["one", 2],
                "x": null,
            }),
            "query-migrate-capabilities" => json!([
                {"capability": "novel", "state": true, "x": 1},
                {"capability": "of-another-shape", "state": "perhaps"},
                7,
            ]),
            _ => return None,
        };
        Some(Some(Ok(answer)))
    });
    let mut vm = script.vm();
    assert_eq!(vm.status().unwrap(), RunState::Other("novel".into()));
    let info = vm.migration_info().unwrap();
    assert_eq!(info.status, MigrationStatus::UnderWay("novel-phase".into()));
    assert_eq!(
        info.ram,
        Some(RamInfo {
            remaining: 5,
            total: 9,
            dirty_sync_count: 2,
            dirty_pages_rate: 0,
        })
    );
    assert_eq!(info.blocked_reasons, ["one"]);
    let capabilities = vm.capabilities().unwrap();
    assert_eq!(capabilities, [("novel".to_owned(), true)].into());
}

#[test]
fn answers_of_another_shape_are_told() {
    let script = qemu("running", |command, _| {
        command
            .starts_with("query-migrate-")
            .then(|| Some(Ok(json!("a string"))))
    });
    let mut vm = script.vm();
    for error in [vm.capabilities().unwrap_err(), vm.parameters().unwrap_err()] {
        assert!(matches!(error, Error::Answer { .. }), "{error}");
    }
}

#[test]
fn facts_are_gathered_from_both_device_lists() {
    let script = qemu("running", |command, arguments| {
        let answer = match (command, arguments["path"].as_str()) {
            ("query-memory-size-summary", _) => {
                json!({"base-memory": 1 << 20, "plugged-memory": 1 << 19})
            }
            ("qom-list", Some("/machine/peripheral")) => json!([
                {"name": "type", "type": "string"},
                {"name": "n0", "type": "child<virtio-net-pci>"},
            ]),
            ("qom-list", Some("/machine/peripheral-anon")) => {
                json!([{"name": "device[0]", "type": "child<VGA>"}])
            }
            _ => return None,
        };
        Some(Some(Ok(answer)))
    });
    let facts = script.vm().facts().unwrap();
    assert_eq!(facts.machine_type, "pc-q35-10.0");
    assert_eq!(facts.memory_bytes, (1 << 20) + (1 << 19));
    assert_eq!(facts.vcpus, 2);
    assert_eq!(facts.devices, ["VGA", "virtio-net-pci"]);
}

#[test]
fn events_meanwhile_are_kept() {
    let script = qemu("running", |_, _| None);
    let mut client = Client::connect(&script.path, LIMIT).unwrap();
    let answer = client.execute("query-status", &json!({})).unwrap();
    assert_eq!(answer["status"], "running");
    assert!(client.has_queued());
    let incoming = client.process().unwrap();
    assert_eq!(incoming.len(), 2, "one for each command");
    let Incoming::Event(event) = &incoming[0] else {
        panic!("{incoming:?}");
    };
    assert_eq!(event.name, "STOP");
    assert_eq!(event.timestamp, Duration::new(7, 9000));
    assert!(!client.has_queued());
}

#[test]
fn an_answer_that_nobody_waits_for() {
    let script = qemu("running", |_, _| None);
    let mut client = Client::connect(&script.path, LIMIT).unwrap();
    let asked = client.submit("query-status", &json!({})).unwrap();
    let deadline = Instant::now() + LIMIT;
    loop {
        assert!(client.wait_readable(deadline).unwrap(), "no answer");
        for incoming in client.process().unwrap() {
            if let Incoming::Reply { id, result } = incoming {
                assert_eq!(id, asked);
                assert_eq!(result.unwrap()["status"], "running");
                return;
            }
        }
    }
}

#[test]
fn an_answer_that_arrives_during_another_command_is_kept() {
    let script = qemu("running", |command, _| {
        (command == "migrate").then(|| Some(Err("not now".into())))
    });
    let mut client = Client::connect(&script.path, LIMIT).unwrap();
    let asked = client.submit("query-status", &json!({})).unwrap();
    let refused = client.submit("migrate", &json!({"uri": "fd:x"})).unwrap();
    assert_ne!(asked, refused);
    // Commands are answered in order: these two are there before this one is.
    client.execute("query-cpus-fast", &json!({})).unwrap();
    let mut answers = Vec::new();
    for incoming in client.process().unwrap() {
        if let Incoming::Reply { id, result } = incoming {
            answers.push((id, result));
        }
    }
    assert_eq!(
        answers,
        [
            (asked, Ok(json!({"status": "running"}))),
            (refused, Err("not now".to_owned())),
        ]
    );
}

#[test]
fn refusals_carry_qemus_words() {
    let script = qemu("running", |command, _| {
        (command == "migrate").then(|| Some(Err("There's a migration process in progress".into())))
    });
    let mut vm = script.vm();
    let error = vm.migrate("fd:x").unwrap_err();
    let Error::Refused { command, desc } = &error else {
        panic!("{error}");
    };
    assert_eq!(command, "migrate");
    assert_eq!(desc, "There's a migration process in progress");
    assert!(error.to_string().contains(desc.as_str()), "{error}");
    // A refusal is no end: the connection serves on.
    assert_eq!(vm.status().unwrap(), RunState::Running);
}

#[test]
fn sockets_that_are_no_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let missing = connect_error(&path, LIMIT);
    assert!(matches!(missing, Error::NoSocket { .. }), "{missing}");
    let missing = missing.to_string();
    let option = format!("-qmp unix:{},server=on,wait=off", path.display());
    assert!(missing.contains(&option), "{missing}");

    drop(UnixListener::bind(&path).unwrap());
    let dead = connect_error(&path, LIMIT);
    assert!(matches!(dead, Error::Dead { .. }), "{dead}");
    assert!(dead.to_string().contains(path.to_str().unwrap()), "{dead}");
}

#[test]
fn a_monitor_that_serves_another_client_is_busy() {
    // Accepts and does not greet, until the client gives up.
    let (_folder, path, server) = raw(|mut stream| {
        assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    });
    let begun = Instant::now();
    let busy = connect_error(&path, Duration::from_millis(50));
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(matches!(busy, Error::Busy { .. }), "{busy}");
    let busy = busy.to_string();
    assert!(
        busy.contains(path.to_str().unwrap()) && busy.contains("second -qmp socket"),
        "{busy}"
    );
    server.join().unwrap();
}

#[test]
fn what_is_no_monitor_is_told_by_its_bytes() {
    for (says, shown) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "`SSH-2.0-OpenSSH`"),
        (b"\x1b[2J\xff login:\n", "login:"),
        (b"[1, 2]\n", "`[1, 2]`"),
        (b"{\"hello\": 1}\n", "hello"),
        (b"{\"return\": {}}\n", "no greeting"),
    ] {
        let (_folder, path, server) = raw(move |mut stream| stream.write_all(says).unwrap());
        let foreign = connect_error(&path, LIMIT);
        assert!(matches!(foreign, Error::NotQmp(_)), "{foreign}");
        let foreign = foreign.to_string();
        assert!(foreign.contains(shown), "{foreign}");
        assert!(!foreign.contains('\x1b'), "{foreign:?}");
        server.join().unwrap();
    }
}

#[test]
fn a_qemu_that_ends_is_noticed() {
    let script = qemu("running", |command, _| (command == "stop").then_some(None));
    let mut client = Client::connect(&script.path, LIMIT).unwrap();
    let error = client.execute("stop", &json!({})).unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
    // And for good.
    for _ in 0..2 {
        let error = client.execute("query-status", &json!({})).unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
    }
}

#[test]
fn a_qemu_that_ends_before_it_greets_is_noticed() {
    let (_folder, path, server) = raw(drop);
    let error = connect_error(&path, LIMIT);
    assert!(matches!(error, Error::Closed), "{error}");
    server.join().unwrap();
}

#[test]
fn what_came_before_the_end_is_heard() {
    let (_folder, path, server) = raw(|mut stream| {
        answer(&stream, 1);
        writeln!(
            stream,
            "{}",
            json!({"event": "SHUTDOWN", "timestamp": {"seconds": 1, "microseconds": 0}})
        )
        .unwrap();
    });
    let mut client = Client::connect(&path, LIMIT).unwrap();
    server.join().unwrap();
    let incoming = client.process().unwrap();
    assert!(
        matches!(&incoming[..], [Incoming::Event(event)] if event.name == "SHUTDOWN"),
        "{incoming:?}"
    );
    for _ in 0..2 {
        let error = client.process().unwrap_err();
        assert!(matches!(error, Error::Closed), "{error}");
    }
}

#[test]
fn a_descriptor_reaches_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{GREETING}").unwrap();
        let mut received = None;
        for _ in 0..2 {
            let mut bytes = [0; 512];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let message = recvmsg(
                &stream,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::empty(),
            )
            .unwrap();
            for one in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(mut fds) = one {
                    received = fds.next();
                }
            }
            let command: Value = serde_json::from_slice(&bytes[..message.bytes]).unwrap();
            writeln!(stream, "{}", json!({"return": {}, "id": command["id"]})).unwrap();
        }
        let fd: OwnedFd = received.unwrap();
        UnixStream::from(fd).write_all(b"!").unwrap();
    });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut vm = Vm::connect(&path, LIMIT).unwrap();
    vm.send_fd("stream", theirs.as_fd()).unwrap();
    server.join().unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(&mut &ours, &mut byte).unwrap();
    assert_eq!(&byte, b"!");
}

#[test]
fn settings_change_what_differs_and_are_put_back() {
    let script = qemu("running", |_, _| None);
    let mut vm = script.vm();
    let wanted = Wanted {
        downtime_limit: Duration::from_millis(300),
        may_throttle: false,
    };
    let saved = Saved::plan_source(&mut vm, &wanted).unwrap();
    assert!(script.commands("migrate-set-capabilities").is_empty());
    let copy = serde_json::to_string(&saved).unwrap();
    let saved: Saved = serde_json::from_str(&copy).unwrap();
    saved.apply(&mut vm).unwrap();
    saved.restore(&mut vm).unwrap();
    let states = |on: bool| {
        json!([
            {"capability": "events", "state": on},
            {"capability": "return-path", "state": !on},
            {"capability": "xbzrle", "state": !on},
        ])
    };
    let capabilities = script.commands("migrate-set-capabilities");
    assert_eq!(capabilities[0]["capabilities"], states(true));
    assert_eq!(capabilities[1]["capabilities"], states(false));
    // The downtime limit was as wanted already.
    let parameters = script.commands("migrate-set-parameters");
    assert_eq!(parameters[0], json!({"max-bandwidth": 0}));
    assert_eq!(parameters[1], json!({"max-bandwidth": 134_217_728}));
}

/// What QEMU 7.2 knows; `compress` and `block` were dropped later.
const OLD: &[&str] = &[
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "compress",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "block",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
];
/// What QEMU 10.0 knows: `switchover-ack`, `dirty-limit` and `mapped-ram` are new.
const NEW: &[&str] = &[
    "xbzrle",
    "rdma-pin-all",
    "auto-converge",
    "zero-blocks",
    "events",
    "postcopy-ram",
    "x-colo",
    "release-ram",
    "return-path",
    "pause-before-switchover",
    "multifd",
    "dirty-bitmaps",
    "postcopy-blocktime",
    "late-block-activate",
    "x-ignore-shared",
    "validate-uuid",
    "background-snapshot",
    "zero-copy-send",
    "postcopy-preempt",
    "switchover-ack",
    "dirty-limit",
    "mapped-ram",
];

/// A QEMU that knows the capabilities `known`, of which those in `on` are on.
fn capable(known: &'static [&str], on: &'static [&str]) -> Script {
    qemu("running", move |command, _| {
        (command == "query-migrate-capabilities").then(|| {
            let list = known
                .iter()
                .map(|name| json!({"capability": name, "state": on.contains(name)}));
            Some(Ok(list.collect()))
        })
    })
}

/// The capabilities that `saved` switches, and their states after `apply` and after `restore`.
fn switched(script: &Script, vm: &mut Vm, saved: &Saved) -> Vec<(String, bool, bool)> {
    let copy = serde_json::to_string(saved).unwrap();
    assert_eq!(&serde_json::from_str::<Saved>(&copy).unwrap(), saved);
    saved.apply(vm).unwrap();
    saved.restore(vm).unwrap();
    let sent = script.commands("migrate-set-capabilities");
    let [applied, restored] = &sent[..] else {
        panic!("{sent:?}");
    };
    let applied = applied["capabilities"].as_array().unwrap();
    let restored = restored["capabilities"].as_array().unwrap();
    assert_eq!(applied.len(), restored.len());
    let pairs = applied.iter().zip(restored).map(|(applied, restored)| {
        assert_eq!(applied["capability"], restored["capability"]);
        (
            applied["capability"].as_str().unwrap().to_owned(),
            applied["state"].as_bool().unwrap(),
            restored["state"].as_bool().unwrap(),
        )
    });
    pairs.collect()
}

#[test]
fn each_qemu_is_asked_for_what_it_knows_and_what_differs() {
    let wanted = Wanted {
        downtime_limit: Duration::from_millis(120),
        may_throttle: false,
    };
    let off = |name: &str| (name.to_owned(), false, true);
    let on = |name: &str| (name.to_owned(), true, false);

    let old = capable(
        OLD,
        &["compress", "postcopy-ram", "auto-converge", "zero-blocks"],
    );
    let mut vm = old.vm();
    let saved = Saved::plan_source(&mut vm, &wanted).unwrap();
    assert_eq!(
        switched(&old, &mut vm, &saved),
        [
            off("compress"),
            on("events"),
            off("postcopy-ram"),
            off("zero-blocks"),
        ]
    );
    // What the owner chose for how data travel is the owner's; unmoor's limits are set and undone.
    assert_eq!(
        old.commands("migrate-set-parameters"),
        [
            json!({"max-bandwidth": 0, "downtime-limit": 120}),
            json!({"max-bandwidth": 134_217_728, "downtime-limit": 300}),
        ]
    );

    let new = capable(
        NEW,
        &[
            "events",
            "mapped-ram",
            "switchover-ack",
            "return-path",
            "dirty-limit",
        ],
    );
    let mut vm = new.vm();
    let saved = Saved::plan_source(&mut vm, &wanted).unwrap();
    assert_eq!(
        switched(&new, &mut vm, &saved),
        [off("mapped-ram"), off("return-path"), off("switchover-ack")]
    );
}

#[test]
fn a_destination_keeps_the_return_path() {
    let script = capable(NEW, &["return-path", "postcopy-ram", "x-ignore-shared"]);
    let mut vm = script.vm();
    let saved = Saved::plan_destination(&mut vm).unwrap();
    assert_eq!(
        switched(&script, &mut vm, &saved),
        [
            ("events".to_owned(), true, false),
            ("postcopy-ram".to_owned(), false, true),
            ("x-ignore-shared".to_owned(), false, true),
        ]
    );
    assert!(script.commands("migrate-set-parameters").is_empty());
}

#[test]
fn a_qemu_that_is_as_wanted_is_left_alone() {
    let script = qemu("running", |command, _| {
        let answer = match command {
            "query-migrate-capabilities" => json!([{"capability": "events", "state": true}]),
            "query-migrate-parameters" => json!({"max-bandwidth": 0, "downtime-limit": 300}),
            _ => return None,
        };
        Some(Some(Ok(answer)))
    });
    let mut vm = script.vm();
    let wanted = Wanted {
        downtime_limit: Duration::from_millis(300),
        may_throttle: false,
    };
    let saved = Saved::plan_source(&mut vm, &wanted).unwrap();
    saved.apply(&mut vm).unwrap();
    saved.restore(&mut vm).unwrap();
    assert_eq!(script.orders(), ["qmp_capabilities"]);
}

#[test]
fn capabilities_are_put_back_where_parameters_are_refused() {
    let script = qemu("running", |command, arguments| {
        let back = arguments["max-bandwidth"] != 0;
        (command == "migrate-set-parameters" && back).then(|| Some(Err("no".into())))
    });
    let mut vm = script.vm();
    let wanted = Wanted {
        downtime_limit: Duration::from_millis(300),
        may_throttle: false,
    };
    let saved = Saved::plan_source(&mut vm, &wanted).unwrap();
    saved.apply(&mut vm).unwrap();
    let error = saved.restore(&mut vm).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(script.commands("migrate-set-capabilities").len(), 2);
}

/// The blockers of a source whose answer to `command` is `answer`.
fn blockers(status: &'static str, command: &'static str, answer: Value) -> Vec<String> {
    let script = qemu(status, move |asked, _| {
        (asked == command).then(|| Some(Ok(answer.clone())))
    });
    texts(&check_source(&mut script.vm()).unwrap())
}

fn texts(report: &Report) -> Vec<String> {
    report.blockers().map(ToString::to_string).collect()
}

#[test]
fn whatever_stands_in_the_way_is_named() {
    assert!(blockers("running", "", json!(null)).is_empty());
    assert!(blockers("paused", "", json!(null)).is_empty());
    for (status, command, answer, word) in [
        ("inmigrate", "", json!(null), "waits for a VM itself"),
        ("postmigrate", "", json!(null), "already been moved away"),
        ("guest-panicked", "", json!(null), "guest-panicked"),
        (
            "running",
            "query-migrate",
            json!({"status": "active"}),
            "under way",
        ),
        (
            "running",
            "query-migrate",
            json!({"blocked-reasons": ["9p mounted"]}),
            "9p mounted",
        ),
        (
            "running",
            "query-migrate-capabilities",
            json!([{"capability": "multifd", "state": true}]),
            "multifd=off",
        ),
        (
            "running",
            "query-migrate-parameters",
            json!({"tls-creds": "tls0"}),
            "tls-creds",
        ),
        (
            "running",
            "qom-list",
            json!([{"name": "gpu", "type": "child<vfio-pci>"}]),
            "unplug",
        ),
    ] {
        let found = blockers(status, command, answer);
        assert!(
            !found.is_empty() && found.iter().all(|one| one.contains(word)),
            "`{word}` is not all of {found:?}"
        );
    }
}

#[test]
fn everything_in_the_way_is_told_at_once() {
    let script = qemu("inmigrate", |command, _| {
        let answer = match command {
            "query-migrate" => json!({"status": "active", "blocked-reasons": ["one", "two"]}),
            "query-migrate-capabilities" => json!([
                {"capability": "multifd", "state": true},
                {"capability": "block", "state": true},
            ]),
            _ => return None,
        };
        Some(Some(Ok(answer)))
    });
    let found = texts(&check_source(&mut script.vm()).unwrap());
    assert_eq!(found.len(), 6, "{found:?}");
}

#[test]
fn a_disk_that_is_written_to_is_worth_a_note() {
    let script = qemu("running", |command, _| {
        (command == "query-block").then(|| {
            Some(Ok(json!([
                {"device": "empty drive"},
                {"inserted": {"file": "/read-only", "ro": true}},
                {"inserted": {"file": "/disk", "ro": false}},
            ])))
        })
    });
    let report = check_source(&mut script.vm()).unwrap();
    let notes: Vec<_> = report.notes().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("/disk"), "{notes:?}");
}

#[test]
fn a_destination_must_wait_for_a_vm() {
    let waiting = qemu("inmigrate", |_, _| None);
    let report = check_destination(&mut waiting.vm()).unwrap();
    assert_eq!(report.blockers().count(), 0);
    for (state, migration) in [
        ("running", "none"),
        ("paused", "none"),
        ("postmigrate", "none"),
        ("inmigrate", "active"),
        ("inmigrate", "failed"),
    ] {
        let script = recoverable(state, migration);
        let found = texts(&check_destination(&mut script.vm()).unwrap());
        assert_eq!(found.len(), 1, "{state}, {migration}: {found:?}");
        assert!(found[0].contains("-incoming defer"), "{found:?}");
        assert_eq!(script.orders().last().unwrap(), "qom-list", "only asked");
    }
}

/// A QEMU whose states follow the commands: `migrate_cancel` ends a migration, `cont` resumes.
fn recoverable(mut state: &'static str, mut migration: &'static str) -> Script {
    qemu("unused", move |command, _| {
        match command {
            "migrate_cancel" => (state, migration) = ("running", "cancelled"),
            "cont" => state = "running",
            _ => {}
        }
        match command {
            "query-status" => Some(Some(Ok(json!({"status": state})))),
            "query-migrate" => Some(Some(Ok(json!({"status": migration})))),
            _ => None,
        }
    })
}

#[test]
fn a_vm_comes_back_from_every_state() {
    for (state, migration, was_running, expected, resumes) in [
        ("running", "failed", true, Recovered::RunsOn, 0),
        ("running", "active", true, Recovered::RunsOn, 0),
        ("finish-migrate", "device", true, Recovered::RunsOn, 0),
        ("postmigrate", "completed", true, Recovered::Resumed, 1),
        ("paused", "cancelled", true, Recovered::Resumed, 1),
        ("postmigrate", "completed", false, Recovered::StaysPaused, 0),
    ] {
        let script = recoverable(state, migration);
        let recovered = recover_source(&mut script.vm(), was_running, LIMIT).unwrap();
        assert_eq!(recovered, expected, "{state}, {migration}");
        assert_eq!(
            script.commands("cont").len(),
            resumes,
            "{state}, {migration}"
        );
    }
}

/// The orders that a recovery gave.
fn after_negotiation(script: &Script) -> Vec<String> {
    let mut orders = script.orders();
    assert_eq!(orders.remove(0), "qmp_capabilities");
    orders
}

#[test]
fn a_recovery_orders_no_more_than_it_takes() {
    for (state, migration, was_running, expected) in [
        ("running", "failed", true, &[][..]),
        ("running", "none", true, &[]),
        ("running", "active", true, &["migrate_cancel"]),
        ("postmigrate", "completed", true, &["cont"]),
        ("postmigrate", "completed", false, &[]),
        ("paused", "none", false, &[]),
    ] {
        let script = recoverable(state, migration);
        recover_source(&mut script.vm(), was_running, LIMIT).unwrap();
        assert_eq!(after_negotiation(&script), expected, "{state}, {migration}");
    }
}

#[test]
fn a_vm_that_was_paused_stays_so_when_its_migration_is_cancelled() {
    let mut migration = "active";
    let script = qemu("paused", move |command, _| {
        if command == "migrate_cancel" {
            migration = "cancelled";
        }
        (command == "query-migrate").then(|| Some(Ok(json!({"status": migration}))))
    });
    let recovered = recover_source(&mut script.vm(), false, LIMIT).unwrap();
    assert_eq!(recovered, Recovered::StaysPaused);
    assert_eq!(after_negotiation(&script), ["migrate_cancel"]);
}

#[test]
fn a_migration_that_takes_its_time_to_end_is_waited_for() {
    // Cancelling, then cancelled with the VM still on its way back, then running.
    let mut looks = 0;
    let script = qemu("unused", move |command, _| match command {
        "migrate_cancel" if looks > 1 => Some(Some(Err("no migration to cancel".into()))),
        "query-migrate" => {
            looks += 1;
            let status = ["active", "cancelling", "cancelled"][(looks - 1).min(2)];
            Some(Some(Ok(json!({"status": status}))))
        }
        "query-status" => {
            let status = if looks < 4 {
                "finish-migrate"
            } else {
                "running"
            };
            Some(Some(Ok(json!({"status": status}))))
        }
        _ => None,
    });
    let recovered = recover_source(&mut script.vm(), true, LIMIT).unwrap();
    assert_eq!(recovered, Recovered::RunsOn);
    assert!(script.commands("cont").is_empty());
}

#[test]
fn a_vm_that_does_not_come_back_is_told_with_its_states() {
    for (stays, under) in [
        // It never leaves the end of its migration.
        ("finish-migrate", "failed"),
        // Its migration never ends, and QEMU refuses to cancel it.
        ("running", "device"),
        // It does not run although QEMU takes `cont`.
        ("io-error", "failed"),
    ] {
        let script = qemu(stays, move |command, _| match command {
            "query-migrate" => Some(Some(Ok(json!({"status": under})))),
            "migrate_cancel" => Some(Some(Err("not now".into()))),
            _ => None,
        });
        let begun = Instant::now();
        let error = recover_source(&mut script.vm(), true, Duration::from_millis(100)).unwrap_err();
        assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
        let Error::Stuck { state, migration } = &error else {
            panic!("{error}");
        };
        assert_eq!((state.as_str(), migration.as_str()), (stays, under));
        assert!(error.to_string().contains(&format!("`{stays}`")), "{error}");
    }
}

#[test]
fn a_vm_that_qemu_refuses_to_resume_is_told_in_qemus_words() {
    let script = qemu("postmigrate", |command, _| {
        (command == "cont").then(|| Some(Err("Resetting the Virtual Machine is required".into())))
    });
    let error = recover_source(&mut script.vm(), true, LIMIT).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(error.to_string().contains("Resetting"), "{error}");
}

#[test]
fn a_destination_that_is_given_up_ends() {
    let script = qemu("inmigrate", |command, _| {
        (command == "quit").then_some(None)
    });
    discard_destination(&mut script.vm(), LIMIT).unwrap();
    assert_eq!(script.commands("quit").len(), 1);
}

#[test]
fn a_destination_that_answers_before_it_ends_is_waited_for() {
    let (_folder, path, server) = raw(|mut stream| {
        answer(&stream, 2);
        writeln!(
            stream,
            "{}",
            json!({"event": "SHUTDOWN", "timestamp": {"seconds": 1, "microseconds": 0}})
        )
        .unwrap();
    });
    let mut vm = Vm::connect(&path, LIMIT).unwrap();
    discard_destination(&mut vm, LIMIT).unwrap();
    server.join().unwrap();
    // It has gone already: so be it.
    discard_destination(&mut vm, LIMIT).unwrap();
}

#[test]
fn a_destination_that_does_not_end_is_told() {
    let script = qemu("inmigrate", |_, _| None);
    let begun = Instant::now();
    let error = discard_destination(&mut script.vm(), Duration::from_millis(100)).unwrap_err();
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

//! Against a scripted monitor: a mock of QEMU's answers, to reach states and failures that a real
//! QEMU does not offer on demand. The real one is exercised by the end-to-end tests.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hypervisor::{
    Client, Error, Incoming, Recovered, Saved, Vm, Wanted, check_destination, check_source,
    discard_destination, recover_source,
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
    assert_eq!(event.timestamp, Duration::new(7, 9000));
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
fn refusals_carry_qemus_words() {
    let script = qemu("running", |command, _| {
        (command == "migrate").then(|| Some(Err("There's a migration process in progress".into())))
    });
    let error = script.vm().migrate("fd:x").unwrap_err().to_string();
    assert!(
        error.contains("`migrate`") && error.contains("in progress"),
        "{error}"
    );
}

#[test]
fn sockets_that_are_no_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let connect = |limit| Client::connect(&path, limit).unwrap_err();
    let missing = connect(LIMIT);
    assert!(matches!(missing, Error::NoSocket { .. }));
    assert!(missing.to_string().contains("-qmp unix:"), "{missing}");

    let listener = UnixListener::bind(&path).unwrap();
    assert!(matches!(
        connect(Duration::from_millis(50)),
        Error::Busy { .. }
    ));
    drop(listener.accept());
    let greeter = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let foreign = connect(LIMIT);
    assert!(foreign.to_string().contains("SSH-2.0"), "{foreign}");
    greeter.join().unwrap();
    assert!(matches!(connect(LIMIT), Error::Dead { .. }));
}

#[test]
fn a_qemu_that_ends_is_noticed() {
    let script = qemu("running", |command, _| (command == "stop").then_some(None));
    let mut client = Client::connect(&script.path, LIMIT).unwrap();
    let error = client.execute("stop", &json!({})).unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
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

/// The blockers of a source whose answer to `command` is `answer`.
fn blockers(status: &'static str, command: &'static str, answer: Value) -> Vec<String> {
    let script = qemu(status, move |asked, _| {
        (asked == command).then(|| Some(Ok(answer.clone())))
    });
    let report = check_source(&mut script.vm()).unwrap();
    report.blockers().map(ToString::to_string).collect()
}

#[test]
fn whatever_stands_in_the_way_is_named() {
    assert!(blockers("running", "", json!(null)).is_empty());
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
        let found = blockers(status, command, answer).join("; ");
        assert!(found.contains(word), "`{word}` is not in `{found}`");
    }
}

#[test]
fn a_destination_must_wait_for_a_vm() {
    let waiting = qemu("inmigrate", |_, _| None);
    let report = check_destination(&mut waiting.vm()).unwrap();
    assert_eq!(report.blockers().count(), 0);
    let running = qemu("running", |_, _| None);
    let report = check_destination(&mut running.vm()).unwrap();
    assert!(
        report
            .blockers()
            .next()
            .unwrap()
            .fix
            .contains("-incoming defer")
    );
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

#[test]
fn a_vm_that_does_not_come_back_is_told_with_its_state() {
    let script = qemu("finish-migrate", |_, _| None);
    let error = recover_source(&mut script.vm(), true, Duration::from_millis(100)).unwrap_err();
    assert!(error.to_string().contains("`finish-migrate`"), "{error}");
}

#[test]
fn a_destination_that_is_given_up_ends() {
    let script = qemu("inmigrate", |command, _| {
        (command == "quit").then_some(None)
    });
    discard_destination(&mut script.vm(), LIMIT).unwrap();
    assert_eq!(script.commands("quit").len(), 1);
}

//! What is said over the monitor, and how it begins and ends.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hypervisor::{Client, Error, Incoming, MigrationStatus, RamInfo, RunState, Vm};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::script::{GREETING, LIMIT, answer, connect_error, qemu, raw};

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

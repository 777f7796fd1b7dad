//! What passes if one waits, and what does not: a full socket, a refusal, settings that QEMU would
//! refuse. Against a mock of QEMU's answers, for a real QEMU does not offer these on demand.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hypervisor::{
    Client, Error, Recovered, Saved, Vm, Wanted, check_destination, check_source, recover_source,
};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketType, bind, listen, send, socket,
};
use serde_json::{Value, json};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}"#;

/// QEMU's backlog has room for two clients that wait; the kernel lets the next one wait for ever.
#[test]
fn a_client_too_many_is_told_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 1).unwrap();
    let waiting = [(); 2].map(|()| UnixStream::connect(&path).unwrap());

    let (told, hear) = mpsc::channel();
    std::thread::spawn(move || {
        told.send(Client::connect(&path, Duration::from_millis(100)).map(drop))
    });
    let outcome = hear.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(matches!(outcome, Err(Error::Busy { .. })), "{outcome:?}");
    drop(waiting);
}

#[test]
fn a_descriptor_waits_for_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let (begin, begun) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{GREETING}").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let answer = |line: String, stream: &mut UnixStream| {
            let command: Value = serde_json::from_str(&line).unwrap();
            writeln!(stream, "{}", json!({"return": {}, "id": command["id"]})).unwrap();
        };
        answer(lines.next().unwrap().unwrap(), &mut stream);
        begun.recv().unwrap();
        // The client blocks meanwhile: nothing tells the server so.
        std::thread::sleep(Duration::from_millis(100));
        let line = lines.map(Result::unwrap).find(|line| !line.is_empty());
        answer(line.unwrap(), &mut stream);
    });
    let mut client = Client::connect(&path, Duration::from_secs(5)).unwrap();
    // Empty lines mean nothing in QMP, and fill the socket all the same.
    while send(client.fd(), b"\n", SendFlags::DONTWAIT).is_ok() {}
    begin.send(()).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let arguments = json!({"fdname": "stream"});
    client
        .execute_with_fd("getfd", &arguments, Some(theirs.as_fd()))
        .unwrap();
    server.join().unwrap();
}

/// What a mock answers: a result, or the words of a refusal.
type Answer = Result<Value, String>;

/// Connects to a mock that answers by `answer`.
fn mock(mut answer: impl FnMut(&str, &Value) -> Answer + Send + 'static) -> Vm {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{GREETING}").unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next() {
            let command: Value = serde_json::from_str(&line).unwrap();
            let name = command["execute"].as_str().unwrap();
            let id = &command["id"];
            let reply = match answer(name, &command["arguments"]) {
                Ok(value) => json!({"return": value, "id": id}),
                Err(desc) => json!({"error": {"class": "GenericError", "desc": desc}, "id": id}),
            };
            writeln!(stream, "{reply}").unwrap();
        }
    });
    Vm::connect(&path, Duration::from_secs(5)).unwrap()
}

/// A QEMU whose VM rests in `state`, and that refuses the first `times` orders to resume it.
/// Yields the number of orders so far with every one.
fn reluctant(mut state: &'static str, times: usize) -> (Vm, mpsc::Receiver<usize>) {
    let (told, orders) = mpsc::channel();
    let mut count = 0;
    let vm = mock(move |command, _| {
        Ok(match command {
            "query-status" => json!({"status": state}),
            "query-migrate" => json!({"status": "completed"}),
            "cont" => {
                count += 1;
                told.send(count).unwrap();
                if count <= times {
                    return Err("Failed to get \"write\" lock".into());
                }
                state = "running";
                json!({})
            }
            _ => json!({}),
        })
    });
    (vm, orders)
}

#[test]
fn a_refusal_that_passes_does_not_end_a_recovery() {
    let (mut vm, orders) = reluctant("postmigrate", 2);
    let recovered = recover_source(&mut vm, true, Duration::from_secs(5)).unwrap();
    assert_eq!(recovered, Recovered::Resumed);
    assert_eq!(orders.try_iter().last(), Some(3));
}

#[test]
fn a_refusal_that_stays_is_told_in_qemus_words_and_is_not_asked_for_in_a_hurry() {
    let (mut vm, orders) = reluctant("postmigrate", usize::MAX);
    let begun = Instant::now();
    let error = recover_source(&mut vm, true, Duration::from_millis(600)).unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(600));
    assert!(error.to_string().contains("\"write\" lock"), "{error}");
    let orders = orders.try_iter().last();
    assert!(matches!(orders, Some(2..=4)), "{orders:?}");
}

#[test]
fn a_vm_that_must_be_reset_is_not_waited_for() {
    let (mut vm, orders) = reluctant("shutdown", usize::MAX);
    let error = recover_source(&mut vm, true, Duration::from_secs(60)).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(orders.try_iter().last(), Some(1));
}

/// Such a VM is stopped for all of its migration, whatever the downtime limit.
#[test]
fn a_mode_that_stops_the_vm_stands_in_the_way() {
    for (mode, blocks) in [("normal", false), ("cpr-reboot", true)] {
        let mut vm = mock(move |command, _| {
            Ok(match command {
                "query-status" => json!({"status": "running"}),
                "query-migrate-parameters" => json!({ "mode": mode }),
                "query-migrate-capabilities" => json!([]),
                _ => json!({}),
            })
        });
        let report = check_source(&mut vm).unwrap();
        let named = report.blockers().any(|one| one.fix.contains("mode=normal"));
        assert_eq!(named, blocks, "{mode}");
    }
}

/// QEMU refuses to take a VM from a socket otherwise.
#[test]
fn a_destination_does_not_expect_a_file() {
    let (told, orders) = mpsc::channel();
    let mut vm = mock(move |command, arguments| {
        Ok(match command {
            "query-status" => json!({"status": "inmigrate"}),
            "query-migrate-capabilities" => {
                json!([{"capability": "mapped-ram", "state": true}, {"capability": "events", "state": true}])
            }
            "migrate-set-capabilities" => {
                told.send(arguments["capabilities"].clone()).unwrap();
                json!({})
            }
            _ => json!({}),
        })
    });
    assert_eq!(check_destination(&mut vm).unwrap().blockers().count(), 0);
    let saved = Saved::plan_destination(&mut vm, false).unwrap();
    saved.apply(&mut vm).unwrap();
    saved.restore(&mut vm).unwrap();
    let set = |state: bool| json!([{"capability": "mapped-ram", "state": state}]);
    assert_eq!(
        orders.try_iter().collect::<Vec<_>>(),
        [set(false), set(true)]
    );
    let wanted = Wanted {
        downtime_limit: Duration::from_millis(300),
        may_throttle: false,
    };
    let source = Saved::plan_source(&mut vm, &wanted).unwrap();
    source.apply(&mut vm).unwrap();
    assert_eq!(orders.try_recv(), Ok(set(false)));
}

//! A VM that comes back, or a destination that goes.

use std::io::Write;
use std::time::{Duration, Instant};

use hypervisor::{Error, Recovered, Vm, discard_destination, recover_source};
use serde_json::json;

use crate::script::{LIMIT, Script, answer, qemu, raw, recoverable};

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

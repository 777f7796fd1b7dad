//! What stands in the way of a migration.

use hypervisor::{Report, check_destination, check_source};
use serde_json::{Value, json};

use crate::script::{qemu, recoverable};

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

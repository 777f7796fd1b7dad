//! Settings for a migration, and back.

use std::time::Duration;

use hypervisor::{Error, Saved, Vm, Wanted};
use serde_json::json;

use crate::script::{Script, qemu};

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
    let saved = Saved::plan_destination(&mut vm, false).unwrap();
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
fn a_destination_that_takes_memory_later_serves_faults() {
    let script = capable(NEW, &["events"]);
    let mut vm = script.vm();
    let saved = Saved::plan_destination(&mut vm, true).unwrap();
    let on = ("postcopy-ram".to_owned(), true, false);
    assert_eq!(switched(&script, &mut vm, &saved), [on]);
}

/// A QEMU with these blocks, which agrees to serve faults or not.
fn asked_for_post_copy(blocks: &'static str, agrees: bool) -> Option<String> {
    let script = qemu("inmigrate", move |command, arguments| {
        let answer = match command {
            "query-migrate-capabilities" => json!([{"capability": "postcopy-ram", "state": false}]),
            "human-monitor-command" => json!(blocks),
            "migrate-set-capabilities" if agrees => json!({}),
            "migrate-set-capabilities" => {
                assert_eq!(arguments["capabilities"][0]["state"], true);
                return Some(Some(Err("Postcopy is not supported".into())));
            }
            _ => return None,
        };
        Some(Some(Ok(answer)))
    });
    let hindrance = script.vm().hindrance_of_post_copy().unwrap();
    let switched = script.commands("migrate-set-capabilities").len();
    assert!(switched == 0 || switched == 1 + usize::from(agrees));
    hindrance
}

#[test]
fn what_stands_in_the_way_of_post_copy_is_found_out_beforehand() {
    let small = "pc.ram 4 KiB 0x0 0x10000000 0x10000000 0x7fd2a7e00000 rw";
    assert_eq!(asked_for_post_copy(small, true), None);
    let refused = asked_for_post_copy(small, false).unwrap();
    assert!(refused.contains("not supported") && refused.contains("userfaultfd"));
    let huge = asked_for_post_copy(
        "mem 2 MiB 0x0 0x10000000 0x10000000 0x7fd2a7e00000 rw",
        true,
    );
    let huge = huge.unwrap();
    assert!(huge.contains("`mem`") && huge.contains("4 KiB"), "{huge}");
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

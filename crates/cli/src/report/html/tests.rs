use super::*;
use crate::report::record::{Forecast, ForecastPause, Mark, MarkKind, Process, Spared, Wanted};
use crate::report::{Named, PageCounts, Paused, Sample, Summary, Writer};

const HOSTILE: &str = "<script>alert(1)</script>\"'&\u{202e}\u{0}";

fn who(pid: u32, name: &str) -> Named {
    Named {
        pid,
        name: name.to_owned(),
    }
}

fn mark(t_ms: u64, kind: MarkKind, text: &str) -> Mark {
    Mark {
        t_ms,
        kind,
        text: text.to_owned(),
    }
}

fn process(pid: u32, name: &str, class: &'static str, distance: Option<u32>) -> Process {
    Process {
        pid,
        name: name.to_owned(),
        command: HOSTILE.to_owned(),
        class,
        may_pause: distance.is_none(),
        distance,
        toward: distance.filter(|steps| *steps > 0).map(|_| 10),
        why: match distance {
            Some(0) => vec!["TCP with 10.0.0.9:555".to_owned()],
            Some(_) => vec![
                format!("reads pipe {HOSTILE} written by x"),
                "TCP".to_owned(),
            ],
            None => Vec::new(),
        },
        anonymous_bytes: 3 << 20,
        ..Process::default()
    }
}

fn summary() -> Summary {
    Summary {
        session: "0123".to_owned(),
        total_ms: 4000.0,
        downtime_ms: Some(93.0),
        before_commit_ms: None,
        wire_bytes: 415_000_000,
        compressed: None,
        audit: None,
        followed: None,
        source_free_ms: None,
        guest_memory_bytes: 1 << 30,
        counts: PageCounts {
            pages_sent: 101_140,
            pages_zero: 160_000,
            pages_dropped: 7_000,
            pages_free: 9_000,
            pages_paused: 40_000,
            ..PageCounts::default()
        },
        held_peak_pages: 40_000,
        guest_nonfree_bytes: Some(500_000_000),
        agent_ms: Some(200.0),
        predicted: None,
        frozen: vec![Paused {
            process: who(20, HOSTILE),
            pause_ms: Some(1500.0),
        }],
        longest_pause_ms: Some(1500.0),
        device_bytes: 100_000,
        passes: 4,
        digest: "equal",
        digest_pages: 262_274,
        running_at_destination: true,
        source_qemu: "9.2.0".to_owned(),
        destination_qemu: "10.0.2".to_owned(),
        relay_memory_bytes: Some(8 << 20),
    }
}

/// A migration in which everything happened, with a hostile guest.
fn moved() -> Record {
    let version = |major| hypervisor::Version {
        major,
        minor: 0,
        micro: 2,
    };
    let facts = |major| hypervisor::VmFacts {
        qemu_version: version(major),
        machine_type: "pc-q35-9.0".to_owned(),
        memory_bytes: 1 << 30,
        vcpus: 2,
        devices: Vec::new(),
        no_post_copy: None,
    };
    Record {
        began: "2026-11-25T02:52:27Z".to_owned(),
        wanted: Wanted {
            to: "10.78.0.3:7070".to_owned(),
            agent: true,
            protocol: "auto".to_owned(),
            downtime_limit_ms: 300.0,
            max_pause_ms: 10_000.0,
            ..Wanted::default()
        },
        peer: Some("10.78.0.3:7070".to_owned()),
        vm: Some(facts(9)),
        destination: Some(facts(10)),
        migration_from_ms: Some(100),
        stopped_at_ms: Some(4000),
        ended_at_ms: 4200,
        outcome: Some(Outcome::Moved(Box::new(summary()))),
        forecast: Some(Forecast {
            total_ms: 3200.0,
            wire_bytes: 415_000_000,
            downtime_ms: 90.0,
            pauses: vec![ForecastPause {
                process: who(20, HOSTILE),
                pause_ms: 1200.0,
            }],
        }),
        window_ms: Some(1100),
        pauses: vec![Pause {
            process: who(20, HOSTILE),
            from_ms: 2600,
            stood_ms: Some(2650),
            until_ms: Some(4100),
            expected_ms: 1400.0,
            ended: Some("it runs at the destination".to_owned()),
        }],
        moved_live: vec![Spared {
            process: who(21, "cron"),
            why: HOSTILE.to_owned(),
        }],
        writers: vec![Writer {
            process: who(20, HOSTILE),
            hot_bytes: 150 << 20,
            bytes_per_s: 210_000_000,
        }],
        marks: vec![
            mark(90, MarkKind::Note, HOSTILE),
            mark(2600, MarkKind::Freeze, HOSTILE),
            mark(4000, MarkKind::Stopped, "the VM stops"),
            mark(4060, MarkKind::Committed, "commit"),
            mark(4093, MarkKind::Running, "the VM runs at the destination"),
        ],
        samples: (0..40)
            .map(|i| Sample {
                t_ms: 100 + 100 * i,
                pass: 1,
                wire_bytes: 10_400_000 * i,
                live_bytes: 6_000_000 * i,
                paused_bytes: 4_000_000 * i,
                dirty_bytes_per_s: (i > 10).then(|| 210_000_000 / i),
                link_bytes_per_s: Some(118_000_000),
                ..Sample::default()
            })
            .collect(),
        processes: vec![
            process(10, "nginx", "direct", Some(0)),
            process(11, HOSTILE, "indirect", Some(1)),
            process(20, HOSTILE, "independent", None),
        ],
        ..Record::default()
    }
}

fn not_moved(exit: u8, error: &str, vm: &str) -> Record {
    Record {
        outcome: Some(Outcome::NotMoved {
            exit,
            error: error.to_owned(),
            vm: vm.to_owned(),
        }),
        ..moved()
    }
}

/// Fails unless every tag is closed by its own, and every attribute quoted.
fn assert_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page.trim_start_matches("<!DOCTYPE html>");
    while let Some(at) = rest.find('<') {
        assert!(!rest[..at].contains('>'), "{}", &rest[..at]);
        let end = rest[at..]
            .find('>')
            .map(|end| at + end)
            .expect("an open tag");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
            continue;
        }
        assert!(tag.matches('"').count().is_multiple_of(2), "{tag}");
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{tag}");
        if name == "style" {
            let end = rest.find("</style>").expect("a style sheet without end");
            rest = &rest[end..];
        }
        if !tag.ends_with('/') && !matches!(name, "meta" | "link") {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn text_of(page: &str) -> String {
    let mut text = String::new();
    for part in page.split('<') {
        text += part.split_once('>').map_or(part, |(_, text)| text);
    }
    text
}

#[test]
fn a_report_is_well_formed_and_needs_nothing_from_outside() {
    let mut bare = not_moved(3, HOSTILE, HOSTILE);
    bare.migration_from_ms = None;
    bare.vm = None;
    for record in [
        moved(),
        not_moved(1, HOSTILE, HOSTILE),
        bare,
        Record::default(),
    ] {
        let page = page(&record);
        assert_well_formed(&page);
        for word in [
            "http:", "https:", "//", "src=", "url(", "@import", "<script", "<iframe",
        ] {
            let found = page.match_indices(word).map(|(at, _)| &page[at..]);
            let found: Vec<_> = found
                .filter(|rest| !rest.starts_with("url(#tip)"))
                .collect();
            assert!(found.is_empty(), "{word}: {found:?}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf\""));
        assert!(!page.contains('\u{202e}') && !page.contains('\u{0}'));
    }
}

#[test]
fn a_hostile_guest_is_shown_and_not_obeyed() {
    let page = page(&moved());
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!page.contains("alert(1)<"));
}

#[test]
fn somebody_who_was_not_there_reads_what_happened() {
    let page = page(&moved());
    let text = text_of(&page);
    for words in [
        "The VM moved to 10.78.0.3 in 4.00 s and was stopped for 93 ms",
        "from QEMU 9.0.2 here to QEMU 10.0.2 at 10.78.0.3:7070, on 2026-11-25 at 02:52:27 UTC",
        "One process was paused meanwhile",
        "for 1.50 s",
        "kept writing 157 MB of memory, at 210 MB/s or more, where the link carries 118 MB/s",
        "VM stops 3.90 s",
        "+25 %",
    ] {
        assert!(text.contains(words), "`{words}` is not in {text}");
    }
    for id in ["timeline", "pauses", "writers", "dirty-rate", "graph"] {
        let start = page.find(&format!("id=\"chart-{id}\"")).expect("a chart");
        let svg = page[start..].split("</svg>").next().unwrap_or_default();
        assert!(
            svg.contains("<rect") || svg.contains("<path"),
            "{id}: {svg}"
        );
    }
}

#[test]
fn a_migration_that_failed_says_why_and_where_the_vm_is() {
    for (exit, headline) in [
        (1, "The VM did not move: the migration failed after 4.20 s"),
        (3, "The VM did not move: the migration was refused"),
        (
            4,
            "The VM did not move: the migration was cancelled after 4.20 s",
        ),
        (5, "It is not known whether the VM moved"),
        (6, "The migration failed, and the VM needs help"),
    ] {
        let text = text_of(&page(&not_moved(
            exit,
            "the link was cut",
            "it runs on here",
        )));
        for words in [headline, "the link was cut", "it runs on here"] {
            assert!(text.contains(words), "`{words}` is not in {text}");
        }
    }
}

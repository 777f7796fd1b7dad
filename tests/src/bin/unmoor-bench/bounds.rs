//! What unmoor promises, beside what was seen in this run.

use unmoor_tests::bench::{ALL, LINK_RATE, Mode, Trial, Workload};

use lab::stock;

use crate::CAP_SECONDS;
use crate::medians::Group;
use crate::table::{cell, line_to};

const PRE_COPY: Mode = Mode::Stock(stock::Mode::PreCopy);
const POST_COPY: Mode = Mode::Stock(stock::Mode::PostCopy);
const AUTO_CONVERGE: Mode = Mode::Stock(stock::Mode::AutoConverge);

/// One promise.
struct Row {
    what: String,
    bound: String,
    seen: String,
    /// Unknown where a figure is missing.
    met: Option<bool>,
}

/// All promises as a table; those about which this run has nothing are left out.
pub(crate) fn table(groups: &[Group<'_>]) -> String {
    let mut rows = Vec::new();
    convergence(groups, &mut rows);
    volume(groups, &mut rows);
    downtime(groups, &mut rows);
    clients(groups, &mut rows);
    pauses(groups, &mut rows);
    nothing_to_pause(groups, &mut rows);
    turning(groups, &mut rows);
    predictions(groups, &mut rows);
    following(groups, &mut rows);
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "### What it must show\n\nMedians of this run; unmoor is stop-copy unless it says otherwise.\n\n\
         | | bound | seen | |\n|---|---|---|---|\n",
    );
    for row in rows {
        let met = match row.met {
            Some(true) => "met",
            Some(false) => "**not met**",
            None => "no figure",
        };
        line_to(&mut text, &[row.what, row.bound, row.seen, met.into()]);
    }
    text + "\n"
}

/// A figure that must not exceed a bound.
fn at_most(
    what: impl Into<String>,
    seen: Option<f64>,
    bound: Option<f64>,
    unit: &str,
    decimals: usize,
) -> Row {
    Row {
        what: what.into(),
        bound: format!("≤ {}{unit}", cell(bound, decimals)),
        seen: format!("{}{unit}", cell(seen, decimals)),
        met: seen.zip(bound).map(|(seen, bound)| seen <= bound),
    }
}

fn ours<'g, 't>(groups: &'g [Group<'t>], workload: &str) -> Option<&'g Group<'t>> {
    Group::find(groups, workload, Mode::StopCopy)
}

fn convergence(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let Some((stock, ours)) = Group::find(groups, "W1", PRE_COPY).zip(ours(groups, "W1")) else {
        return;
    };
    let moved = |group: &Group<'_>| format!("{} of {}", group.converged(), group.trials.len());
    rows.push(Row {
        what: format!("W1: QEMU's pre-copy does not converge in {CAP_SECONDS} s, unmoor moves"),
        bound: "none, all".into(),
        seen: format!("{}, {}", moved(stock), moved(ours)),
        met: Some(stock.converged() == 0 && ours.converged() == ours.trials.len()),
    });
}

/// Memory of the guest that was not free at the start.
fn nonfree(trial: &Trial) -> Option<f64> {
    trial.moved.summary["guest_nonfree_bytes"].as_f64()
}

fn volume(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let Some(ours) = ours(groups, "W1") else {
        return;
    };
    let bytes = ours.median(|trial| Some(trial.moved.link_bytes as f64 / nonfree(trial)?));
    let mut row = at_most(
        "W1: bytes on the link / non-free memory",
        bytes,
        Some(1.10),
        "",
        3,
    );
    let payload =
        ours.median(|trial| Some(trial.moved.summary["wire_bytes"].as_f64()? / nonfree(trial)?));
    row.seen += &format!(" ({} without TCP/IP)", cell(payload, 3));
    rows.push(row);
    let time =
        ours.median(|trial| Some(trial.moved.total_ms / 1e3 / (nonfree(trial)? / LINK_RATE)));
    let what = "W1: total time / (non-free memory / 1 Gbit/s)";
    rows.push(at_most(what, time, Some(1.15), "", 3));
}

fn downtime_of(group: &Group<'_>) -> Option<f64> {
    group.median(|trial| trial.moved.downtime_ms)
}

fn downtime(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let Some(ours) = ours(groups, "W1") else {
        return;
    };
    let stock = Group::find(groups, "W3", PRE_COPY).and_then(downtime_of);
    rows.push(at_most(
        "W1: downtime, by QEMU's without the job (W3) × 1.2 + 20 ms",
        downtime_of(ours),
        stock.map(|stock| stock * 1.2 + 20.0),
        " ms",
        0,
    ));
}

/// Of the 99th percentile, in a window.
fn slowdown(group: &Group<'_>, window: &str) -> Option<f64> {
    group.median(|trial| Some(trial.client(window)?.p99_ms / trial.client("before")?.p99_ms))
}

fn clients(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    if let Some(ours) = ours(groups, "W1") {
        let windows = [
            ("during", "W1: client's p99 during / before"),
            ("live", "W1: the same without the switchover"),
        ];
        for (window, what) in windows {
            let mut row = at_most(what, slowdown(ours, window), Some(1.5), "", 2);
            let throttled = Group::find(groups, "W1", AUTO_CONVERGE);
            let throttled = throttled.and_then(|group| slowdown(group, window));
            row.seen += &format!(" (auto-converge {})", cell(throttled, 2));
            rows.push(row);
        }
    }
    let of_unmoor = [Mode::Live, Mode::StopCopy, Mode::PostCopy].map(Mode::title);
    let trials = groups
        .iter()
        .filter(|group| of_unmoor.iter().any(|title| title == group.mode))
        .flat_map(|group| &group.trials);
    let seen: Vec<_> = trials.filter_map(|trial| trial.redis.as_ref()).collect();
    if seen.is_empty() {
        return;
    }
    let sent: u64 = seen.iter().map(|redis| redis.sent).sum();
    let bad = |figure: fn(&lab::client::RedisReport) -> u64| -> u64 {
        seen.iter().map(|redis| figure(redis)).sum()
    };
    let (lost, wrong, broken) = (
        bad(|redis| redis.lost),
        bad(|redis| redis.wrong),
        bad(|redis| redis.broken_connections),
    );
    rows.push(Row {
        what: format!("all: requests lost, wrong answers, connections broken, of {sent} requests"),
        bound: "0, 0, 0".into(),
        seen: format!("{lost}, {wrong}, {broken}"),
        met: Some(lost + wrong + broken == 0),
    });
}

fn pauses(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let (Some(ours), Some(workload)) = (ours(groups, "W1"), Workload::of("W1")) else {
        return;
    };
    let pause = ours.median(|trial| Some(trial.jobs.first()?.pause_ms? / 1e3));
    let bound = workload.job_bytes() as f64 / LINK_RATE * 1.3 + 1.0;
    let what = "W1: the job's pause, by its hot set / 1 Gbit/s × 1.3 + 1 s";
    rows.push(at_most(what, pause, Some(bound), " s", 2));
    let jobs = || ours.trials.iter().flat_map(|trial| &trial.jobs);
    let (all, verified) = (jobs().count(), jobs().filter(|job| job.verified).count());
    let running = jobs().filter(|job| job.after_mb_per_s > 0.0).count();
    rows.push(Row {
        what: "W1: the job verifies to the byte, and runs on".into(),
        bound: format!("{all}, {all}"),
        seen: format!("{verified}, {running}"),
        met: Some(verified == all && running == all),
    });
}

fn nothing_to_pause(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let Some((stock, ours)) = Group::find(groups, "W3", PRE_COPY).zip(ours(groups, "W3")) else {
        return;
    };
    type Figure = fn(&Trial) -> Option<f64>;
    let figures: [(&str, Figure); 3] = [
        ("total time", |trial| Some(trial.moved.total_ms)),
        ("bytes on the link", |trial| {
            Some(trial.moved.link_bytes as f64)
        }),
        ("downtime", |trial| trial.moved.downtime_ms),
    ];
    for (name, figure) in figures {
        let ratio = ours
            .median(figure)
            .zip(stock.median(figure))
            .map(|(ours, stock)| ours / stock);
        let what = format!("W3: {name} / QEMU's pre-copy");
        rows.push(at_most(what, ratio, Some(1.05), "", 3));
    }
}

fn turning(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let Some(ours) = ours(groups, "W4") else {
        return;
    };
    let turned: Vec<_> = ours
        .trials
        .iter()
        .filter_map(|trial| trial.turned.as_ref())
        .collect();
    let paused = turned
        .iter()
        .filter(|one| one.paused_after == Some(true))
        .count();
    let gap = ours.median(|trial| Some(trial.turned.as_ref()?.longest_gap_ms));
    rows.push(Row {
        what: "W4: the job that turns dependent is not paused after that".into(),
        bound: "0 runs".into(),
        seen: format!(
            "{paused} of {} (its partner's longest wait: {} ms)",
            turned.len(),
            cell(gap, 0)
        ),
        met: (turned.len() == ours.trials.len()).then_some(paused == 0),
    });
}

/// How far a prediction was off, as a share of what came; `None` without both.
fn error(predicted: Option<f64>, came: Option<f64>) -> Option<f64> {
    let (predicted, came) = predicted.zip(came)?;
    (came > 0.0).then(|| (predicted - came).abs() / came)
}

/// Memory that follows after the switchover.
fn following(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    let find = |workload, mode| Group::find(groups, workload, mode);
    let Some(ours) = find("W1", Mode::PostCopy) else {
        return;
    };
    let stock = find("W1", POST_COPY);
    let gap = stock.and_then(|stock| stock.median(Trial::longest_gap_ms));
    rows.push(at_most(
        "W1, post-copy: downtime, by half of the longest gap that clients see in QEMU's + 20 ms",
        downtime_of(ours),
        gap.map(|gap| gap / 2.0 + 20.0),
        " ms",
        0,
    ));
    for (window, what) in [
        (
            "following",
            "W1, post-copy: client's p99 while memory follows / before",
        ),
        (
            "settled",
            "W1, post-copy: the same from half a second after the arrival on",
        ),
    ] {
        let mut row = at_most(what, slowdown(ours, window), Some(1.5), "", 2);
        let beside = stock.and_then(|stock| slowdown(stock, window));
        row.seen += &format!(" (QEMU's {})", cell(beside, 2));
        rows.push(row);
    }
    let bytes = ours.median(|trial| Some(trial.moved.link_bytes as f64 / nonfree(trial)?));
    let what = "W1, post-copy: bytes on the link / non-free memory";
    rows.push(at_most(what, bytes, Some(1.05), "", 3));
    let wait = ours.median(|trial| trial.moved.summary["followed"]["fault_p99_ms"].as_f64());
    let what = "W1, post-copy: a page that the VM waits for, 99 of a hundred";
    rows.push(at_most(what, wait, Some(2.0), " ms", 2));
    let jobs = || ours.trials.iter().flat_map(|trial| &trial.jobs);
    let (all, verified) = (jobs().count(), jobs().filter(|job| job.verified).count());
    let frozen = |trial: &&&Trial| {
        let frozen = trial.moved.summary["frozen"].as_array();
        frozen.is_none_or(|frozen| !frozen.is_empty())
    };
    let frozen = ours.trials.iter().filter(frozen).count();
    rows.push(Row {
        what: "W1, post-copy: the job verifies to the byte; runs in which anything was frozen"
            .into(),
        bound: format!("{all}, 0"),
        seen: format!("{verified}, {frozen}"),
        met: Some(verified == all && frozen == 0),
    });
    for outrun in ["W6", "W6b"] {
        let Some(group) = find(outrun, Mode::PostCopy) else {
            continue;
        };
        rows.push(at_most(
            format!("{outrun}, post-copy: downtime, by that of W1 × 1.5"),
            downtime_of(group),
            downtime_of(ours).map(|downtime| downtime * 1.5),
            " ms",
            0,
        ));
    }
}

fn predictions(groups: &[Group<'_>], rows: &mut Vec<Row>) {
    for workload in ALL {
        let Some(ours) = ours(groups, workload.name) else {
            continue;
        };
        let total = ours.median(|trial| {
            let summary = &trial.moved.summary;
            error(
                summary["predicted"]["total_ms"].as_f64(),
                summary["total_ms"].as_f64(),
            )
        });
        if total.is_some() {
            let what = format!("{}: predicted total time is off by", workload.name);
            rows.push(at_most(
                what,
                total.map(|off| off * 100.0),
                Some(25.0),
                " %",
                0,
            ));
        }
        let pause = ours.median(|trial| {
            let summary = &trial.moved.summary;
            let predicted = summary["predicted"]["pauses"].as_array()?;
            let longest = predicted
                .iter()
                .filter_map(|pause| pause["pause_ms"].as_f64());
            error(
                longest.max_by(f64::total_cmp),
                summary["longest_pause_ms"].as_f64(),
            )
        });
        if pause.is_some() {
            let what = format!("{}: predicted longest pause is off by", workload.name);
            rows.push(at_most(
                what,
                pause.map(|off| off * 100.0),
                Some(30.0),
                " %",
                0,
            ));
        }
    }
}

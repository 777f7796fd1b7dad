//! The demo: a VM with Redis under an outside client's load, and a batch job that rewrites memory
//! faster than the link carries it. QEMU's pre-copy and auto-converge do not move it in 30 s;
//! unmoor does, and the client notices little of it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{program, results, stock};
use serde_json::json;
use unmoor_tests::bench::{Job, Limits, Mode, Scene, Trial, Workload, run_with};

/// After so many seconds a move is cancelled.
const CAP_SECONDS: u64 = 30;

const WORKLOAD: Workload = Workload {
    name: "demo",
    title: "Redis under load, and a job that rewrites 400 MiB at full speed",
    jobs: &[Job {
        name: "batch",
        mib: 400,
        mb_per_s: 0,
        mode: "full",
    }],
    requests: Some(300),
    turns: None,
    link: Some("1gbit"),
};

fn main() -> Result<()> {
    println!(
        "Two hosts, joined by 1 Gbit/s, and a client. The VM has 2 vCPU and 2 GiB of RAM; it runs"
    );
    println!(
        "Redis, which the client asks 300 times a second, and a batch job that rewrites 400 MiB as"
    );
    println!(
        "fast as it can. It is moved three times, each time from the same saved state, and each"
    );
    println!("move gets {CAP_SECONDS} s.");
    let limits = Limits::capped(CAP_SECONDS);
    let mut trials = Vec::new();
    for mode in [stock::Mode::PreCopy, stock::Mode::AutoConverge] {
        println!("\n{} by QEMU alone: {}", trials.len() + 1, mode.name());
        let trial = run_with(WORKLOAD, Mode::Stock(mode), &limits, &[], |_| Ok(()))?;
        tell(&trial);
        trials.push(trial);
    }
    println!("\n3 by unmoor");
    std::fs::create_dir_all(results::folder())?;
    let page = results::folder().join("demo.html").display().to_string();
    let more = ["--report", &page];
    let trial = run_with(WORKLOAD, Mode::StopCopy, &limits, &more, explain)?;
    println!(
        "  $ unmoor send --qmp SOCK --to 10.78.0.3:7070 --insecure --agent SOCK --compress none"
    );
    tell(&trial);
    trials.push(trial);

    println!();
    table(&trials);
    let path = results::write("demo", &json!({"runs": trials, "report": page}))?;
    println!("\nWhat happened, as a page for a browser: {page}");
    println!("\nFigures in {}", path.display());

    let ours = trials.last().context("no runs")?;
    ensure!(ours.moved.converged, "unmoor did not move the VM");
    let redis = ours.redis.as_ref().context("no client")?;
    ensure!(redis.lost == 0, "requests were lost");
    ensure!(redis.wrong == 0, "answers were wrong");
    ensure!(redis.broken_connections == 0, "connections broke");
    Ok(())
}

/// Who depends on the outside, while the client does its work.
fn explain(scene: &mut Scene) -> Result<()> {
    println!("  $ unmoor explain --agent SOCK --window 3s");
    let output = Command::new(program("unmoor"))
        .args(["explain", "--window", "3s", "--agent"])
        .arg(scene.source.agent_path())
        .output()?;
    ensure!(output.status.success(), "unmoor explain failed: {output:?}");
    let table = String::from_utf8(output.stdout)?;
    let of_interest = ["class ", " redis-server ", "lab-guest", "may pause"];
    for line in table.lines() {
        if of_interest.iter().any(|word| line.contains(word)) {
            println!("  {}", line.trim_end());
        }
    }
    Ok(())
}

fn tell(trial: &Trial) {
    let moved = &trial.moved;
    let (seconds, sent) = (moved.total_ms / 1e3, moved.link_bytes as f64 / 1e6);
    if moved.converged {
        println!(
            "  moved in {seconds:.1} s: {sent:.0} MB sent for {:.0} MB in use",
            trial.in_use_bytes as f64 / 1e6
        );
        return;
    }
    let throttled = match &moved.stock {
        Some(stock) if stock.throttle_percent > 0 => {
            format!(
                ", though the guest was throttled by {} %",
                stock.throttle_percent
            )
        }
        _ => String::new(),
    };
    let left = moved
        .stock
        .as_ref()
        .map_or(0, |stock| stock.remaining_bytes);
    println!(
        "  given up after {seconds:.0} s: {sent:.0} MB sent in {} passes, {:.0} MB still to go{throttled}",
        moved.passes,
        left as f64 / 1e6
    );
    println!("  cancelled; the VM runs on at host A");
}

/// All runs side by side.
fn table(trials: &[Trial]) {
    let row = |name: &str, cell: &dyn Fn(&Trial) -> String| {
        print!("{name:<28}");
        for trial in trials {
            print!("{:>20}", cell(trial));
        }
        println!();
    };
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let job = |trial: &Trial| trial.jobs.first().cloned();
    row("", &|trial| trial.mode.clone());
    row("moved", &|trial| {
        if trial.moved.converged { "yes" } else { "no" }.into()
    });
    row("total s", &|trial| match trial.moved.converged {
        true => number(Some(trial.moved.total_ms / 1e3), 1),
        false => format!("> {CAP_SECONDS}"),
    });
    row("downtime ms", &|trial| number(trial.moved.downtime_ms, 0));
    row("MB on the link", &|trial| {
        number(Some(trial.moved.link_bytes as f64 / 1e6), 0)
    });
    for window in ["before", "during"] {
        row(&format!("client's p99 ms, {window}"), &|trial| {
            number(trial.client(window).map(|seen| seen.p99_ms), 0)
        });
    }
    row("client's longest gap ms", &|trial| {
        number(trial.client("during").map(|seen| seen.longest_gap_ms), 0)
    });
    row("requests lost", &|trial| match &trial.redis {
        Some(redis) => format!("{} of {}", redis.lost, redis.sent),
        None => "-".into(),
    });
    row("connections broken", &|trial| match &trial.redis {
        Some(redis) => redis.broken_connections.to_string(),
        None => "-".into(),
    });
    row("batch job paused s", &|trial| {
        number(
            job(trial)
                .and_then(|job| job.pause_ms)
                .map(|pause| pause / 1e3),
            1,
        )
    });
    row("batch progress lost s", &|trial| {
        number(job(trial).map(|job| job.lost_s), 1)
    });
    row("batch job's memory", &|trial| match job(trial) {
        Some(job) if job.verified => "verified".into(),
        _ => "-".into(),
    });
}

//! How fast a stopped VM's memory is audited, beside how fast this machine copies memory.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::{VmOptions, results};
use serde_json::{Map, json};
use unmoor_tests::backend::Backend;
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, start_writer};

const ROUNDS: usize = 3;
/// Bytes that are copied.
const COPIED: usize = 1 << 30;
/// Bytes copied at once by each thread.
const PIECE: usize = 1 << 20;

fn main() -> Result<()> {
    let threads = std::thread::available_parallelism()?.get();
    println!("GB/s, the median of {ROUNDS}, with {threads} threads");
    let copying = median((0..ROUNDS).map(|_| copy(threads)).collect());
    println!("{:<28} {copying:>6.2}", "memcpy");
    let mut figures = Map::new();
    figures.insert("memcpy".into(), json!({"gb_per_s": copying}));
    for backend in Backend::ALL {
        let runs = (0..ROUNDS).map(|_| audit(backend));
        let runs = runs.collect::<Result<Vec<_>>>()?;
        let speed = median(runs.iter().map(|run| run.0).collect());
        let share = median(runs.iter().map(|run| run.1).collect());
        println!(
            "{:<28} {speed:>6.2} ({:.2} of memcpy), {share:.0} ms",
            format!("{backend:?} memory, 2 GiB"),
            speed / copying
        );
        let figure = json!({"gb_per_s": speed, "of_memcpy": speed / copying, "ms": share});
        figures.insert(format!("{backend:?}").to_lowercase(), figure);
    }
    let path = results::write("bench-audit", &figures)?;
    println!("{}", path.display());
    Ok(())
}

/// Moves a VM that stands and most of whose memory is in use; yields GB/s and milliseconds.
fn audit(backend: Backend) -> Result<(f64, f64)> {
    let mut pair = Pair::with(
        &backend.give_to(guest()),
        &backend.give_to(guest()).as_destination(),
        None,
    )?;
    start_writer(&mut pair.source, 1500, 1, "full")?;
    pair.source.qmp("stop", &json!({}))?;
    let mut receiver = pair.receive(&["--once"])?;
    let summary = pair.send(&["--audit"])?.summary(MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0);
    let audit = &summary["audit"];
    ensure!(audit["differing"] == 0, "{summary}");
    let speed = audit["bytes_per_s"].as_f64().context("no speed")?;
    Ok((speed / 1e9, audit["ms"].as_f64().context("no time")?))
}

fn guest() -> VmOptions {
    VmOptions {
        memory: "2G".into(),
        ..VmOptions::default()
    }
}

/// Copies memory that has been touched, on all processors; yields GB/s.
fn copy(threads: usize) -> f64 {
    let from = vec![1u8; COPIED];
    let mut to = vec![2u8; COPIED];
    let share = COPIED / threads;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
            scope.spawn(move || {
                for (from, to) in from.chunks(PIECE).zip(to.chunks_mut(PIECE)) {
                    to.copy_from_slice(from);
                }
            });
        }
    });
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(to, from);
    (1u64 << 30) as f64 / took / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

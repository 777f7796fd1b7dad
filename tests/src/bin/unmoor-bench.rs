//! The benchmark: how fast the relay's core works, and whole migrations beside QEMU's own over the
//! same link, as ratios within one run. `--core` leaves the migrations out.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{VmOptions, results, stock};
use migrate::{Destination, DestinationAction, Outputs, Source};
use qemu_stream::test_support::StreamBuilder;
use qemu_stream::{Event, Parser};
use serde_json::{Value, json};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, start_writer};
use wire::{Decoder, Message, Preamble, put_control};

const PAGE: usize = 4096;
/// Large enough not to stay in any cache.
const STREAM_PAGES: usize = 64 << 10;
/// As the relay reads.
const READ: usize = 256 << 10;
const RUNS: usize = 3;
const DOWNTIME_LIMIT: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let core = core()?;
    println!(
        "One core, memcpy {:.2} GB/s:",
        number(&core, "memcpy_gb_per_s")
    );
    for (half, what) in [
        ("source_half", "parse, hash, frames"),
        ("destination_half", "frames, hash, re-emit"),
    ] {
        println!(
            "  {half:<17} ({what:<21}) {:.2} GB/s, {:.2} of memcpy",
            number(&core, &format!("{half}_gb_per_s")),
            number(&core, &format!("{half}_to_memcpy"))
        );
    }
    if std::env::args().any(|arg| arg == "--core") {
        return Ok(());
    }
    let mut migrations = serde_json::Map::new();
    println!("\n2 GiB guest, 1 Gbit/s; medians of {RUNS}; ratios unmoor / QEMU's plain TCP");
    println!(
        "{:<10} {:>21} {:>24} {:>25}",
        "guest", "total s (ratio)", "downtime ms (ratio)", "link MB (ratio)"
    );
    for (name, writer) in [("idle", None), ("light", Some((64, 10)))] {
        let figures = migrations_of(writer)?;
        println!(
            "{name:<10} {:>6.2} / {:<5.2} ({:.2}) {:>8.0} / {:<5.0} ({:.2}) {:>9.1} / {:<6.1} ({:.2})",
            number(&figures["unmoor"], "total_ms") / 1e3,
            number(&figures["stock"], "total_ms") / 1e3,
            number(&figures["ratios"], "total_ms"),
            number(&figures["unmoor"], "downtime_ms"),
            number(&figures["stock"], "downtime_ms"),
            number(&figures["ratios"], "downtime_ms"),
            number(&figures["unmoor"], "link_bytes") / 1e6,
            number(&figures["stock"], "link_bytes") / 1e6,
            number(&figures["ratios"], "link_bytes"),
        );
        migrations.insert(name.to_owned(), figures);
    }
    let path = results::write("bench", &json!({"core": core, "migrations": migrations}))?;
    println!("\nFigures in {}", path.display());
    Ok(())
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or(f64::NAN)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What each half does to every byte, on one core.
fn core() -> Result<Value> {
    let stream = stream();
    let (mut source, mut destination, mut copy) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        copy.push(gigabytes(stream.len(), memcpy(&stream)));
        let (frames, elapsed) = source_half(&stream)?;
        source.push(gigabytes(stream.len(), elapsed));
        destination.push(gigabytes(stream.len(), destination_half(&frames)?));
    }
    let [source, destination, copy] = [source, destination, copy].map(median);
    Ok(json!({
        "source_half_gb_per_s": source,
        "source_half_to_memcpy": source / copy,
        "destination_half_gb_per_s": destination,
        "destination_half_to_memcpy": destination / copy,
        "memcpy_gb_per_s": copy,
        "stream_bytes": stream.len(),
    }))
}

fn gigabytes(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / 1e9 / elapsed.as_secs_f64()
}

/// A stream of pages that differ from each other.
fn stream() -> Vec<u8> {
    let mut builder = StreamBuilder::new("pc-q35-10.0");
    builder.ram_start(&[StreamBuilder::block("pc.ram", (STREAM_PAGES * PAGE) as u64)]);
    let mut page = vec![0x5a; PAGE];
    for part in 0..STREAM_PAGES / 64 {
        builder.part(|builder| {
            for index in part * 64..(part + 1) * 64 {
                page[..8].copy_from_slice(&index.to_le_bytes());
                builder.page(0, (index * PAGE) as u64, &page);
            }
        });
    }
    builder.end(|_| {});
    builder.device(4, "timer", &[1; 100]);
    builder.finish()
}

fn memcpy(stream: &[u8]) -> Duration {
    let mut buffer = vec![1; stream.len()];
    let begun = Instant::now();
    buffer.copy_from_slice(black_box(stream));
    black_box(&buffer);
    begun.elapsed()
}

/// Yields the frames, as the relay's loop would send them, and the time that they took.
fn source_half(stream: &[u8]) -> Result<(Vec<Vec<u8>>, Duration)> {
    let mut source = Source::new([1; 16], 7);
    let mut out = Vec::new();
    source.greet("bench", "{}".into(), &mut out);
    let mut frames = vec![std::mem::take(&mut out)];
    let mut answer = Vec::new();
    Preamble::OURS.put(&mut answer);
    let accept = wire::Accept {
        software: "bench".into(),
        uses: wire::Capabilities::OURS,
        vm_facts: "{}".into(),
    };
    put_control(&Message::Accept(accept), &mut answer);
    let mut decoder = Decoder::new();
    let mut at = 0;
    while let Some((used, frame)) = decoder.next(&answer[at..])? {
        source.frame(frame, &mut out)?;
        at += used;
    }
    let mut parser = Parser::new();
    let mut elapsed = Duration::ZERO;
    let (mut from, mut to) = (0, 0);
    while to < stream.len() {
        to = (to + READ).min(stream.len());
        let begun = Instant::now();
        while let Some((used, event)) = parser.next(&stream[from..to])? {
            source.event(&event, parser.blocks(), parser.page_size(), &mut out)?;
            from += used;
            if matches!(event, Event::End { .. }) {
                break;
            }
        }
        source.flush(&mut out);
        elapsed += begun.elapsed();
        // The buffer is used again, as after writing it to a socket.
        frames.push(out.clone());
        out.clear();
    }
    ensure!(
        source.digest().pages == STREAM_PAGES as u64,
        "pages are missing"
    );
    Ok((frames, elapsed))
}

fn destination_half(frames: &[Vec<u8>]) -> Result<Duration> {
    let mut destination = Destination::new();
    let mut decoder = Decoder::new();
    let mut peer = Vec::new();
    let mut qemu = Vec::with_capacity(READ + (64 << 10));
    let mut elapsed = Duration::ZERO;
    for bytes in frames {
        let begun = Instant::now();
        let mut at = 0;
        while let Some((used, frame)) = decoder.next(&bytes[at..])? {
            let mut outputs = Outputs {
                peer: &mut peer,
                qemu: &mut qemu,
            };
            destination.frame(&frame, &mut outputs)?;
            at += used;
            while let Some(action) = destination.next_action() {
                if let DestinationAction::Admit(_) = action {
                    destination.accept("bench", "{}".into(), 1 << 40, &mut peer);
                }
            }
        }
        destination.flush(&mut qemu);
        elapsed += begun.elapsed();
        black_box(&qemu);
        qemu.clear();
    }
    ensure!(
        destination.pages() == STREAM_PAGES as u64,
        "pages are missing"
    );
    Ok(elapsed)
}

/// Medians of migrations with and without the relay, in turn, so that a machine that becomes
/// slower makes both slower.
fn migrations_of(writer: Option<(u32, u32)>) -> Result<Value> {
    let names = ["total_ms", "downtime_ms", "link_bytes"];
    let mut all: [Vec<Value>; 2] = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (ours, runs) in all.iter_mut().enumerate() {
            runs.push(one_migration(writer, ours == 1)?);
        }
    }
    let [stock, unmoor] = all.each_ref().map(|runs| {
        let medians = names.map(|name| {
            let values = runs.iter().map(|run| number(run, name)).collect();
            (name.to_owned(), json!(median(values)))
        });
        Value::Object(medians.into_iter().collect())
    });
    let ratios: serde_json::Map<String, Value> = names
        .into_iter()
        .map(|name| {
            let ratio = number(&unmoor, name) / number(&stock, name);
            (name.to_owned(), json!(ratio))
        })
        .collect();
    let [stock_runs, unmoor_runs] = all;
    Ok(json!({
        "stock": stock,
        "unmoor": unmoor,
        "ratios": ratios,
        "stock_runs": stock_runs,
        "unmoor_runs": unmoor_runs,
    }))
}

fn one_migration(writer: Option<(u32, u32)>, ours: bool) -> Result<Value> {
    let options = VmOptions {
        memory: "2G".into(),
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    if let Some((mib, rate)) = writer {
        start_writer(&mut pair.source, mib, rate, "full")?;
    }
    let before = pair.lab.link_bytes()?;
    let limit = format!("{}ms", DOWNTIME_LIMIT.as_millis());
    let mut run = if ours {
        let mut receiver = pair.receive(&["--once"])?;
        let summary = pair
            .send(&["--downtime-limit", &limit])?
            .summary(MIGRATION_LIMIT)?;
        ensure!(receiver.exit(SHORT)? == 0, "unmoor receive failed");
        summary
    } else {
        let report = stock::migrate(
            &pair.lab,
            &mut pair.source,
            &mut pair.destination,
            DOWNTIME_LIMIT,
        )?;
        serde_json::to_value(report)?
    };
    let bytes = pair.lab.link_bytes()?.from_a - before.from_a;
    run["link_bytes"] = json!(bytes);
    Ok(run)
}

//! The report of a migration, read as data and looked at in a real browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::client::Running;
use lab::{VmOptions, program};
use serde_json::Value;
use unmoor_tests::browser::{Browser, Scheme};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, connect_agent, start_writer};

/// Asks the browser what it sees: texts of charts that lie upon each other or outside their chart,
/// and whether the page is wider than the window.
const LOOK: &str = r#"<script>
const wrong = [];
for (const svg of document.querySelectorAll('svg')) {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  for (const [i, [text, a]] of texts.entries()) {
    if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1)
      wrong.push('outside: ' + text);
    for (const [other, b] of texts.slice(i + 1))
      if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
          && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
        wrong.push('overlap: ' + text + ' / ' + other);
  }
}
const root = document.scrollingElement;
if (root.scrollWidth > root.clientWidth) wrong.push('wide: ' + root.scrollWidth + ' > ' + root.clientWidth);
document.documentElement.setAttribute('data-wrong', wrong.join('; '));
</script>"#;

/// Where what the tests wrote can be looked at afterwards.
fn folder() -> Result<PathBuf> {
    let folder = lab::root().join("target/results/report");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

fn data(page: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(
        page.with_extension("json"),
    )?)?)
}

/// Loads the page in a browser, wide and narrow, light and dark.
fn look_at(page: &Path, headline: &str, charts: &[&str]) -> Result<()> {
    let browser = Browser::new()?;
    let document = browser.document(page, 1200)?;
    let title = format!("<h1>{headline}</h1>");
    ensure!(document.contains(&title), "no {title} in {document}");
    for chart in charts {
        let at = document.find(&format!("id=\"chart-{chart}\""));
        let at = at.with_context(|| format!("no chart {chart}"))?;
        let svg = document[at..].split("</svg>").next().unwrap_or_default();
        ensure!(
            svg.contains("<rect") || svg.contains("<path"),
            "{chart} is empty: {svg}"
        );
    }

    // The same page, allowed a script that looks at it.
    let copy = tempfile::tempdir()?;
    let looking = copy.path().join("look.html");
    let html = fs::read_to_string(page)?;
    let html = html.replace("default-src 'none'", "default-src 'unsafe-inline'");
    fs::write(&looking, html.replace("</main>", &format!("</main>{LOOK}")))?;
    for width in [1200, 420] {
        let document = browser.document(&looking, width)?;
        ensure!(
            document.contains("data-wrong=\"\""),
            "at {width}: {}",
            document
                .split("data-wrong=")
                .nth(1)
                .unwrap_or("it did not look")
                .split('>')
                .next()
                .unwrap_or_default()
        );
    }

    let blank = copy.path().join("blank.html");
    fs::write(&blank, "<!DOCTYPE html><title>blank</title>")?;
    for (name, width, scheme) in [
        ("light", 1200, Scheme::Light),
        ("dark", 1200, Scheme::Dark),
        ("narrow", 420, Scheme::Light),
    ] {
        let height = 4000;
        let picture = browser.picture(page, width, height, scheme)?;
        assert_eq!((picture.width, picture.height), (width, height));
        let nothing = browser.picture(&blank, width, height, scheme)?;
        ensure!(
            picture.png.len() > 5 * nothing.png.len(),
            "{name}: {} bytes, a blank page has {}",
            picture.png.len(),
            nothing.png.len()
        );
        fs::write(page.with_extension(format!("{name}.png")), &picture.png)?;
    }
    let read = |name: &str| fs::read(page.with_extension(format!("{name}.png")));
    ensure!(read("light")? != read("dark")?, "it is never dark");
    Ok(())
}

#[test]
fn a_migration_with_a_paused_job_is_told_in_words_and_charts() -> Result<()> {
    let guest = VmOptions {
        memory: "1G".into(),
        agent: true,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&guest)?;
    start_writer(&mut pair.source, 150, 0, "full")?;
    // A process whose name would be markup.
    pair.source.guest(
        "cd /run && printf '#!/bin/sh\\nsleep 1000\\n' >'<img src=x>' && chmod +x '<img src=x>' && \
         { './<img src=x>' >/dev/null 2>&1 </dev/null & }",
    )?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let page = folder()?.join("moved.html");
    let agent = pair.source.agent_path().display().to_string();
    let there = pair.destination.agent_path().display().to_string();
    let mut receiver = pair.receive(&["--once", "--agent", &there])?;
    let report = page.display().to_string();
    let mut sender = pair.send(&["--agent", &agent, "--report", &report])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    let written = sender.await_event("report_written", SHORT)?;
    assert_eq!(written["html"], report.as_str());
    assert_eq!(receiver.exit(SHORT)?, 0);
    drop(client);

    let data = data(&page)?;
    let outcome = &data["outcome"];
    assert_eq!(outcome["result"], "moved");
    for figure in ["total_ms", "downtime_ms", "wire_bytes", "frozen"] {
        assert_eq!(outcome[figure], summary[figure], "{figure}");
    }
    // Who was paused is in the story, with the same length as in the summary.
    assert_eq!(data["pauses"].as_array().map(Vec::len), Some(1), "{data}");
    let pause = &data["pauses"][0];
    let length = pause["until_ms"].as_f64().zip(pause["from_ms"].as_f64());
    let length = length
        .map(|(until, from)| until - from)
        .context("no length")?;
    let told = summary["frozen"][0]["pause_ms"]
        .as_f64()
        .context("no pause")?;
    ensure!((length - told).abs() < 2.0, "{length} {told}");
    let writers = data["writers"].as_array().context("no writers")?;
    ensure!(
        writers.iter().any(|one| one["pid"] == pause["pid"]
            && one["bytes_per_s"].as_u64() > Some(10_000_000)),
        "{writers:?}"
    );
    // Samples end with what the summary says, and classes add up to it.
    let samples = data["samples"].as_array().context("no samples")?;
    ensure!(samples.len() > 10, "{} samples", samples.len());
    let last = samples.last().context("no sample")?;
    let of = |name: &str| last[name].as_u64().unwrap_or(0);
    assert_eq!(last["wire_bytes"], summary["wire_bytes"]);
    let pages = [
        "live_bytes",
        "paused_bytes",
        "cooled_bytes",
        "flushed_bytes",
    ]
    .map(of);
    let pages: u64 = pages.iter().sum();
    assert_eq!(pages, summary["pages_sent"].as_u64().unwrap_or(0) * 4096);
    ensure!(of("paused_bytes") > 100 << 20, "{last}");
    let kinds: Vec<&str> = data["marks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mark| mark["kind"].as_str())
        .collect();
    let at = |kind| kinds.iter().position(|one| *one == kind);
    let order = [
        "classified",
        "freeze",
        "stopped",
        "ready",
        "committed",
        "running",
    ]
    .map(at);
    ensure!(order.is_sorted() && order[0].is_some(), "{kinds:?}");
    let processes = data["processes"].as_array().context("no processes")?;
    let class = |name: &str| {
        let process = processes.iter().find(|one| one["name"] == name);
        process.map(|one| one["class"].as_str().unwrap_or_default())
    };
    assert_eq!(class("redis-server"), Some("direct"), "{processes:?}");
    assert_eq!(class("<img src=x>"), Some("independent"), "{processes:?}");

    let html = fs::read_to_string(&page)?;
    ensure!(!html.contains("<img") && html.contains("&lt;img src=x&gt;"));
    let address = lab::HOST_B;
    let document = Browser::new()?.document(&page, 1200)?;
    let headline = document
        .split("<h1>")
        .nth(1)
        .and_then(|rest| rest.split('<').next());
    let headline = headline.context("no headline")?.to_owned();
    ensure!(
        headline.starts_with(&format!("The VM moved to {address} in ")),
        "{headline}"
    );
    look_at(
        &page,
        &headline,
        &["timeline", "pauses", "writers", "graph"],
    )
}

#[test]
fn a_cancelled_migration_is_reported_too() -> Result<()> {
    let mut pair = Pair::new(&VmOptions::default())?;
    let page = folder()?.join("cancelled.html");
    let mut receiver = pair.receive(&["--once"])?;
    let mut sender = pair.send(&[
        "--report",
        &page.display().to_string(),
        "--before-commit",
        "sleep 100",
        "--timeout",
        "4s",
    ])?;
    assert_eq!(sender.exit(MIGRATION_LIMIT)?, 4, "{:?}", sender.events());
    let failed = sender.await_event("failed", SHORT)?;
    receiver.exit(SHORT)?;
    assert_eq!(pair.source.status()?, "running");
    let data = data(&page)?;
    assert_eq!(data["outcome"]["result"], "not_moved");
    assert_eq!(data["outcome"]["vm"], failed["vm"]);
    let document = Browser::new()?.document(&page, 1200)?;
    let headline = document
        .split("<h1>")
        .nth(1)
        .and_then(|rest| rest.split('<').next());
    let headline = headline.context("no headline")?.to_owned();
    let words = "The VM did not move: the migration was cancelled after ";
    ensure!(headline.starts_with(words), "{headline}");
    let vm = failed["vm"].as_str().context("no word on the VM")?;
    for words in ["not moved within --timeout 4s", vm] {
        ensure!(document.contains(words), "`{words}` is not in {document}");
    }
    look_at(&page, &headline, &["timeline", "pauses"])
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_else() -> Result<()> {
    let output = Command::new(program("unmoor"))
        .args([
            "send",
            "--qmp",
            "/nonexistent",
            "--to",
            "127.0.0.1:1",
            "--insecure",
        ])
        .args(["--report", "/nonexistent/report.html"])
        .output()?;
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    for words in [
        "the report cannot be written to /nonexistent/report.html: No such file",
        "leave --report out",
        "the VM was not touched",
    ] {
        ensure!(said.contains(words), "`{words}` is not in {said}");
    }
    Ok(())
}

//! The demo: a VM with Redis under an outside client's load, and a background memory writer, moves
//! from host A to host B over a 1 Gbit/s link while the client keeps its connections.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::client::{EchoReport, RedisReport, Running};
use lab::{VmOptions, program, results};
use serde_json::json;
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, connect_agent, start_writer, verify_writer,
};

fn main() -> Result<()> {
    println!("Two hosts, joined by 1 Gbit/s, and a client; the VM has 2 vCPU and 1 GiB of RAM.");
    let mut pair = Pair::new(&VmOptions::debian())?;
    println!("Booted on host A: Debian with Redis, nginx and PostgreSQL, and a batch job that");
    println!("dirties 128 MiB at 20 MB/s. A client outside uses Redis.");
    start_writer(&mut pair.source, 128, 20, "full")?;
    let redis = Running::redis(&pair.lab, 300)?;
    explain(&pair)?;

    let echo = Running::echo(&pair.lab, 2000)?;

    let command = "unmoor send --qmp SOCK --to 10.78.0.3:7070 --insecure --downtime-limit 100ms";
    println!("\n$ {command}");
    let mut receiver = pair.receive(&["--once"])?;
    let before = pair.lab.link_bytes()?;
    let mut sender = pair.send(&["--downtime-limit", "100ms"])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0, "unmoor receive failed");
    let wire = pair.lab.link_bytes()?.from_a - before.from_a;

    await_writing(&mut pair.destination)?;
    let writer = verify_writer(&mut pair.destination)?;
    let redis: RedisReport = redis.finish()?;
    let echo: EchoReport = echo.finish()?;

    let number = |name: &str| summary[name].as_f64().unwrap_or(0.0);
    println!("  moved in        {:.2} s", number("total_ms") / 1000.0);
    println!(
        "  downtime        {:.0} ms (source STOP to destination RESUME)",
        number("downtime_ms")
    );
    println!(
        "  on the wire     {:.0} MB ({:.0} MB with TCP/IP) for {:.0} MB of guest memory",
        number("wire_bytes") / 1e6,
        wire as f64 / 1e6,
        number("guest_memory_bytes") / 1e6
    );
    println!(
        "  pages           {} sent, {} zero, {} dropped as duplicates, in {} passes",
        summary["pages_sent"], summary["pages_zero"], summary["pages_dropped"], summary["passes"]
    );
    println!(
        "  digest          {} over {} pages",
        summary["digest"].as_str().unwrap_or("not known"),
        summary["digest_pages"]
    );
    println!("\nWhat the client saw:");
    println!(
        "  Redis           {} requests, {} lost, {} wrong, {} connections broken",
        redis.sent, redis.lost, redis.wrong, redis.broken_connections
    );
    println!(
        "                  longest gap {:.0} ms, p50 {:.1} ms",
        redis.longest_gap_ms, redis.p50_ms
    );
    println!(
        "  UDP echo        {:.0} ms of packets lost, longest gap {:.0} ms",
        echo.lost_ms, echo.longest_gap_ms
    );
    println!("  the writer      {}", writer.trim());

    ensure!(redis.lost == 0, "requests were lost");
    ensure!(redis.wrong == 0, "answers were wrong");
    ensure!(redis.broken_connections == 0, "connections broke");
    let path = results::write(
        "demo",
        &json!({"summary": summary, "link_bytes": wire, "redis": redis, "echo": echo, "writer": writer.trim()}),
    )?;
    println!("\nFigures in {}", path.display());
    Ok(())
}

/// Who depends on the outside, while the client does its work.
fn explain(pair: &Pair) -> Result<()> {
    drop(connect_agent(&pair.source)?);
    println!("\n$ unmoor explain --agent SOCK --window 5s");
    let output = Command::new(program("unmoor"))
        .args(["explain", "--window", "5s", "--agent"])
        .arg(pair.source.agent_path())
        .output()?;
    ensure!(output.status.success(), "unmoor explain failed: {output:?}");
    let table = String::from_utf8(output.stdout)?;
    for line in table.lines() {
        println!("{line}");
    }
    Ok(())
}

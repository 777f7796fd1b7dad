//! What the outside sees: `lab-client` running where the guest's clients are.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{CLIENT, GUEST, Host, Lab, program};

/// What a client of Redis saw. Latencies are from the moment a request was due.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RedisReport {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests never answered.
    pub lost: u64,
    /// Answers that were errors, or not the value last set.
    pub wrong: u64,
    /// Connections that broke.
    pub broken_connections: u64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of latency in milliseconds.
    pub p99_ms: f64,
    /// Longest latency in milliseconds.
    pub max_ms: f64,
    /// Longest time without any answer, in milliseconds.
    pub longest_gap_ms: f64,
    /// The same from each mark to the next.
    pub windows: Vec<Window>,
}

/// What a client that sends a packet at regular intervals saw.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EchoReport {
    /// Packets sent.
    pub sent: u64,
    /// Packets never answered.
    pub lost: u64,
    /// Lost packets times their interval: the downtime seen from outside, in milliseconds.
    pub lost_ms: f64,
    /// Longest time without any answer, in milliseconds.
    pub longest_gap_ms: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// Time between two packets in milliseconds.
    pub interval_ms: f64,
    /// The same from each mark to the next.
    pub windows: Vec<Window>,
}

/// What a client saw between two marks. Requests count where they were due, answers where they
/// came, a time without answers where it began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Window {
    /// The mark's name.
    pub name: String,
    /// How long it was.
    pub seconds: f64,
    /// Requests that were due.
    pub sent: u64,
    /// Answers that came.
    pub answered: u64,
    /// Requests that were due and never answered.
    pub lost: u64,
    /// Connections that broke.
    pub broken_connections: u64,
    /// Answers a second.
    pub per_second: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of latency in milliseconds.
    pub p99_ms: f64,
    /// Longest latency in milliseconds.
    pub max_ms: f64,
    /// Longest time without any answer, in milliseconds.
    pub longest_gap_ms: f64,
}

/// A running `lab-client`; ends when told to, or when this process dies.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Loads the guest's Redis with `rate` requests a second, half GET and half SET, over four
    /// connections; returns when the first has been answered.
    pub fn redis(lab: &Lab, rate: u32) -> Result<Self> {
        let address = format!("{GUEST}:6379");
        Self::start(lab, &["redis", &address, &rate.to_string()])
    }

    /// Sends the guest a UDP packet every `interval_us` microseconds.
    pub fn echo(lab: &Lab, interval_us: u32) -> Result<Self> {
        let address = format!("{GUEST}:7007");
        Self::start(lab, &["echo", &address, &interval_us.to_string()])
    }

    /// Waits at `port` outside for a process of the guest to call, and then asks it every
    /// `interval_us` microseconds.
    pub fn peer(lab: &Lab, port: u16, interval_us: u32) -> Result<Self> {
        let address = format!("{CLIENT}:{port}");
        Self::start(lab, &["peer", &address, &interval_us.to_string()])
    }

    /// Begins a window in its report.
    pub fn mark(&mut self, name: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().context("the client has ended")?;
        writeln!(stdin, "mark {name}").context("the client has ended")
    }

    /// Has a window in its report that lies behind.
    pub fn span(&mut self, name: &str, begins: Instant, ends: Instant) -> Result<()> {
        let (begins, ends) = (begins.elapsed().as_millis(), ends.elapsed().as_millis());
        let stdin = self.child.stdin.as_mut().context("the client has ended")?;
        writeln!(stdin, "span {begins} {ends} {name}").context("the client has ended")
    }

    fn start(lab: &Lab, args: &[&str]) -> Result<Self> {
        let mut child = lab
            .command(Host::Client, program("lab-client"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut running = Running {
            child,
            stdout: BufReader::new(stdout),
        };
        let mut line = String::new();
        running.stdout.read_line(&mut line)?;
        if line.trim() != "warm" {
            bail!("the client did not get an answer from the guest");
        }
        Ok(running)
    }

    /// Ends it and reads its report.
    pub fn finish<R: for<'a> Deserialize<'a>>(mut self) -> Result<R> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        self.child.wait()?;
        serde_json::from_str(&text).with_context(|| format!("the client reported `{text}`"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

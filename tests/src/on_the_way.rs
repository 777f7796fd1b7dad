//! A VM on its way over a link that gets cut.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::relay::{PORT, Unmoor};
use lab::{Host, VmOptions};
use serde_json::{Value, json};

use crate::{
    MIGRATION_LIMIT, Pair, SHORT, connect_agent, memory_is_equal, start_writer, verify_writer,
};

/// How it sets out.
#[derive(Debug, Clone, Copy)]
pub struct Outset<'a> {
    /// Connections between the halves.
    pub connections: &'a str,
    /// How long a lost connection may stay away.
    pub reconnect: &'a str,
    /// Whether an agent tells which processes can be paused: the job that writes can.
    pub agent: bool,
}

impl<'a> Outset<'a> {
    /// One connection, and no agent.
    pub fn new(reconnect: &'a str) -> Self {
        Outset {
            connections: "1",
            reconnect,
            agent: false,
        }
    }

    /// Several connections.
    pub fn over(self, connections: &'a str) -> Self {
        Outset {
            connections,
            ..self
        }
    }

    /// With an agent.
    pub fn with_agent(self) -> Self {
        Outset {
            agent: true,
            ..self
        }
    }

    /// Starts both VMs, the job and both halves.
    pub fn set_out(self) -> Result<OnTheWay> {
        let options = VmOptions {
            agent: self.agent,
            ..VmOptions::default()
        };
        let mut waiting = options.as_destination();
        waiting.paused = true;
        let mut pair = Pair::with(&options, &waiting, Some("1gbit"))?;
        start_writer(&mut pair.source, 96, if self.agent { 0 } else { 8 }, "full")?;
        let gate = pair.lab.run_dir().join("gate");
        rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into())?;
        let left_behind = pair.lab.run_dir().join("left-behind");
        let hold = format!("read go < {}", gate.display());
        let limits = ["--peer-timeout", "3s", "--reconnect", self.reconnect];
        let receiver = pair.receive(&[&limits[..], &["--once"]].concat())?;
        let mut words = [
            &limits[..],
            &["--bandwidth", "200Mbit", "--before-commit", &hold],
            &["--connections", self.connections],
        ]
        .concat();
        let agent = pair.source.agent_path().display().to_string();
        let left = left_behind.display().to_string();
        if self.agent {
            drop(connect_agent(&pair.source)?);
            words.extend(["--agent", &agent, "--left-behind", &left]);
        }
        let sender = pair.send(&words)?;
        Ok(OnTheWay {
            pair,
            sender,
            receiver,
            gate,
            left_behind: self.agent.then_some(left_behind),
        })
    }
}

/// A VM under load, on its way over a slow link, with a gate before the commit.
#[derive(Debug)]
pub struct OnTheWay {
    /// The hosts and VMs.
    pub pair: Pair,
    /// `unmoor send`.
    pub sender: Unmoor,
    /// `unmoor receive`.
    pub receiver: Unmoor,
    gate: PathBuf,
    left_behind: Option<PathBuf>,
}

impl OnTheWay {
    /// Waits until so many bytes have gone.
    pub fn await_bytes(&self, bytes: u64) -> Result<()> {
        let gone = |event: &Value| event["wire_bytes"].as_u64() > Some(bytes);
        self.sender.await_matching("progress", gone, SHORT)?;
        Ok(())
    }

    /// Waits until nothing more can be sent: two reports in a row tell of the same bytes.
    pub fn await_silence(&self) -> Result<()> {
        let mut last = (0.0, 0);
        loop {
            let later = |event: &Value| event["t_ms"].as_f64() > Some(last.0);
            let progress = self.sender.await_matching("progress", later, SHORT)?;
            let bytes = progress["wire_bytes"].as_u64().context("no bytes")?;
            if bytes == last.1 {
                return Ok(());
            }
            last = (progress["t_ms"].as_f64().context("no time")?, bytes);
        }
    }

    /// Ports at host A of the connections between the halves.
    pub fn ports(&self) -> Result<Vec<u16>> {
        let filter = format!("dport = :{PORT}");
        let output = self
            .pair
            .lab
            .command(Host::A, "ss")
            .args(["--no-header", "--numeric", "--tcp", &filter])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let local = |line: &str| {
            let address = line.split_ascii_whitespace().nth(3)?;
            address.rsplit_once(':')?.1.parse().ok()
        };
        Ok(text.lines().filter_map(local).collect())
    }

    /// Resets every connection between the halves, on both hosts.
    pub fn kill_connections(&self) -> Result<()> {
        self.kill("")
    }

    /// Resets those connections of which this is true at host A, on both hosts.
    pub fn kill(&self, more: &str) -> Result<()> {
        let there = more.replace("sport", "dport");
        for (host, end, more) in [(Host::A, "dport", more), (Host::B, "sport", &there)] {
            let filter = format!("{end} = :{PORT} {more}");
            let status = self
                .pair
                .lab
                .command(host, "ss")
                .args(["--kill", "--tcp", &filter])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()?;
            ensure!(status.success(), "ss --kill: {status}");
        }
        Ok(())
    }

    /// Waits until both sides have come back so often.
    pub fn await_resumed(&self, times: usize) -> Result<Vec<Value>> {
        let mut seen = Vec::new();
        for half in [&self.receiver, &self.sender] {
            seen.clear();
            let mut last = 0.0;
            for _ in 0..times {
                let later = |event: &Value| event["t_ms"].as_f64() > Some(last);
                let resumed = half.await_matching("resumed", later, SHORT)?;
                last = resumed["t_ms"].as_f64().context("no time")?;
                seen.push(resumed);
            }
        }
        Ok(seen)
    }

    /// Opens the gate before the commit, once somebody waits there.
    pub fn open_the_gate(&self) -> Result<()> {
        self.sender.await_event("ready", MIGRATION_LIMIT)?;
        Ok(fs::write(&self.gate, "go\n")?)
    }

    /// The gate is open: the VM moves, its memory equal to the byte, free pages aside.
    pub fn arrive(mut self) -> Result<Value> {
        let summary = self.sender.summary(MIGRATION_LIMIT)?;
        let code = self.receiver.exit(SHORT)?;
        ensure!(code == 0, "{:?}", self.receiver.events());
        ensure!(summary["digest"] == "equal", "{summary}");
        let left = self.left_behind.as_deref().map(left_behind);
        let left = left.transpose()?.unwrap_or_default();
        memory_is_equal(&mut self.pair.source, &mut self.pair.destination, &left)?;
        self.pair.destination.qmp("cont", &json!({}))?;
        verify_writer(&mut self.pair.destination)?;
        Ok(summary)
    }
}

/// The page frames in the file that `--left-behind` writes.
pub fn left_behind(path: &Path) -> Result<Vec<Range<u64>>> {
    let text = fs::read_to_string(path)?;
    let run = |line: &str| {
        let (first, count) = line.split_once(' ')?;
        let first: u64 = first.parse().ok()?;
        Some(first..first + count.parse::<u64>().ok()?)
    };
    text.lines()
        .map(|line| run(line).context("no run"))
        .collect()
}

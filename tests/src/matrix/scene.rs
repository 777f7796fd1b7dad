//! A migration that has been brought to a moment, and what the faults can reach of it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::relay::{Unmoor, state_folder};
use lab::saved::Recipe;
use lab::{Host, Lab, LabOptions, Vm, VmOptions};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use serde_json::Value;

use super::{Cell, Fault, Moment, Protocol};
use crate::{MIGRATION_LIMIT, Pair, SHORT, connect_agent};

/// What the relays send, well below the link: passes take their time.
const BANDWIDTH: &str = "200Mbit";
/// Without an agent a job that outruns the link is never done: so long it may take, where it may be
/// without one, and elsewhere.
const TIME: [&str; 2] = ["30s", "90s"];
/// Between two looks at what tells nobody.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is to be expected of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guest {
    /// All that ran goes on.
    Intact,
    /// It boots again.
    Reset,
    /// It stands.
    Panicked,
}

/// A migration at a moment.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) cell: Cell,
    pub(super) sender: Unmoor,
    pub(super) receiver: Unmoor,
    pub(super) guest: Guest,
    /// Writing to it lets the migration go on to its commit.
    gate: PathBuf,
    gate_is_open: bool,
    pub(super) begun: Instant,
    pub(super) pair: Pair,
    /// Disks for what the relays keep.
    disks: Vec<Disk>,
}

/// A small disk.
#[derive(Debug)]
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=512k,mode=700", "lab"])
            .arg(&folder)
            .status()?;
        ensure!(status.success(), "mount: {status}");
        Ok(Disk(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever still has a file open keeps it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl Scene {
    /// Sets out, and goes as far as the moment.
    pub(super) fn reach(cell: Cell) -> Result<Self> {
        let begun = Instant::now();
        let lab = Lab::new(&LabOptions {
            clocks_jump: cell.fault == Fault::ClockJumps,
            ..LabOptions::with_rate("1gbit")
        })?;
        let disks = match cell.fault {
            Fault::DiskFull => vec![
                Disk::mount(state_folder(&lab, Host::A))?,
                Disk::mount(state_folder(&lab, Host::B))?,
            ],
            _ => Vec::new(),
        };
        let recipe = recipe(cell.protocol);
        let source = recipe.start(&lab, Host::A, |vm| connect_agent(vm).map(drop))?;
        let destination = Vm::start(&lab, Host::B, &recipe.options.as_destination())?;
        let pair = Pair {
            source,
            destination,
            lab,
        };
        drop(connect_agent(&pair.source)?);
        let gate = pair.lab.run_dir().join("gate");
        rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into())?;
        let receiver = receive(&pair)?;
        let sender = send(&pair, cell, &gate)?;
        let mut scene = Scene {
            cell,
            sender,
            receiver,
            guest: Guest::Intact,
            gate,
            gate_is_open: false,
            begun,
            pair,
            disks,
        };
        scene.await_moment()?;
        Ok(scene)
    }

    fn await_moment(&mut self) -> Result<()> {
        let sender = &self.sender;
        let await_event = |name: &str| sender.await_event(name, MIGRATION_LIMIT);
        match self.cell.moment {
            Moment::Hello => await_event("connected")?,
            Moment::FirstPass => {
                let begun = |event: &Value| event["wire_bytes"].as_u64() > Some(4_000_000);
                sender.await_matching("progress", begun, SHORT)?
            }
            Moment::LaterPass => {
                let later = |event: &Value| event["pass"].as_u64() >= Some(2);
                sender.await_matching("pass", later, MIGRATION_LIMIT)?
            }
            Moment::Freeze => await_event("freezing")?,
            Moment::Flush => await_event("frozen")?,
            Moment::FinalPass => await_event("stopped")?,
            Moment::Devices => {
                // Whichever of them is told: they may take less time than it takes to tell.
                let phases = [
                    "sending device state",
                    "waiting for the destination to load",
                ];
                let loads = |event: &Value| {
                    let phase = event["phase"].as_str();
                    phase.is_some_and(|phase| phases.contains(&phase) || phase == "about to commit")
                };
                sender.await_matching("phase", loads, MIGRATION_LIMIT)?
            }
            Moment::Ready => await_event("ready")?,
            Moment::Committed => {
                await_event("ready")?;
                // It stands still, so that it does not hear the commit.
                self.receiver.await_event("ready", SHORT)?;
                self.receiver.signal(Signal::STOP)?;
                self.open_gate()?;
                self.sender.await_event("committed", MIGRATION_LIMIT)?
            }
            Moment::After if self.cell.protocol == Protocol::PostCopy => await_event("runs")?,
            Moment::After => await_event("summary")?,
        };
        Ok(())
    }

    /// The migration is not held up any more.
    pub(super) fn go_on(&mut self) -> Result<()> {
        match self.cell.moment {
            Moment::Devices | Moment::Ready => self.open_gate(),
            // If it is gone, there is nobody to go on.
            Moment::Committed => {
                let _ = self.receiver.signal(Signal::CONT);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Lets whoever waits before the commit go on, unless there is nobody any more.
    fn open_gate(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.gate_is_open, true) {
            return Ok(());
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let deadline = Instant::now() + SHORT;
        loop {
            match rustix::fs::open(&self.gate, flags, Mode::empty()) {
                Ok(fd) => return Ok(File::from(fd).write_all(b"go\n")?),
                // Nobody reads, or not yet: the hook is about to be started.
                Err(rustix::io::Errno::NXIO) if self.sender.has_ended() => return Ok(()),
                Err(rustix::io::Errno::NXIO) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK_EVERY);
                }
                Err(error) => return Err(error).context("opening the gate"),
            }
        }
    }

    /// The VM that runs at the moment.
    pub(super) fn running_vm(&mut self) -> &mut Vm {
        match self.cell.moment {
            Moment::After => &mut self.pair.destination,
            _ => &mut self.pair.source,
        }
    }

    /// Whether the guest can do anything at the moment.
    fn guest_runs(&self) -> bool {
        self.cell.moment <= Moment::Flush || self.cell.moment == Moment::After
    }

    pub(super) fn fill_disks(&self) -> Result<()> {
        for Disk(folder) in &self.disks {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(folder.join("ballast"))?;
            // Until there is no room for a byte.
            for piece in [4096, 1] {
                while file.write_all(&vec![0; piece]).is_ok() {}
            }
        }
        Ok(())
    }

    /// The hosts' clocks, and the guest's, jump so far from the right time.
    pub(super) fn set_clocks(&mut self, by: &str) -> Result<()> {
        self.pair.lab.set_clocks(by)?;
        if self.guest_runs() {
            let seconds = match by.starts_with('-') {
                // It has jumped the other way before.
                true => -7200,
                false => 3600,
            };
            let jump = format!("date -s @$(( $(date +%s) + {seconds} ))");
            self.running_vm().tell_guest(&jump)?;
        }
        Ok(())
    }

    /// What the halves have said, for whoever has to find out what went wrong.
    pub(super) fn told(&self) -> String {
        let mut text = String::new();
        for (name, half) in [("send", &self.sender), ("receive", &self.receiver)] {
            let events = half.events();
            let told = events.iter().filter(|event| event["event"] != "progress");
            let last: Vec<String> = told.map(Value::to_string).collect();
            let from = last.len().saturating_sub(12);
            text += &format!(
                "\n{name} said\n  {}\nand wrote\n{}",
                last[from..].join("\n  "),
                half.stderr()
            );
        }
        text
    }
}

/// The guest, with what the protocol has to do with.
fn recipe(protocol: Protocol) -> Recipe {
    let (name, rate) = match protocol {
        // Slower than the relays.
        Protocol::Live => ("matrix-live", 10),
        Protocol::StopCopy | Protocol::PostCopy => ("matrix", 0),
    };
    Recipe {
        name: name.to_owned(),
        options: VmOptions {
            agent: true,
            // The guest stands when it has panicked, and a reset does not end QEMU.
            kernel_words: "panic=0".to_owned(),
            extra: vec!["-action".to_owned(), "reboot=reset".to_owned()],
            ..VmOptions::default()
        },
        commands: vec![format!(
            "lab-guest writer 96 {rate} full >/run/writer.log 2>&1 & \
             until grep -q ready /run/writer.log; do usleep 20000; done"
        )],
    }
}

/// Both halves notice soon that the other is gone.
const LIMITS: [&str; 4] = ["--peer-timeout", "3s", "--reconnect", "3s"];

fn receive(pair: &Pair) -> Result<Unmoor> {
    let agent = pair.destination.agent_path().display().to_string();
    let words = [&LIMITS[..], &["--once", "--agent", &agent]].concat();
    pair.receive(&words)
}

fn send(pair: &Pair, cell: Cell, gate: &Path) -> Result<Unmoor> {
    let agent = pair.source.agent_path().display().to_string();
    let time = TIME[usize::from(!cell.fault.is_of_the_guest())];
    let hold = format!("read go < {}", gate.display());
    let report = state_folder(&pair.lab, Host::A).join("report.html");
    let report = report.display().to_string();
    let mut words = [
        &LIMITS[..],
        &["--bandwidth", BANDWIDTH, "--timeout", time],
        &["--agent", &agent],
        &["--protocol", cell.protocol.name()],
    ]
    .concat();
    if cell.moment.is_held() {
        words.extend(["--before-commit", &hold]);
    }
    if cell.fault == Fault::DiskFull {
        words.extend(["--report", &report]);
    }
    pair.send(&words)
}

//! `unmoor send`: the source half's shell.

mod audit;
mod cut;
mod following;
mod foresee;
mod hook;
mod meter;
mod outcome;
pub(crate) mod outlet;
pub(crate) mod owned;
mod progress;
mod sample;
mod session;
mod settle;
mod several;
mod start;
mod steer;
mod stream;
mod told;

use std::fmt;

use clap::ValueEnum;
use hypervisor::{Report as Findings, Vm, check_source};
use migrate::{KeepBack, MappedRam, Source};
use wire::Ledger;

use crate::args::SendArgs;
use crate::exit::Exit;
use crate::guest_ram::GuestRam;
use crate::net::{ConnectError, Connector, Protection, host_of};
use crate::report::{Detail, Event, Metrics, Recorder, Report, Wanted, records_folder, reporter};
use crate::signals::Signals;
use crate::{QMP_CONNECT_LIMIT, random};
use audit::Auditor;
use owned::Owned;
use session::Session;
use steer::Steering;

/// Longest wait for the connection to the destination.
const CONNECT_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// Bytes that may be on their way, or lost, without the destination's word: it gives one for each
/// MiB. More is needed only by a link that is both long and fast.
const KEPT_MAX: usize = 32 << 20;
/// Received bytes after which the destination gets a word: it sends little.
const ACK_EVERY: u64 = 16 << 10;
/// Bytes that may wait for the link while memory follows: whatever the VM asks for waits behind them.
pub(crate) const WAITING_IN_A_HURRY: usize = 16 << 10;

/// The books of a source's connection.
pub(crate) fn ledger() -> Ledger {
    Ledger::new(KEPT_MAX, ACK_EVERY)
}

/// Bytes in a page frame of the guest.
const FRAME: u64 = 4096;

/// Why the migration did not happen. The VM is where it was.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It would not have worked; nothing was changed.
    Refused(String),
    /// The user, or a time limit of theirs, ended it.
    Cancelled(String),
    /// Something went wrong.
    Failed(String),
}

impl Failure {
    /// The exit code that tells it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Failure::Refused(_) => Exit::Refused,
            Failure::Cancelled(_) => Exit::Cancelled,
            Failure::Failed(_) => Exit::Failed,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Refused(text) | Failure::Cancelled(text) | Failure::Failed(text)) = self;
        f.write_str(text)
    }
}

/// Something went wrong, as it says itself.
pub(crate) fn failed(error: &dyn fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Cancelled => Failure::Cancelled("cancelled by a signal".into()),
            ConnectError::Plain(_) | ConnectError::Credentials(_) | ConnectError::Name(_) => {
                Failure::Refused(error.to_string())
            }
            _ => Failure::Failed(error.to_string()),
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &SendArgs) -> Exit {
    begin(args, |_| {
        let vm = Vm::connect(&args.qmp, QMP_CONNECT_LIMIT).map_err(|error| failed(&error))?;
        Ok((vm, None))
    })
}

/// Moves a VM that somebody else manages.
#[cfg(feature = "libvirt")]
pub(crate) fn run_owned(
    args: &SendArgs,
    open: impl FnOnce(&mut dyn Report) -> Result<(Vm, Owned), Failure>,
) -> Exit {
    begin(args, |report| {
        let (vm, owned) = open(report)?;
        Ok((vm, Some(owned)))
    })
}

fn begin(
    args: &SendArgs,
    open: impl FnOnce(&mut dyn Report) -> Result<(Vm, Option<Owned>), Failure>,
) -> Exit {
    let mut report = reporter(args.how.output.json, args.how.output.quiet);
    let records = records_folder().filter(|_| !args.how.no_record);
    // Before anything else: a report that cannot be written must not come up afterwards.
    report = match Recorder::begin(args.how.report.as_deref(), records, wanted(args), report) {
        Ok(recorder) => Box::new(recorder),
        Err((why, mut report)) => return untouched(report.as_mut(), &Failure::Refused(why)),
    };
    if let Some(address) = args.how.metrics {
        report = match Metrics::begin(address, report) {
            Ok(metrics) => Box::new(metrics),
            Err((why, mut report)) => return untouched(report.as_mut(), &Failure::Refused(why)),
        };
    }
    match prepare(args, open, report.as_mut()) {
        Ok(session) => session.run(),
        Err(failure) => untouched(report.as_mut(), &failure),
    }
}

fn untouched(report: &mut dyn Report, failure: &Failure) -> Exit {
    report.tell(&Event::Failed {
        exit: failure.exit() as u8,
        error: failure.to_string(),
        vm: "the VM was not touched".into(),
    });
    failure.exit()
}

/// What the user has asked for, as the report tells it.
fn wanted(args: &SendArgs) -> Wanted {
    let word = |value: Option<clap::builder::PossibleValue>| {
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    };
    Wanted {
        to: args.to.clone(),
        agent: args.agent.is_some(),
        protocol: word(args.how.protocol.to_possible_value()),
        on_stall: word(args.how.on_stall.to_possible_value()),
        downtime_limit_ms: args.how.downtime_limit.as_secs_f64() * 1000.0,
        max_pause_ms: args.how.max_pause.as_secs_f64() * 1000.0,
        bandwidth: args.how.bandwidth.map(|limit| limit.to_string()),
    }
}

/// Everything that can be found out before the VM is touched.
fn prepare<'a>(
    args: &'a SendArgs,
    open: impl FnOnce(&mut dyn Report) -> Result<(Vm, Option<Owned>), Failure>,
    report: &'a mut dyn Report,
) -> Result<Session<'a>, Failure> {
    let mut signals = Signals::install().map_err(|error| failed(&error))?;
    let (mut vm, owned) = open(report)?;
    let protection = Protection::from_args(&args.how.net);
    let host = args
        .how
        .tls_hostname
        .as_deref()
        .unwrap_or(host_of(&args.to));
    let connector = Connector::new(&protection, host, args.how.bind)?;
    let findings = check_source(&mut vm).map_err(|error| failed(&error))?;
    tell_findings(&findings, report)?;
    let facts = vm.facts().map_err(|error| failed(&error))?;
    report.detail(&Detail::Vm(&facts));
    let ram = match &args.agent {
        Some(_) => guest_memory(&mut vm).map_err(|error| failed(&error))?,
        None => Vec::new(),
    };
    let guest_ram = open_ram(args, &mut vm, report)?;
    let whole = following::is_wanted(args) && guest_ram.is_some() && !args.how.copy_held;
    let ends = ram.iter().map(|piece| piece.address + piece.length);
    let frames = ends.max().unwrap_or(0) / FRAME;
    let steering = Steering::new(args, frames, report)?;
    let link = connector.connect(&args.to, CONNECT_LIMIT, Some(&mut signals))?;
    let session = random().map_err(|error| failed(&error))?;
    let seed = u64::from_le_bytes(random().map_err(|error| failed(&error))?);
    report.tell(&Event::Connected {
        peer: link.peer().to_string(),
        session: crate::report::session_name(session),
        path: link.describe(),
    });
    let mut engine = Source::new(session, seed);
    engine.keep_back(KeepBack {
        limit: args.how.hold_limit.unwrap_or(match whole {
            // What follows costs this host nothing until it goes, and no downtime then.
            true => u64::MAX,
            false => facts.memory_bytes / 2,
        }),
        ram,
    });
    let mut session = Session::new(
        args, connector, report, signals, vm, facts, link, session, engine, steering,
    );
    session.ram = guest_ram;
    if owned.is_some() {
        session.engine.serve_return_path();
    }
    session.owned = owned;
    session.audit_with(args.how.audit.map(Auditor::new));
    if let Some(limit) = args.how.bandwidth {
        session.limit_to(Some(limit)).map_err(Failure::Refused)?;
    }
    Ok(session)
}

/// The VM's memory, to be read from outside, if something wants it and it can be.
fn open_ram(
    args: &SendArgs,
    vm: &mut Vm,
    report: &mut dyn Report,
) -> Result<Option<GuestRam>, Failure> {
    let may_hold = args.agent.is_some() || following::is_wanted(args);
    let holds = may_hold && !args.how.copy_held;
    if args.how.audit.is_none() && !holds {
        return Ok(None);
    }
    match GuestRam::open(vm, args.qemu_pid) {
        Ok(ram) => Ok(Some(ram)),
        Err(why) if args.how.audit.is_some() => Err(Failure::Refused(format!("--audit: {why}"))),
        Err(why) => {
            report.tell(&Event::Note {
                text: format!("what is held back is copied: {why}"),
            });
            Ok(None)
        }
    }
}

/// Where the page frames that the agent speaks of are in QEMU's RAM blocks.
fn guest_memory(vm: &mut Vm) -> Result<Vec<MappedRam>, hypervisor::Error> {
    let pieces = vm.memory_map()?.into_iter().map(|piece| MappedRam {
        address: piece.address,
        length: piece.length,
        block: piece.block,
        offset: piece.offset,
    });
    Ok(pieces.collect())
}

/// Tells what is worth knowing; refuses if something stands in the way.
pub(crate) fn tell_findings(findings: &Findings, report: &mut dyn Report) -> Result<(), Failure> {
    let blockers: Vec<String> = findings.blockers().map(ToString::to_string).collect();
    if !blockers.is_empty() {
        return Err(Failure::Refused(blockers.join("; ")));
    }
    for note in findings.notes() {
        report.tell(&Event::Note {
            text: note.to_string(),
        });
    }
    Ok(())
}

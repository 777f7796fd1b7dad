//! `unmoor resolve`: an operator settles what two hosts that were cut off could not.
//!
//! At the source the VM rests, since the commit was recorded and it may run at the destination. At
//! the destination it waits, since the source may run it. Neither can know; somebody who can look at
//! both hosts can.
//!
//! The source may go on trying for as long as it takes, since memory is to follow: `unmoor send`, or its
//! guardian. It ends when somebody decides.

use std::time::Duration;

use hypervisor::{Vm, recover_source};

use super::client::{Running, running};
use super::journal::{self, Entry};
use super::message::{Request, Role};
use super::status::short;
use crate::args::{ResolveArgs, Verdict};
use crate::exit::Exit;
use crate::guardian::{Answer, tell_destination};

/// Longest wait for the VM to run.
const RECOVER_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for QEMU's monitor: a guardian lets go of it when it has seen the decision.
const MONITOR_LIMIT: Duration = Duration::from_secs(20);

/// Runs the command.
pub(crate) fn run(args: &ResolveArgs) -> Exit {
    let outcome = find(&args.session).and_then(|found| match found {
        Found::Source(entry) => at_the_source(entry, args.verdict()),
        Found::Sender(sender) => at_a_sender(&sender, args.verdict()),
        Found::Destination(waiting) => at_the_destination(&waiting, args.verdict()),
    });
    match outcome {
        Ok(text) => {
            println!("{text}");
            Exit::Success
        }
        Err((exit, why)) => {
            eprintln!("unmoor: {why}");
            exit
        }
    }
}

type Outcome = Result<String, (Exit, String)>;

enum Found {
    /// The VM rests here.
    Source(Entry),
    /// So it does, and `unmoor send` goes on trying to give it the rest of its memory.
    Sender(Running),
    /// The VM waits here.
    Destination(Running),
}

fn failed(error: impl std::fmt::Display) -> (Exit, String) {
    (Exit::Failed, error.to_string())
}

fn find(session: &str) -> Result<Found, (Exit, String)> {
    let kept = journal::all().map_err(failed)?.into_iter();
    let kept = kept.filter(|entry| entry.name().starts_with(session));
    let waiting = running().map_err(failed)?.into_iter();
    let waiting = waiting.filter(|one| one.is(session));
    let mut found: Vec<Found> = kept
        .map(Found::Source)
        .chain(waiting.map(|one| match one.status.role {
            Role::Send => Found::Sender(one),
            Role::Receive => Found::Destination(one),
        }))
        .collect();
    match found.len() {
        1 if !session.is_empty() => Ok(found.swap_remove(0)),
        0 => Err(failed(format!(
            "nothing is known here of a session {session} (unmoor status)"
        ))),
        _ => Err(failed(format!(
            "{session} stands for several sessions: write more of it"
        ))),
    }
}

/// The VM rests here, and the commit was recorded.
fn at_the_source(mut entry: Entry, verdict: Verdict) -> Outcome {
    let peer = entry.watch.peer;
    let settle = |entry: Entry, text: String| {
        entry.settled().map_err(failed)?;
        Ok(text)
    };
    match (tell_destination(&entry.watch, true), verdict) {
        (Ok(Answer::Runs), Verdict::Ask | Verdict::GiveUp) => settle(
            entry,
            format!("the VM runs at {peer}; what rests here can be ended"),
        ),
        (Ok(Answer::Paused), Verdict::Ask | Verdict::GiveUp) => settle(
            entry,
            format!("the VM is at {peer}, paused; what rests here can be ended"),
        ),
        (Ok(Answer::Runs | Answer::Paused), Verdict::RunHere) => {
            // That settles it, though not as it was wanted.
            entry.settled().map_err(failed)?;
            Err((
                Exit::Refused,
                format!(
                    "{peer} says that the VM is there: it is not resumed here, and what rests here can be ended"
                ),
            ))
        }
        (_, Verdict::RunHere) => {
            entry.take().map_err(failed)?;
            let mut vm = Vm::connect(&entry.watch.qmp, MONITOR_LIMIT).map_err(failed)?;
            let how = recover_source(&mut vm, true, RECOVER_LIMIT).map_err(failed)?;
            entry.watch.saved.restore(&mut vm).map_err(failed)?;
            settle(entry, format!("{how}"))
        }
        (_, Verdict::GiveUp) => settle(entry, "forgotten; the VM goes on resting here".into()),
        (answer, Verdict::Ask) => {
            let why = match answer {
                Err(error) => format!("{peer} does not say whether the VM runs there ({error})"),
                Ok(_) => format!("{peer} knows nothing of this session any more"),
            };
            let name = entry.name();
            Err((
                Exit::InDoubt,
                format!(
                    "{why}: look at the QEMU there. If it runs the VM, or waits in `unmoor receive`, settle it there, and here with `unmoor resolve {name} --give-up`; if it does not and never will: `unmoor resolve {name} --run-here`",
                    name = short(&name)
                ),
            ))
        }
    }
}

/// The VM rests here, and what it may need at the destination is still here.
fn at_a_sender(sender: &Running, verdict: Verdict) -> Outcome {
    let session = sender.status.session.as_deref().unwrap_or_default();
    let run = match verdict {
        Verdict::RunHere => true,
        Verdict::GiveUp => false,
        Verdict::Ask if !sender.status.in_doubt => {
            return Err(failed(
                "the destination is connected: there is nothing to resolve",
            ));
        }
        Verdict::Ask => {
            let peer = sender.status.peer.as_deref().unwrap_or("the destination");
            return Err((
                Exit::InDoubt,
                format!(
                    "the VM may run at {peer}, where part of its memory is missing, and nobody answers there: look at the QEMU there. If it is there, see to it that `unmoor receive`, or the one that its guardian has started, can be reached; if it is not and never will be: `unmoor resolve {name} --run-here` has the VM run here as it was at the switchover; `--give-up` lets it rest",
                    name = short(session)
                ),
            ));
        }
    };
    sender.ask(&Request::Resolve { run }).map_err(failed)?;
    Ok(match run {
        true => "the VM is to run here again: `unmoor send` says how that goes".into(),
        false => "given up; the VM goes on resting here".into(),
    })
}

/// The VM has been loaded here, and waits.
fn at_the_destination(waiting: &Running, verdict: Verdict) -> Outcome {
    let session = waiting.status.session.as_deref().unwrap_or_default();
    let run = match verdict {
        Verdict::RunHere => true,
        Verdict::GiveUp => false,
        Verdict::Ask if waiting.status.in_doubt && waiting.status.runs => {
            return Err((
                Exit::InDoubt,
                format!(
                    "the VM was started here and lacks memory that its source has: bring `unmoor send`'s host back, or its guardian. If what it has is lost for good, so is the VM here: `unmoor resolve {name} --give-up` ends the waiting, and the VM may still run there as it was at the switchover",
                    name = short(session)
                ),
            ));
        }
        Verdict::Ask => {
            let peer = waiting.status.peer.as_deref().unwrap_or("its source");
            return Err((
                Exit::InDoubt,
                format!(
                    "the VM waits here to be told by {peer} whether to run: look at the QEMU there. If it rests in `postmigrate` and will go on so: `unmoor resolve {name} --run-here`; if it runs the VM: `unmoor resolve {name} --give-up`",
                    name = short(session)
                ),
            ));
        }
    };
    waiting.ask(&Request::Resolve { run }).map_err(failed)?;
    Ok(match run {
        true => "told to run: `unmoor receive` says how that goes".into(),
        false if waiting.status.runs => "given up: what has not come is lost".into(),
        false => "given up: the QEMU that waited here ends".into(),
    })
}

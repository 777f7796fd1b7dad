//! `unmoor resolve`: an operator settles what two hosts that were cut off could not.
//!
//! At the source the VM rests, since the commit was recorded and it may run at the destination. At
//! the destination it waits, since the source may run it. Neither can know; somebody who can look at
//! both hosts can.

use std::time::Duration;

use hypervisor::{Vm, recover_source};

use super::client::{Running, running};
use super::journal::{self, Entry};
use super::message::{Request, Role};
use super::status::short;
use crate::QMP_CONNECT_LIMIT;
use crate::args::{ResolveArgs, Verdict};
use crate::exit::Exit;
use crate::guardian::{Answer, tell_destination};

/// Longest wait for the VM to run.
const RECOVER_LIMIT: Duration = Duration::from_secs(30);

/// Runs the command.
pub(crate) fn run(args: &ResolveArgs) -> Exit {
    let outcome = find(&args.session).and_then(|found| match found {
        Found::Source(entry) => at_the_source(&entry, args.verdict()),
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
    let waiting = waiting.filter(|one| one.status.role == Role::Receive && one.is(session));
    let mut found: Vec<Found> = kept
        .map(Found::Source)
        .chain(waiting.map(Found::Destination))
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
fn at_the_source(entry: &Entry, verdict: Verdict) -> Outcome {
    let Entry { watch, .. } = entry;
    let peer = watch.peer;
    let settle = |text: String| {
        entry.settled().map_err(failed)?;
        Ok(text)
    };
    match (tell_destination(watch, true), verdict) {
        (Ok(Answer::Runs), Verdict::Ask | Verdict::GiveUp) => settle(format!(
            "the VM runs at {peer}; what rests here can be ended"
        )),
        (Ok(Answer::Paused), Verdict::Ask | Verdict::GiveUp) => settle(format!(
            "the VM is at {peer}, paused; what rests here can be ended"
        )),
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
            let mut vm = Vm::connect(&watch.qmp, QMP_CONNECT_LIMIT).map_err(failed)?;
            let how = recover_source(&mut vm, true, RECOVER_LIMIT).map_err(failed)?;
            watch.saved.restore(&mut vm).map_err(failed)?;
            settle(format!("{how}"))
        }
        (_, Verdict::GiveUp) => settle("forgotten; the VM goes on resting here".into()),
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

/// The VM has been loaded here, and waits.
fn at_the_destination(waiting: &Running, verdict: Verdict) -> Outcome {
    let session = waiting.status.session.as_deref().unwrap_or_default();
    let run = match verdict {
        Verdict::RunHere => true,
        Verdict::GiveUp => false,
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
        false => "given up: the QEMU that waited here ends".into(),
    })
}

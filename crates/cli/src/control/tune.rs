//! `unmoor tune`: changes a migration that runs.

use super::client::{Running, running};
use super::message::{Request, Role};
use super::status::short;
use crate::args::{LimitArg, TuneArgs};
use crate::exit::Exit;

/// Runs the command.
pub(crate) fn run(args: &TuneArgs) -> Exit {
    let done = chosen(args.session.as_deref()).and_then(|one| {
        let bandwidth = match args.bandwidth {
            LimitArg::None => None,
            LimitArg::Some(limit) => Some(limit),
        };
        let asked = one.ask(&Request::Tune { bandwidth });
        asked.map_err(|error| error.to_string())
    });
    match done {
        Ok(_) => Exit::Success,
        Err(why) => {
            eprintln!("unmoor: {why}");
            Exit::Failed
        }
    }
}

/// The migration from here that is meant.
fn chosen(session: Option<&str>) -> Result<Running, String> {
    let all = running().map_err(|error| error.to_string())?;
    let from_here = all.into_iter().filter(|one| one.status.role == Role::Send);
    let mut fitting: Vec<Running> = from_here
        .filter(|one| session.is_none_or(|session| one.is(session)))
        .collect();
    match (fitting.len(), session) {
        (1, _) => Ok(fitting.swap_remove(0)),
        (0, None) => Err("no VM is on its way from here (unmoor status)".into()),
        (0, Some(session)) => Err(format!(
            "no VM is on its way from here in a session {session} (unmoor status)"
        )),
        _ => {
            let names = fitting
                .iter()
                .filter_map(|one| one.status.session.as_deref());
            let names: Vec<&str> = names.map(short).collect();
            Err(format!("which one: {}?", names.join(", ")))
        }
    }
}

//! `unmoor status`: what runs here, and what is in doubt.

use serde::Serialize;

use super::client::running;
use super::journal;
use super::message::{Role, Status};
use crate::args::StatusArgs;
use crate::exit::Exit;
use crate::report::{bytes, rate};

/// A migration of this host whose outcome is not known.
#[derive(Debug, Serialize)]
struct InDoubt {
    session: String,
    qmp: String,
    peer: String,
}

#[derive(Debug, Serialize)]
struct Listing {
    running: Vec<Status>,
    in_doubt: Vec<InDoubt>,
}

/// Runs the command.
pub(crate) fn run(args: &StatusArgs) -> Exit {
    let listing = match look() {
        Ok(listing) => listing,
        Err(error) => {
            eprintln!("unmoor: {error}");
            return Exit::Failed;
        }
    };
    if args.json {
        match serde_json::to_string(&listing) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("unmoor: {error}"),
        }
        return Exit::Success;
    }
    if listing.running.is_empty() && listing.in_doubt.is_empty() {
        println!("no migration runs here");
    }
    for one in &listing.running {
        print!("{}", describe(one));
    }
    for one in &listing.in_doubt {
        println!(
            "{}  in doubt: the VM rests at {}, and may run at {}\n    unmoor resolve {}",
            short(&one.session),
            one.qmp,
            one.peer,
            short(&one.session)
        );
    }
    Exit::Success
}

fn look() -> std::io::Result<Listing> {
    let in_doubt = journal::all()?.into_iter().map(|entry| InDoubt {
        session: entry.name(),
        qmp: entry.watch.qmp.display().to_string(),
        peer: entry.watch.peer.to_string(),
    });
    Ok(Listing {
        in_doubt: in_doubt.collect(),
        running: running()?.into_iter().map(|one| one.status).collect(),
    })
}

/// Enough of a session's name to tell it from others.
pub(super) fn short(session: &str) -> &str {
    session.get(..8).unwrap_or(session)
}

fn describe(status: &Status) -> String {
    let session = status.session.as_deref().map_or("-", short);
    let way = match status.role {
        Role::Send => "to",
        Role::Receive => "from",
    };
    let peer = status.peer.as_deref().unwrap_or("nobody yet");
    let mut text = format!("{session}  {way} {peer}: {}", status.phase);
    if let Some(sent) = status.wire_bytes {
        text += &format!(", sent {}", bytes(sent));
    }
    if let Some(now) = status.rate {
        text += &format!(", {}", rate(now));
    }
    match (status.role, status.bandwidth_bytes_per_s) {
        (Role::Send, Some(limit)) => text += &format!(" of at most {}", rate(limit)),
        (Role::Send, None) | (Role::Receive, _) => {}
    }
    if let Some(link) = status.link_bytes_per_s {
        text += &format!(" (the link carries {})", rate(link));
    }
    text += "\n";
    if let Some(path) = &status.path {
        text += &format!("    {path}\n");
    }
    for lost in &status.lost_probes {
        text += &format!("    {lost}\n");
    }
    if status.in_doubt {
        text += &format!("    in doubt: unmoor resolve {session}\n");
    }
    text
}

//! The guardian of a destination half while memory follows: when that dies, another is started.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Order;
use crate::receive::Takeover;

/// What it starts.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Keep {
    /// Arguments of the half that may die.
    arguments: Vec<String>,
    takeover: Takeover,
}

/// A destination half's end.
#[derive(Debug)]
pub(crate) struct Keeper {
    child: Child,
}

impl Keeper {
    /// Starts a guardian, and tells it what to do.
    pub(crate) fn start(takeover: Takeover) -> io::Result<Self> {
        let arguments = std::env::args_os()
            .skip(1)
            .filter(|one| one != TAKE_OVER)
            .map(OsString::into_string)
            .collect::<Result<_, _>>()
            .map_err(|_| io::Error::other("an argument of this process is no text"))?;
        let keep = Keep {
            arguments,
            takeover,
        };
        // What the next half tells goes where this one's does.
        let mut child = Command::new("/proc/self/exe")
            .arg("guardian")
            .stdin(Stdio::piped())
            .spawn()?;
        let mut line = serde_json::to_vec(&Order::Keep(Box::new(keep)))?;
        line.push(b'\n');
        let Some(orders) = &mut child.stdin else {
            return Err(io::Error::other("the guardian has no pipe"));
        };
        orders.write_all(&line)?;
        Ok(Keeper { child })
    }

    /// There is nothing to take over any more.
    pub(crate) fn done(mut self) {
        if let Some(mut orders) = self.child.stdin.take()
            && let Ok(mut line) = serde_json::to_vec(&Order::Done)
        {
            line.push(b'\n');
            let _ = orders.write_all(&line);
        }
        let _ = self.child.wait();
    }
}

/// The option by which a half takes over.
const TAKE_OVER: &str = "--take-over";

/// The half has died: starts another, and ends when that does.
pub(super) fn take_over(keep: &Keep) -> io::Result<()> {
    eprintln!("unmoor guardian: `unmoor receive` has died while memory followed: starting another");
    let mut child = Command::new("/proc/self/exe")
        .args(&keep.arguments)
        .arg(TAKE_OVER)
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        serde_json::to_writer(&mut stdin, &keep.takeover)?;
    }
    let status = child.wait()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "that one has ended, too: {status}"
        ))),
    }
}

//! The side of whoever asks.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::message::{Answer, Request, Status};
use super::place::run_folder;

/// Longest wait for an answer: QEMU may keep a migration busy for a moment.
const LIMIT: Duration = Duration::from_secs(10);

/// A migration that runs on this host.
#[derive(Debug)]
pub(super) struct Running {
    socket: PathBuf,
    pub(super) status: Status,
}

/// All that answer. What is left of processes that have ended is cleared away.
pub(super) fn running() -> io::Result<Vec<Running>> {
    let Some(folder) = run_folder() else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let folder = folder.display();
            return Err(io::Error::new(error.kind(), format!("{folder}: {error}")));
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let socket = entry?.path();
        if socket.extension().is_none_or(|ending| ending != "sock") {
            continue;
        }
        match ask(&socket, &Request::Status) {
            Ok(Answer::Status(status)) => found.push(Running {
                socket,
                status: *status,
            }),
            Ok(Answer::All { running }) => {
                found.extend(running.into_iter().map(|status| Running {
                    socket: socket.clone(),
                    status,
                }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let _ = std::fs::remove_file(&socket);
            }
            // It has just ended.
            Err(_) => {}
        }
    }
    found.sort_by_key(|one| one.status.pid);
    Ok(found)
}

impl Running {
    /// Asks for something; a refusal is an error.
    pub(super) fn ask(&self, request: &Request) -> io::Result<Answer> {
        match ask(&self.socket, request)? {
            Answer::Refused { why } => Err(io::Error::other(why)),
            answer => Ok(answer),
        }
    }

    /// Whether a user may mean this one.
    pub(super) fn is(&self, session: &str) -> bool {
        let name = self.status.session.as_deref();
        name.is_some_and(|name| !session.is_empty() && name.starts_with(session))
    }
}

fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&answer)?)
}

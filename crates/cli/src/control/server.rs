//! The side of a running migration.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::message::{Answer, LINE_MAX, Request, Role};
use super::place::{make, run_folder};
use crate::report::{Event, Report};

/// Longest time to ask something.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Who may be asking at a time.
const CLIENTS_MAX: usize = 8;

/// Takes requests.
#[derive(Debug, Default)]
pub(crate) struct Control {
    socket: Option<(UnixListener, PathBuf)>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    since: Instant,
}

impl Control {
    /// Opens the socket. Without a folder for it, nobody can ask anything.
    pub(crate) fn open(who: &str) -> io::Result<Self> {
        let Some(folder) = run_folder() else {
            return Ok(Control::default());
        };
        make(&folder)?;
        let path = folder.join(name(who, std::process::id()));
        // Of a process that had this number before.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Control {
            socket: Some((listener, path)),
            clients: Vec::new(),
        })
    }

    /// Opens the socket; that it cannot be is told, and changes nothing else.
    pub(crate) fn open_or_tell(role: Role, report: &mut dyn Report) -> Self {
        Self::open(role.name()).unwrap_or_else(|error| {
            report.tell(&Event::Note {
                text: format!(
                    "`unmoor status` and the like cannot be used, for there is no socket: {error}"
                ),
            });
            Control::default()
        })
    }

    /// What to wait for.
    pub(crate) fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listener = self.socket.iter().map(|(listener, _)| listener);
        let listener = listener.map(|listener| PollFd::new(listener, PollFlags::IN));
        let clients = self.clients.iter();
        listener.chain(clients.map(|client| PollFd::new(&client.stream, PollFlags::IN)))
    }

    /// Answers what has been asked, without waiting.
    pub(crate) fn serve(&mut self, mut answer: impl FnMut(Request) -> Answer) {
        self.let_in();
        let now = Instant::now();
        self.clients.retain_mut(|client| {
            if now.saturating_duration_since(client.since) >= ASK_LIMIT {
                return false;
            }
            match client.read() {
                Ok(None) => true,
                Ok(Some(line)) => {
                    let said = match serde_json::from_slice(&line) {
                        Ok(request) => answer(request),
                        Err(error) => Answer::Refused {
                            why: format!("not understood: {error}"),
                        },
                    };
                    client.say(&said);
                    false
                }
                Err(_) => false,
            }
        });
    }

    fn let_in(&mut self) {
        let Some((listener, _)) = &self.socket else {
            return;
        };
        while let Ok((stream, _)) = listener.accept() {
            if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client {
                    stream,
                    line: Vec::new(),
                    since: Instant::now(),
                });
            }
        }
    }
}

fn name(who: &str, pid: u32) -> String {
    format!("{who}-{pid}.sock")
}

/// Clears away the socket of a half that was killed.
pub(crate) fn clear_away(pid: u32) {
    let Some(folder) = run_folder() else {
        return;
    };
    for role in [Role::Send, Role::Receive] {
        // It had one of them, or neither.
        let _ = std::fs::remove_file(folder.join(name(role.name(), pid)));
    }
}

impl Client {
    /// The line, once it is complete.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                self.line.truncate(end);
                return Ok(Some(std::mem::take(&mut self.line)));
            }
            if self.line.len() > LINE_MAX {
                return Err(ErrorKind::InvalidData.into());
            }
        }
    }

    /// Whoever does not take so little at once does without.
    fn say(&mut self, answer: &Answer) {
        if let Ok(mut line) = serde_json::to_vec(answer) {
            line.push(b'\n');
            let _ = self.stream.write_all(&line);
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    fn in_folder() -> (tempfile::TempDir, Control) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let control = Control {
            socket: Some((listener, path)),
            clients: Vec::new(),
        };
        (folder, control)
    }

    #[test]
    fn a_line_gets_an_answer_and_nonsense_a_reason() {
        let (folder, mut control) = in_folder();
        let path = folder.path().join("a.sock");
        let mut asked = Vec::new();
        for line in ["{\"ask\":\"status\"}\n", "what?\n"] {
            let mut stream = UnixStream::connect(&path).unwrap();
            let (first, rest) = line.split_at(3);
            stream.write_all(first.as_bytes()).unwrap();
            control.serve(|_| unreachable!());
            stream.write_all(rest.as_bytes()).unwrap();
            control.serve(|request| {
                asked.push(request);
                Answer::Done
            });
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).unwrap();
            let understood = answer == "{\"answer\":\"done\"}\n";
            assert_eq!(understood, line.starts_with('{'), "{answer}");
        }
        assert_eq!(asked, [Request::Status]);
        assert!(control.clients.is_empty());
        drop(control);
        assert!(!path.exists());
    }

    #[test]
    fn who_talks_without_end_or_in_a_crowd_is_let_go_of() {
        let (folder, mut control) = in_folder();
        let path = folder.path().join("a.sock");
        let mut talker = UnixStream::connect(&path).unwrap();
        talker.set_nonblocking(true).unwrap();
        let crowd: Vec<_> = (0..20).map(|_| UnixStream::connect(&path)).collect();
        control.serve(|_| unreachable!());
        assert_eq!(control.clients.len(), CLIENTS_MAX);
        for _ in 0..2 * LINE_MAX / 512 {
            let _ = talker.write(&[b'a'; 512]);
            control.serve(|_| unreachable!());
        }
        assert_eq!(control.clients.len(), CLIENTS_MAX - 1);
        drop(crowd);
        control.serve(|_| unreachable!());
        assert!(control.clients.is_empty());
    }
}

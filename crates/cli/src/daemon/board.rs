//! Who is moving, and what is told of it.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::figures::Figures;
use crate::control::{Role, Status};
use crate::report::{bytes, duration_ms};

/// Something worth telling. Fields are added, never renamed.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum News {
    /// Other hosts and libvirt may come.
    Listening { address: String, sockets: String },
    /// Something to know that is not an error.
    Note { text: String },
    /// A migration has begun.
    Began {
        session: String,
        role: Role,
        /// QEMU's socket.
        socket: String,
        path: String,
    },
    /// It has ended well: the destination's QEMU has loaded everything. libvirt goes on.
    Carried {
        session: String,
        role: Role,
        socket: String,
        total_ms: f64,
        wire_bytes: u64,
        /// Pages of the guest, all of them.
        pages: u64,
    },
    /// It has come to nothing. libvirt lets the VM go on where it was.
    Failed {
        session: String,
        role: Role,
        socket: String,
        error: String,
    },
}

impl News {
    fn for_people(&self) -> String {
        let short = |session: &str| session.get(..8).unwrap_or("-").to_owned();
        let way = |role: &Role| match role {
            Role::Send => "from",
            Role::Receive => "to",
        };
        match self {
            News::Listening { address, sockets } => {
                format!("listening on {address}; sockets for libvirt in {sockets}")
            }
            News::Note { text } => text.clone(),
            News::Began {
                session,
                role,
                socket,
                path,
            } => format!(
                "{}: a VM moves {} here through {socket}, {path}",
                short(session),
                way(role)
            ),
            News::Carried {
                session,
                total_ms,
                wire_bytes,
                pages,
                ..
            } => format!(
                "{}: loaded at the destination after {}, {pages} pages proven equal, {} on the link",
                short(session),
                duration_ms(*total_ms),
                bytes(*wire_bytes)
            ),
            News::Failed { session, error, .. } => {
                format!("{}: {error}; the VM stays where it was", short(session))
            }
        }
    }
}

/// A migration's place on the board, until it is dropped.
#[derive(Debug)]
pub(super) struct Entry {
    board: Arc<Board>,
    status: Arc<Mutex<Status>>,
}

impl Entry {
    /// Changes what is known of it.
    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut unpoisoned(&self.status));
    }

    /// The migration's name, once it has one.
    pub(super) fn session(&self) -> Option<String> {
        unpoisoned(&self.status).session.clone()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut running = unpoisoned(&self.board.running);
        running.retain(|other| !Arc::ptr_eq(other, &self.status));
        let role = unpoisoned(&self.status).role;
        self.board.figures.ends(role);
    }
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Board {
    json: bool,
    places: usize,
    running: Mutex<Vec<Arc<Mutex<Status>>>>,
    figures: Figures,
}

impl Board {
    pub(super) fn new(json: bool, places: usize) -> Self {
        Board {
            json,
            places,
            running: Mutex::default(),
            figures: Figures::default(),
        }
    }

    /// What is counted.
    pub(super) fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Tells something.
    pub(super) fn tell(&self, news: &News) {
        self.figures.hear(news);
        let line = match self.json {
            true => serde_json::json!(news).to_string(),
            false => news.for_people(),
        };
        // Where nobody reads, nobody can be told.
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }

    /// A place for one more migration, if there is one.
    pub(super) fn enter(self: &Arc<Self>, role: Role, socket: &Path) -> Option<Entry> {
        let mut running = unpoisoned(&self.running);
        if running.len() >= self.places {
            return None;
        }
        let status = Status::of_a_managed_vm(role, socket.display().to_string());
        let status = Arc::new(Mutex::new(status));
        running.push(Arc::clone(&status));
        self.figures.begins(role);
        Some(Entry {
            board: Arc::clone(self),
            status,
        })
    }

    /// All that run.
    pub(super) fn running(&self) -> Vec<Status> {
        let running = unpoisoned(&self.running);
        running.iter().map(|one| unpoisoned(one).clone()).collect()
    }
}

/// A thread that has panicked has left nothing half done here.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_its_migration_is_over() {
        let board = Arc::new(Board::new(true, 1));
        let enter = || board.enter(Role::Send, Path::new("0.sock"));
        let one = enter().unwrap();
        assert!(enter().is_none());
        one.update(|status| status.session = Some("5e".into()));
        assert_eq!(board.running()[0].session.as_deref(), Some("5e"));
        drop(one);
        assert!(board.running().is_empty());
        assert!(enter().is_some());
    }
}

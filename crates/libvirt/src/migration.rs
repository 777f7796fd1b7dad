//! libvirt moves a VM, in a thread of its own: its call returns when that has ended.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use virt::domain::{Domain, MigrateParameters};
use virt::sys;

use crate::Error;

/// Where a VM is to go.
#[derive(Debug, Clone)]
pub struct Move {
    /// How libvirt here reaches libvirt there.
    pub to: String,
    /// Where QEMU's stream goes: libvirt connects to it here, and has QEMU listen at it there.
    pub through: String,
}

/// A migration under way.
#[derive(Debug)]
pub struct Migration {
    domain: Domain,
    /// Readable when it has ended.
    done: UnixStream,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Migration {
    pub(crate) fn begin(domain: Domain, how: Move) -> Result<Self, Error> {
        let (done, mut theirs) = UnixStream::pair()?;
        let moving = domain.clone();
        let thread = std::thread::Builder::new()
            .name("libvirt-migrate".into())
            .spawn(move || {
                let parameters = MigrateParameters {
                    uri: Some(how.through),
                    ..MigrateParameters::default()
                };
                let mut flags = sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_PEER2PEER;
                // A VM that is defined here is defined where it goes, and not here any more: as it was.
                if moving.is_persistent()? {
                    flags |= sys::VIR_MIGRATE_PERSIST_DEST | sys::VIR_MIGRATE_UNDEFINE_SOURCE;
                }
                let moved = moving.migrate_to_uri3(Some(&how.to), parameters, flags);
                // Whoever waits hears of it at the latest when this end is closed.
                let _ = theirs.write_all(&[0]);
                Ok(moved?)
            })?;
        Ok(Migration {
            domain,
            done,
            thread: Some(thread),
        })
    }

    /// Readable when it has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// Asks libvirt to end it; it ends later.
    #[expect(unsafe_code, reason = "the bindings do not have it")]
    pub fn cancel(&self) -> Result<(), Error> {
        // SAFETY: the handle is open for as long as `self.domain` lives.
        match unsafe { sys::virDomainAbortJob(self.domain.as_ptr()) } {
            0 => Ok(()),
            _ => Err(virt::error::Error::last_error().into()),
        }
    }

    /// How it has ended; waits until it has.
    pub fn outcome(&mut self) -> Result<(), Error> {
        let Some(thread) = self.thread.take() else {
            return Err(Error::Answer("nothing more".into()));
        };
        let ended = thread.join();
        ended.unwrap_or_else(|_| Err(Error::Answer("nothing".into())))
    }
}

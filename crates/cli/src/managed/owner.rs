//! libvirt as the owner of a VM.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use libvirt_vm::{Domain, Error, Host, Migration, Monitor, Move, Watch};

use super::open_monitor;
use crate::send::owned::{Owner, Whereabouts};

/// A VM's libvirt.
#[derive(Debug)]
pub(super) struct Libvirt {
    /// How libvirt here is reached.
    here: String,
    domain: Domain,
    /// Passes on what QEMU says, for as long as it is there.
    monitor: Monitor,
    /// libvirt at the destination.
    to: String,
    /// The same, if this process may speak with it.
    there: Option<Host>,
    /// The VM there, once it is watched.
    watch: Arc<OnceLock<Watch>>,
    migration: Option<Migration>,
}

impl Libvirt {
    pub(super) fn new(
        here: String,
        domain: Domain,
        monitor: Monitor,
        to: String,
        there: Option<Host>,
    ) -> Self {
        Libvirt {
            here,
            domain,
            monitor,
            to,
            there,
            watch: Arc::default(),
            migration: None,
        }
    }
}

impl Owner for Libvirt {
    fn begin(&mut self, path: &Path) -> Result<(), String> {
        let how = Move {
            to: self.to.clone(),
            through: format!("unix://{}", path.display()),
        };
        let migration = self.domain.migrate(how).map_err(|e| e.to_string())?;
        self.migration = Some(migration);
        Ok(())
    }

    fn has_begun(&mut self) {
        let Some(there) = self.there.take() else {
            return;
        };
        let (name, slot) = (self.domain.name().to_owned(), Arc::clone(&self.watch));
        // A libvirt that is slow to answer there holds up nothing here.
        let thread = std::thread::Builder::new().name("watch".into());
        let begun = thread.spawn(move || {
            let watch = there.domain(&name).and_then(|domain| domain.watch());
            watch.map(|watch| slot.set(watch))
        });
        // Without it, the downtime is not known.
        drop(begun);
    }

    fn runs_since(&self) -> Option<Instant> {
        self.watch.get().and_then(Watch::resumed)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.migration.as_ref().map(Migration::fd)
    }

    fn cancel(&mut self) {
        if let Some(migration) = &self.migration {
            // Where there is nothing to cancel any more, it is ending.
            let _ = migration.cancel();
        }
    }

    fn outcome(&mut self) -> Result<(), String> {
        match &mut self.migration {
            Some(migration) => migration.outcome().map_err(|error| error.to_string()),
            None => Err("libvirt was not asked to move the VM".into()),
        }
    }

    fn ask_again(&mut self) -> Result<Whereabouts, String> {
        let here = Host::open(&self.here).map_err(|e| e.to_string())?;
        let domain = match here.domain(self.domain.name()) {
            Err(Error::NoDomain { .. }) => return Ok(Whereabouts::Gone),
            found => found.map_err(|e| e.to_string())?,
        };
        if !domain.is_active().map_err(|e| e.to_string())? {
            return Ok(Whereabouts::Gone);
        }
        let (monitor, vm) = open_monitor(&domain).map_err(|e| e.to_string())?;
        self.domain = domain;
        // The one before has nothing more to say.
        drop(std::mem::replace(&mut self.monitor, monitor));
        Ok(Whereabouts::Here(vm))
    }
}

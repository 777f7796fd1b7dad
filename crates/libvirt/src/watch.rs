//! When a VM begins to run.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use virt::connect::Connect;
use virt::domain::Domain;

use crate::Error;
use crate::listener::Listener;

/// Waits for a VM to run.
#[derive(Debug)]
pub struct Watch {
    resumed: Arc<OnceLock<Instant>>,
    _listener: Listener,
}

impl Watch {
    pub(crate) fn begin(connect: &Connect, domain: &Domain) -> Result<Self, Error> {
        let resumed = Arc::new(OnceLock::new());
        let seen = Arc::clone(&resumed);
        let listener = Listener::new(connect, domain, c"^RESUME$", move |_| {
            seen.get_or_init(Instant::now);
        })?;
        Ok(Watch {
            resumed,
            _listener: listener,
        })
    }

    /// When it was heard that it does, if it was.
    pub fn resumed(&self) -> Option<Instant> {
        self.resumed.get().copied()
    }
}

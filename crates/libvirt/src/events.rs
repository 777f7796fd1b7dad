//! libvirt's event loop: one thread for all connections, for as long as the process runs.

use std::sync::OnceLock;

use virt::event::{event_register_default_impl, event_run_default_impl};

use crate::Error;

/// Starts it. Has to be done before the first connection is opened.
pub(crate) fn start() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // It would print every error, besides telling it.
        virt::error::clear_error_callback();
        event_register_default_impl().map_err(|error| error.message().to_owned())?;
        std::thread::Builder::new()
            .name("libvirt".into())
            .spawn(|| while event_run_default_impl().is_ok() {})
            .map_err(|error| error.to_string())?;
        Ok(())
    });
    started.clone().map_err(Error::Libvirt)
}

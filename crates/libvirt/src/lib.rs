//! A VM that libvirt manages: its monitor, its description and its migration.
//!
//! libvirt's C library (LGPL) is needed for this and for nothing else here, so that the tools which do
//! without libvirt do without it.
//!
//! QEMU's monitor belongs to libvirt, which lets others use it: [`Domain::monitor`] makes a socket of
//! that which speaks QMP, so that whoever speaks with QEMU does not see the difference.

mod description;
mod domain;
mod events;
mod host;
mod listener;
mod migration;
mod monitor;
mod watch;

use thiserror::Error;

pub use description::{Channel, Description};
pub use domain::{Added, Domain};
pub use host::Host;
pub use migration::{Migration, Move};
pub use monitor::Monitor;
pub use watch::Watch;

/// Why libvirt cannot be used, or does not want to.
#[derive(Debug, Error)]
pub enum Error {
    /// In its own words.
    #[error("libvirt: {0}")]
    Libvirt(String),
    /// There is no such VM.
    #[error(
        "libvirt at {uri} knows no VM named {name:?} (`virsh -c {uri} list --all` tells which there are)"
    )]
    NoDomain {
        /// Where it was looked for.
        uri: String,
        /// Its name.
        name: String,
    },
    /// A description that is none.
    #[error("libvirt's description of the VM cannot be read: {0}")]
    Description(#[from] roxmltree::Error),
    /// It says something else than what was asked.
    #[error("libvirt answers {0}")]
    Answer(String),
    /// A socket or a thread.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<virt::error::Error> for Error {
    fn from(error: virt::error::Error) -> Self {
        Error::Libvirt(error.message().to_owned())
    }
}

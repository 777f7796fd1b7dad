//! What can go wrong between this process and a QEMU.

use std::io;
use std::path::PathBuf;

/// A failure to control a QEMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing at the socket's path.
    #[error(
        "there is no QMP socket at {path}: start QEMU with -qmp unix:{path},server=on,wait=off, or name the right socket"
    )]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// Nobody listens at the path.
    #[error("nothing listens on {path}: the QEMU that made it has ended")]
    Dead {
        /// The path.
        path: PathBuf,
    },
    /// The connection failed otherwise.
    #[error("cannot connect to the QMP socket {path}: {error}")]
    Connect {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No greeting came.
    #[error(
        "QEMU does not greet on {path}: its monitor serves one client at a time, so disconnect the other one or give unmoor a second -qmp socket"
    )]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// What answers does not speak QMP.
    #[error("{0}: this is not a QMP socket")]
    NotQmp(String),
    /// QEMU has gone.
    #[error("QEMU closed its monitor")]
    Closed,
    /// Reading or writing failed.
    #[error("the QMP connection failed: {0}")]
    Io(#[from] io::Error),
    /// QEMU did not answer in time.
    #[error("QEMU did not answer `{command}` in time")]
    Timeout {
        /// The command.
        command: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused `{command}`: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        desc: String,
    },
    /// An answer of an unknown shape.
    #[error("QEMU's answer to `{command}` is not understood: {what}")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The VM did not come back.
    #[error("the VM is in state `{state}` and its migration in state `{migration}`")]
    Stuck {
        /// QEMU's run state.
        state: String,
        /// QEMU's migration state.
        migration: String,
    },
}

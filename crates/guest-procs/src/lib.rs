//! What unmoor's agent does to the processes of a Linux guest, as root.
//!
//! ```text
//! owners    which page frames belong to whom, which are written, which are free
//! freezer   stops processes, and lets them go on
//! guardian  a second process that lets them go on should this one die
//! quiet     keeps the kernel from moving pages about
//! ```
//!
//! Nothing here has to be true for a migration to be correct: frames move, processes fork, and the
//! hypervisor's bitmap of dirty pages has the last word. What has to be true is that nothing stays
//! frozen: whatever is stopped is on a list on disk ([`journal`]) before it is.

pub mod freezer;
pub mod guardian;
pub mod journal;
mod lease;
pub mod owners;
mod process;
mod quiet;
mod realtime;

pub use freezer::{Freezer, Frozen, Means, Outcome, Refusal};
pub use lease::Lease;
pub use process::{Stat, identify, is_same};
pub use quiet::Quiet;
pub use realtime::{Realtime, ordinary, realtime};

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

/// Where the journals are: a file system that does not outlive the boot.
pub const FOLDER: &str = "/run/unmoor-agent";

/// Writes to a file of the kernel's: one that is there, in one piece.
fn tell(path: impl AsRef<Path>, text: &str) -> io::Result<()> {
    let path = path.as_ref();
    let file = OpenOptions::new().write(true).truncate(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(about(path))
}

/// An error that names the file it is about. A process that has gone is a file that has.
fn about(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> io::Error {
    move |error| {
        let kind = if process::has_gone(&error) {
            io::ErrorKind::NotFound
        } else {
            error.kind()
        };
        io::Error::new(kind, format!("{}: {error}", path.as_ref().display()))
    }
}

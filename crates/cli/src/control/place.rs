//! Where sockets and files are.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// The folder of control sockets: `UNMOOR_RUN_DIR`, or where such things belong.
pub(crate) fn run_folder() -> Option<PathBuf> {
    let user = || Some(PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?).join("unmoor"));
    folder("UNMOOR_RUN_DIR", "/run/unmoor", user)
}

/// The folder of what is to be kept: `UNMOOR_STATE_DIR`, or where such things belong.
pub(crate) fn state_folder() -> Option<PathBuf> {
    let user = || {
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
        Some(state.or_else(home)?.join("unmoor"))
    };
    folder("UNMOOR_STATE_DIR", "/var/lib/unmoor", user)
}

fn folder(
    variable: &str,
    of_root: &str,
    of_user: impl FnOnce() -> Option<PathBuf>,
) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(variable).filter(|given| !given.is_empty()) {
        return Some(given.into());
    }
    match rustix::process::geteuid().is_root() {
        true => Some(of_root.into()),
        false => of_user(),
    }
}

/// Makes a folder that nobody else can look into; it may be there already.
pub(crate) fn make(folder: &std::path::Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

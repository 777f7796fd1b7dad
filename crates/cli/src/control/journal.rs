//! Migrations whose outcome is not known, kept at the source until somebody settles them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use super::place::{make, state_folder};
use crate::guardian::Watch;
use crate::report::session_name;

/// One that is in doubt.
#[derive(Debug)]
pub(super) struct Entry {
    file: PathBuf,
    pub(super) watch: Watch,
}

fn folder() -> Option<PathBuf> {
    Some(state_folder()?.join("in-doubt"))
}

/// One that is kept, by whoever goes on trying.
#[derive(Debug)]
pub(crate) struct Kept(PathBuf);

impl Kept {
    /// Whether somebody has decided, and whoever goes on trying is to end.
    pub(crate) fn is_decided(&self) -> bool {
        !self.0.exists()
    }

    /// It is not in doubt any more.
    pub(crate) fn forget(self) {
        // Somebody may have decided just now.
        let _ = fs::remove_file(self.0);
    }
}

/// Keeps one.
pub(crate) fn keep(watch: &Watch) -> io::Result<Kept> {
    let Some(folder) = folder() else {
        return Err(ErrorKind::NotFound.into());
    };
    make(&folder)?;
    let file = folder.join(format!("{}.json", session_name(watch.session)));
    fs::write(&file, serde_json::to_vec_pretty(watch)?)?;
    Ok(Kept(file))
}

/// All of them. A file that cannot be read is told of.
pub(super) fn all() -> io::Result<Vec<Entry>> {
    let Some(folder) = folder() else {
        return Ok(Vec::new());
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let file = entry?.path();
        let read = fs::read(&file).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let watch = read.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", file.display()))
        })?;
        found.push(Entry { file, watch });
    }
    Ok(found)
}

impl Entry {
    pub(super) fn name(&self) -> String {
        session_name(self.watch.session)
    }

    /// It is being settled: whoever goes on trying ends, and lets go of QEMU's monitor.
    pub(super) fn take(&mut self) -> io::Result<()> {
        let taken = self.file.with_extension("taken");
        fs::rename(&self.file, &taken)?;
        self.file = taken;
        Ok(())
    }

    /// It is settled.
    pub(super) fn settled(&self) -> io::Result<()> {
        fs::remove_file(&self.file)
    }
}

//! Records of finished migrations, kept on this host.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::control::{make_folder, state_folder};

/// Most records that are kept; the oldest go.
const KEPT_MAX: usize = 200;

/// Where they are.
pub(crate) fn folder() -> Option<PathBuf> {
    Some(state_folder()?.join("migrations"))
}

/// Keeps a record; its file.
pub(super) fn keep(folder: &Path, name: &str, record: &[u8]) -> io::Result<PathBuf> {
    make_folder(folder)?;
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, record)?;
    let all = names(folder)?;
    for old in &all[..all.len().saturating_sub(KEPT_MAX)] {
        // Somebody else may have been faster.
        let _ = fs::remove_file(old);
    }
    Ok(file)
}

/// All that are kept, the oldest first: their names begin with the time.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "json") {
            names.push(path);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let folder = folder.path().join("made");
        for number in 0..KEPT_MAX + 3 {
            keep(&folder, &format!("{number:04}"), b"{}")?;
        }
        let kept = names(&folder)?;
        assert_eq!(kept.len(), KEPT_MAX);
        assert_eq!(kept[0], folder.join("0003.json"));
        Ok(())
    }
}

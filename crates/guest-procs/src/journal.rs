//! What has to be undone, on disk before it is done.
//!
//! ```text
//! thaw PATH          a control group that is frozen
//! leave PATH         one of ours below another: thaw, move all up, remove
//! set VALUE PATH     a setting of the kernel, and what it was
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{about, freezer, tell};

/// What to undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A control group is frozen.
    Thaw(PathBuf),
    /// A control group was made, and processes moved into it.
    Leave(PathBuf),
    /// A setting was changed.
    Set {
        /// The file.
        path: PathBuf,
        /// What it was.
        value: String,
    },
}

impl Entry {
    fn line(&self) -> Vec<u8> {
        let (mut line, path) = match self {
            Entry::Thaw(path) => (b"thaw ".to_vec(), path),
            Entry::Leave(path) => (b"leave ".to_vec(), path),
            Entry::Set { path, value } => (format!("set {value} ").into_bytes(), path),
        };
        line.extend_from_slice(path.as_os_str().as_bytes());
        line.push(b'\n');
        line
    }

    /// A line that is none is skipped: the rest can still be undone.
    fn parse(line: &[u8]) -> Option<Self> {
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        let (kind, rest) = split(line)?;
        match kind {
            b"thaw" => Some(Entry::Thaw(path(rest))),
            b"leave" => Some(Entry::Leave(path(rest))),
            b"set" => {
                let (value, rest) = split(rest)?;
                Some(Entry::Set {
                    path: path(rest),
                    value: String::from_utf8(value.to_vec()).ok()?,
                })
            }
            _ => None,
        }
    }

    /// Undoes it; a control group that has gone is no failure.
    pub fn undo(&self) -> io::Result<()> {
        match self {
            Entry::Thaw(path) => freezer::cgroup::thaw(path),
            Entry::Leave(path) => freezer::cgroup::leave(path),
            Entry::Set { path, value } => tell(path, value),
        }
    }
}

fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    Some((&line[..space], &line[space + 1..]))
}

/// One list of what has to be undone.
#[derive(Debug, Clone)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// What is frozen.
    pub fn frozen(folder: &Path) -> Self {
        Journal {
            path: folder.join("frozen"),
        }
    }

    /// What the kernel was kept from.
    pub fn quiet(folder: &Path) -> Self {
        Journal {
            path: folder.join("quiet"),
        }
    }

    /// Replaces the list, all at once.
    pub fn write<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>) -> io::Result<()> {
        let lines: Vec<u8> = entries.into_iter().flat_map(Entry::line).collect();
        if lines.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(about(&self.path)(error))
                }
                _ => Ok(()),
            };
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(about(folder))?;
        }
        let new = self.path.with_extension("new");
        fs::write(&new, lines).map_err(about(&new))?;
        fs::rename(&new, &self.path).map_err(about(&self.path))
    }

    /// The list.
    pub fn read(&self) -> io::Result<Vec<Entry>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(text
                .split(|byte| *byte == b'\n')
                .filter_map(Entry::parse)
                .collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(about(&self.path)(error)),
        }
    }

    /// Holds off others that would undo the same; none where there cannot be a list.
    fn lock(&self) -> io::Result<Option<File>> {
        let path = self.path.with_extension("lock");
        match File::create(&path) {
            Ok(file) => {
                file.lock().map_err(about(&path))?;
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(about(&path)(error)),
        }
    }

    /// Undoes all there is on the list, whoever wrote it. What could not be undone stays on it.
    pub fn undo(&self) -> io::Result<usize> {
        // A guardian may be at it, while a new agent has begun already.
        let _alone = self.lock()?;
        let entries = self.read()?;
        // What runs again must not wait for what takes longer.
        for entry in &entries {
            if let Entry::Thaw(path) | Entry::Leave(path) = entry {
                // Tried again below, where a failure is kept.
                let _ = freezer::cgroup::thaw(path);
            }
        }
        let mut left = Vec::new();
        let mut failure = None;
        for entry in entries.iter().rev() {
            if let Err(error) = entry.undo() {
                left.insert(0, entry.clone());
                failure = Some(error);
            }
        }
        self.write(&left)?;
        failure.map_or(Ok(entries.len()), Err)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let path = "(/[a-z0-9 .:@-]{1,12}){1,4}";
        (0..3, path, "[0-9a-z]{1,10}").prop_map(|(kind, path, value)| {
            let path = PathBuf::from(path);
            match kind {
                0 => Entry::Thaw(path),
                1 => Entry::Leave(path),
                _ => Entry::Set { path, value },
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(entry(), 0..9)) {
            let folder = tempfile::tempdir().unwrap();
            let journal = Journal::frozen(&folder.path().join("new"));
            prop_assert_eq!(journal.read().unwrap(), Vec::new());
            journal.write(&entries).unwrap();
            prop_assert_eq!(journal.read().unwrap(), entries);
            journal.write([]).unwrap();
            prop_assert_eq!(journal.read().unwrap(), Vec::new());
        }

        #[test]
        fn anything_can_be_read(text: Vec<u8>) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("frozen"), &text).unwrap();
            Journal::frozen(folder.path()).read().unwrap();
        }
    }

    #[test]
    fn settings_are_put_back_and_what_fails_stays() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::quiet(folder.path());
        let good = folder.path().join("good");
        let set = |path: &Path| Entry::Set {
            path: path.into(),
            value: "7".into(),
        };
        fs::write(&good, "1").unwrap();
        let bad = set(&folder.path().join("missing/bad"));
        journal.write(&[set(&good), bad.clone()]).unwrap();
        journal.undo().unwrap_err();
        assert_eq!(fs::read(&good).unwrap(), b"7");
        assert_eq!(journal.read().unwrap(), [bad]);
    }
}

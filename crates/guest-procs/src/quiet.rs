//! Keeps the kernel from moving pages about.
//!
//! Frames of frozen processes move all the same: transparent huge pages are put together, equal
//! pages merged, memory compacted, pages moved between NUMA nodes. Each such page travels again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::journal::{Entry, Journal};
use crate::tell;

/// What is written where, in this order, and taken back in the opposite one. The daemon that puts
/// huge pages together has no switch of its own that would not also change page faults: it gets to
/// look at one page, in a time that never comes.
const SETTINGS: [(&str, &str); 5] = [
    (
        "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan",
        "1",
    ),
    (
        "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
        "4294967295",
    ),
    ("/sys/kernel/mm/ksm/run", "0"),
    ("/proc/sys/kernel/numa_balancing", "0"),
    ("/proc/sys/vm/compaction_proactiveness", "0"),
];

/// While it is there, the kernel leaves pages where they are. Settings are put back when it is
/// dropped, or by the [`guardian`](crate::guardian).
#[derive(Debug)]
pub struct Quiet {
    journal: Journal,
    changed: usize,
}

impl Quiet {
    /// Begins. Settings that this kernel does not have are passed over.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        let settings = SETTINGS.map(|(path, value)| (PathBuf::from(path), value));
        Self::with(Journal::quiet(folder), &settings)
    }

    fn with(journal: Journal, settings: &[(PathBuf, &str)]) -> io::Result<Self> {
        // What a former agent changed must not be taken for what it was.
        journal.undo()?;
        let changes = changes(settings, |path| fs::read_to_string(path).ok());
        journal.write(changes.iter().map(|(before, _)| before))?;
        let quiet = Quiet {
            journal,
            changed: changes.len(),
        };
        for (before, value) in &changes {
            if let Entry::Set { path, .. } = before {
                // From here on, dropping `quiet` puts everything back.
                tell(path, value)?;
            }
        }
        Ok(quiet)
    }

    /// How many settings had to be changed.
    pub fn changed(&self) -> usize {
        self.changed
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // What fails stays in the journal, for the guardian.
        let _ = self.journal.undo();
    }
}

/// What each setting was, and what it is to be.
fn changes<'a>(
    settings: &[(PathBuf, &'a str)],
    read: impl Fn(&Path) -> Option<String>,
) -> Vec<(Entry, &'a str)> {
    let change = |(path, value): &(PathBuf, &'a str)| {
        let before = read(path)?.trim().to_owned();
        let single_word = !before.is_empty() && !before.contains(char::is_whitespace);
        let entry = Entry::Set {
            path: path.clone(),
            value: before.clone(),
        };
        (single_word && before != *value).then_some((entry, *value))
    };
    settings.iter().filter_map(change).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_change_and_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, value) in [("a", "4096\n"), ("b", "0\n"), ("c", "[x] y\n")] {
            fs::write(at(name), value).unwrap();
        }
        let settings = [
            (at("a"), "1"),
            (at("b"), "0"),
            (at("c"), "y"),
            (at("none"), "1"),
        ];
        let read = |name| fs::read_to_string(at(name)).unwrap();
        let journal = Journal::quiet(folder.path());
        let quiet = Quiet::with(journal.clone(), &settings).unwrap();
        assert_eq!(
            (quiet.changed(), read("a"), read("c")),
            (1, "1".into(), "[x] y\n".into())
        );
        // As if killed: the next one puts back what was there before.
        std::mem::forget(quiet);
        let quiet = Quiet::with(journal.clone(), &settings).unwrap();
        assert_eq!((quiet.changed(), read("a")), (1, "1".into()));
        drop(quiet);
        assert_eq!(read("a"), "4096");
        assert_eq!(journal.read().unwrap(), []);
    }
}

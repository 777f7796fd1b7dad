//! The two files of a report: found out to be writable before anything begins.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The files, open from the beginning on. What they held is replaced only by a whole report.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) html: PathBuf,
    pub(super) json: PathBuf,
    html_file: File,
    json_file: File,
}

impl Files {
    /// Opens both, or says why not, and what to do.
    pub(super) fn open(html: &Path) -> Result<Self, String> {
        let json = html.with_extension("json");
        if html.file_name().is_none() || json == html {
            return Err(format!(
                "--report {} must name the page, such as report.html: its data goes beside it, with the ending .json",
                html.display()
            ));
        }
        Ok(Files {
            html_file: open(html)?,
            json_file: open(&json)?,
            html: html.to_owned(),
            json,
        })
    }

    /// Puts the report in place of what the files held.
    pub(super) fn write(&self, html: &str, json: &[u8]) -> io::Result<()> {
        replace(&self.html_file, html.as_bytes())?;
        replace(&self.json_file, json)
    }
}

fn open(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        // Command lines of the guest's processes are in it: whom it is for is the user's to say.
        .mode(0o600)
        .open(path);
    opened.map_err(|error| {
        format!(
            "the report cannot be written to {}: {error}; name a file that can be, or leave --report out",
            path.display()
        )
    })
}

fn replace(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    // A pipe or a terminal has no length.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn both_files_are_written_at_the_end_and_not_before() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let html = folder.path().join("move.html");
        std::fs::write(&html, "an older and longer report")?;
        let files = Files::open(&html).map_err(io::Error::other)?;
        assert_eq!(std::fs::read(&html)?, b"an older and longer report");
        files.write("<p>", b"{}")?;
        assert_eq!(std::fs::read(&html)?, b"<p>");
        let data = folder.path().join("move.json");
        assert_eq!(std::fs::read(&data)?, b"{}");
        // A new file is its user's alone.
        let mode = std::fs::metadata(&data)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Ok(())
    }

    #[test]
    fn what_cannot_be_written_is_refused_with_the_remedy() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        for (path, words) in [
            (folder.path().join("none/a.html"), "No such file"),
            (folder.path().to_owned(), "Is a directory"),
            (folder.path().join("a.json"), "such as report.html"),
        ] {
            let refused = Files::open(&path).err().unwrap_or_default();
            assert!(refused.contains(words), "{refused}");
            assert!(refused.contains("name"), "{refused}");
        }
        Ok(())
    }
}

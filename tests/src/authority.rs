//! Certificates for the lab's hosts, made by `unmoor cert`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use lab::program;

/// An authority, and what it has issued.
#[derive(Debug)]
pub struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let dir = folder.path().display().to_string();
        cert(&["init", "--dir", &dir])?;
        Ok(Authority { folder })
    }

    /// The folder of a host's certificates.
    pub fn issue(&self, host: &str) -> Result<String> {
        let dir = self.folder.path().display().to_string();
        cert(&["issue", host, "--dir", &dir, "--force"])?;
        Ok(self.path(host).display().to_string())
    }

    /// A file, or a host's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn cert(args: &[&str]) -> Result<()> {
    let output = Command::new(program("unmoor"))
        .arg("cert")
        .args(args)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

//! Pages in a real browser: Chromium, without a window.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest wait for one page.
const LIMIT: Duration = Duration::from_secs(90);

/// What is asked of a page in a browser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// As on paper.
    Light,
    /// Light on dark.
    Dark,
}

/// A browser with an empty profile, which is removed with it.
#[derive(Debug)]
pub struct Browser {
    profile: tempfile::TempDir,
}

/// A picture of a page.
#[derive(Debug)]
pub struct Picture {
    /// The PNG file.
    pub png: Vec<u8>,
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

impl Browser {
    /// With a profile of its own.
    pub fn new() -> Result<Self> {
        let profile = tempfile::tempdir()?;
        Ok(Browser { profile })
    }

    /// The page's document as the browser has it in the end; fails if the page complained.
    pub fn document(&self, page: &Path, width: u32) -> Result<String> {
        let size = format!("--window-size={width},1000");
        self.run(page, &["--dump-dom", &size])
    }

    /// A picture of the page's upper part.
    pub fn picture(&self, page: &Path, width: u32, height: u32, scheme: Scheme) -> Result<Picture> {
        let file = self.profile.path().join("picture.png");
        let scheme = match scheme {
            Scheme::Dark => "--blink-settings=preferredColorScheme=0",
            Scheme::Light => "--blink-settings=preferredColorScheme=1",
        };
        self.run(
            page,
            &[
                &format!("--screenshot={}", file.display()),
                &format!("--window-size={width},{height}"),
                "--hide-scrollbars",
                "--force-device-scale-factor=1",
                scheme,
            ],
        )?;
        let png = fs::read(&file).context("no picture")?;
        ensure!(
            png.starts_with(b"\x89PNG\r\n\x1a\n"),
            "the picture is no PNG"
        );
        let number = |at: usize| {
            let bytes = png.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes
                .map(u32::from_be_bytes)
                .context("a PNG without a head")
        };
        Ok(Picture {
            width: number(16)?,
            height: number(20)?,
            png,
        })
    }

    fn run(&self, page: &Path, what: &[&str]) -> Result<String> {
        let log = self.profile.path().join("log");
        let out = self.profile.path().join("out");
        let mut child = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--enable-logging=stderr",
            ])
            .arg(format!("--user-data-dir={}", self.profile.path().display()))
            .args(what)
            .arg(format!("file://{}", std::path::absolute(page)?.display()))
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out)?)
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("starting chromium: `make setup` installs it")?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!(
                    "chromium does not end; it says {}",
                    fs::read_to_string(&log)?
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        ensure!(status.success(), "chromium ended with {status}: {said}");
        let complaint = said.lines().find(|line| line.contains(":CONSOLE"));
        ensure!(complaint.is_none(), "the page complains: {complaint:?}");
        Ok(fs::read_to_string(&out)?)
    }
}

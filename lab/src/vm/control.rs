//! Commands for the guest.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Longest wait for an answer of the guest.
const GUEST_LIMIT: Duration = Duration::from_secs(90);

/// The host's end of the channel that `lab-guest control` serves.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    pending: Vec<u8>,
    next_id: u64,
}

impl Control {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("connecting to the guest")?;
        stream.set_read_timeout(Some(GUEST_LIMIT))?;
        // Answers to somebody before us may still be on their way: begin where nobody was.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(Control {
            stream,
            pending: Vec::new(),
            next_id: u64::from(now.subsec_nanos()) << 20,
        })
    }

    /// Runs a shell command in the guest; fails if the command does.
    pub fn run(&mut self, command: &str) -> Result<String> {
        let (code, output) = self
            .ask(command)
            .with_context(|| format!("running `{command}` in the guest"))?;
        if code != 0 {
            bail!("`{command}` in the guest ended with {code}: {output}");
        }
        Ok(output)
    }

    /// Sends a shell command; its answer is passed over.
    pub(super) fn tell(&mut self, command: &str) -> Result<String> {
        self.next_id += 1;
        let id = self.next_id.to_string();
        writeln!(self.stream, "{id} {command}")?;
        Ok(id)
    }

    fn ask(&mut self, command: &str) -> Result<(i32, String)> {
        let id = self.tell(command)?;
        loop {
            let line = self.line()?;
            let fields: Vec<&str> = line.split(' ').collect();
            let [of, code, length] = fields[..] else {
                continue;
            };
            let (Ok(code), Ok(length)) = (code.parse(), length.parse::<usize>()) else {
                continue;
            };
            while self.pending.len() < length {
                self.read()?;
            }
            let output: Vec<u8> = self.pending.drain(..length).collect();
            if of == id {
                return Ok((code, String::from_utf8_lossy(&output).into_owned()));
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer)? {
            0 => bail!("QEMU closed the channel"),
            count => self.pending.extend_from_slice(&buffer[..count]),
        }
        Ok(())
    }
}

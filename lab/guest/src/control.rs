//! A command channel over a virtio-serial port.
//!
//! ```text
//! host   ID SP command LF
//! guest  ID SP exit code SP length LF, then so many bytes of output
//! ```
//!
//! The port survives a migration; the host at its other end does not. A request or answer that is
//! cut off is recognised by its ID and skipped.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::Outcome;

/// Time between two looks at a port that nobody holds at the other end: the kernel then reports
/// the end of the file at once, and offers no event for somebody's arrival.
const NOBODY_THERE: Duration = Duration::from_millis(20);

pub(crate) fn run(name: &str) -> Outcome {
    let mut port = open(name)?;
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = port.read(&mut buffer).unwrap_or(0);
        if count == 0 {
            // What was half said will not be finished by somebody else.
            pending.clear();
            sleep(NOBODY_THERE);
            continue;
        }
        pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            if let Some((id, command)) = line.split_once(' ') {
                answer(&mut port, id, command);
            }
        }
    }
}

fn answer(port: &mut File, id: &str, command: &str) {
    let (code, output) = match Command::new("/bin/sh").args(["-c", command]).output() {
        Ok(output) => {
            let mut text = output.stdout;
            text.extend_from_slice(&output.stderr);
            (output.status.code().unwrap_or(-1), text)
        }
        Err(error) => (-1, error.to_string().into_bytes()),
    };
    let mut message = format!("{id} {code} {}\n", output.len()).into_bytes();
    message.extend_from_slice(&output);
    // The host has gone: the next one asks anew.
    let _ = port.write_all(&message);
}

/// The port of that name; its device number depends on the order of probing.
fn open(name: &str) -> Result<File, Box<dyn std::error::Error>> {
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
        {
            let entry = entry?;
            let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                let device = PathBuf::from("/dev").join(entry.file_name());
                return Ok(OpenOptions::new().read(true).write(true).open(device)?);
            }
        }
        sleep(NOBODY_THERE);
    }
}

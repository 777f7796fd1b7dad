//! A packet at regular intervals.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lab::client::EchoReport;
use rustix::event::PollFlags;

use crate::timing::{Answers, TAIL, wait};

pub(crate) fn run(address: SocketAddr, interval_us: u64) -> Result<()> {
    let interval = Duration::from_micros(interval_us);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    // When each packet was sent, and whether it has been answered.
    let mut sent: Vec<(Instant, bool)> = Vec::new();
    let begun = Instant::now();
    let mut answers = Answers::new(begun);
    let mut warm = false;
    let mut next = begun;
    let mut ends: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if ends.is_some_and(|ends| now >= ends || answers.count() == sent.len() as u64) {
            break;
        }
        if !warm && now - begun > Duration::from_secs(20) {
            bail!("no answer from {address}");
        }
        if ends.is_none() && now >= next {
            let number = sent.len() as u64;
            sent.push((now, false));
            // A packet that cannot be sent is a lost one.
            let _ = socket.send(&number.to_le_bytes());
            next += interval;
        }
        let until = ends.unwrap_or(next);
        if wait(&[(socket.as_fd(), PollFlags::IN)], ends.is_none(), until)? {
            ends = Some(Instant::now() + TAIL);
        }
        let mut buffer = [0; 16];
        loop {
            match socket.recv(&mut buffer) {
                Ok(8) => {
                    let number = u64::from_le_bytes(buffer[..8].try_into()?);
                    let index = usize::try_from(number)?;
                    if let Some((at, answered @ false)) = sent.get_mut(index) {
                        *answered = true;
                        answers.add(*at, Instant::now());
                    }
                    if !warm {
                        warm = true;
                        println!("warm");
                    }
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The guest's port was not open at that moment: as good as lost.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let lost = sent.len() as u64 - answers.count();
    #[expect(clippy::cast_precision_loss, reason = "thousands of packets at most")]
    let report = EchoReport {
        sent: sent.len() as u64,
        lost,
        lost_ms: lost as f64 * interval.as_secs_f64() * 1000.0,
        longest_gap_ms: answers.longest_gap_ms(),
        p50_ms: answers.permille_ms(500),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

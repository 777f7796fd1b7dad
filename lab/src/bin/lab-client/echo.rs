//! A packet at regular intervals.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lab::client::EchoReport;
use rustix::event::PollFlags;

use crate::record::Record;
use crate::timing::{Orders, TAIL, wait};

pub(crate) fn run(address: SocketAddr, interval_us: u64) -> Result<()> {
    let interval = Duration::from_micros(interval_us);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(address)?;
    socket.set_nonblocking(true)?;
    let begun = Instant::now();
    let mut record = Record::new(begun);
    let mut orders = Orders::default();
    let mut warm = false;
    let mut next = begun;
    let mut ends: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if ends.is_some_and(|ends| now >= ends || record.answered() == record.sent()) {
            break;
        }
        if !warm && now - begun > Duration::from_secs(20) {
            bail!("no answer from {address}");
        }
        if ends.is_none() && now >= next {
            let number = record.ask(now) as u64;
            // A packet that cannot be sent is a lost one.
            let _ = socket.send(&number.to_le_bytes());
            next += interval;
        }
        let until = ends.unwrap_or(next);
        let news = wait(&[(socket.as_fd(), PollFlags::IN)], ends.is_none(), until)?;
        if news && orders.take(&mut record)? {
            ends = Some(Instant::now() + TAIL);
        }
        let mut buffer = [0; 16];
        loop {
            match socket.recv(&mut buffer) {
                Ok(8) => {
                    let number = u64::from_le_bytes(buffer[..8].try_into()?);
                    record.answer(usize::try_from(number)?, Instant::now());
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
    println!("{}", serde_json::to_string(&report(&record, interval))?);
    Ok(())
}

/// What was asked at regular intervals.
pub(crate) fn report(record: &Record, interval: Duration) -> EchoReport {
    let whole = record.whole();
    let interval_ms = interval.as_secs_f64() * 1000.0;
    #[expect(clippy::cast_precision_loss, reason = "thousands of packets at most")]
    EchoReport {
        sent: whole.sent,
        lost: whole.lost,
        lost_ms: whole.lost as f64 * interval_ms,
        longest_gap_ms: whole.longest_gap_ms,
        p50_ms: whole.p50_ms,
        interval_ms,
        windows: record.windows(),
    }
}

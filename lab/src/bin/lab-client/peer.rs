//! Somebody outside whom a process in the guest calls, and who then notices whether it answers.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Result;
use lab::client::EchoReport;
use rustix::event::PollFlags;

use crate::echo;
use crate::record::Record;
use crate::timing::{Orders, TAIL, wait};

/// Waits for a call, then asks at regular intervals.
pub(crate) fn run(address: SocketAddr, interval_us: u64) -> Result<()> {
    let interval = Duration::from_micros(interval_us);
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    println!("warm");
    let mut record = Record::new(Instant::now());
    let mut orders = Orders::default();
    let mut caller: Option<Caller> = None;
    let mut next = Instant::now();
    let mut ends: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if ends.is_some_and(|ends| now >= ends || record.answered() == record.sent()) {
            break;
        }
        match &mut caller {
            None => {
                if let Ok((stream, _)) = listener.accept() {
                    caller = Some(Caller::new(stream)?);
                    record.begin(now);
                    next = now;
                }
            }
            Some(caller) => {
                if ends.is_none() && now >= next {
                    caller.ask(record.ask(next));
                    next += interval;
                }
                let before = caller.alive;
                caller.pump(&mut record)?;
                if before && !caller.alive {
                    record.broke(now);
                }
            }
        }
        let (fd, until) = match &caller {
            Some(caller) if caller.alive => (caller.stream.as_fd(), ends.unwrap_or(next)),
            Some(_) => (listener.as_fd(), ends.unwrap_or(next)),
            // Nobody has called: no hurry.
            None => (listener.as_fd(), now + Duration::from_secs(60)),
        };
        if wait(&[(fd, PollFlags::IN)], ends.is_none(), until)? && orders.take(&mut record)? {
            ends = Some(Instant::now() + TAIL);
        }
    }
    let report: EchoReport = echo::report(&record, interval);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

struct Caller {
    stream: TcpStream,
    alive: bool,
    input: Vec<u8>,
}

impl Caller {
    fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Caller {
            stream,
            alive: true,
            input: Vec::new(),
        })
    }

    fn ask(&mut self, number: usize) {
        // Eight bytes are written whole or, into a buffer that is full, not at all: then they are
        // lost.
        let _ = self.stream.write(&(number as u64).to_le_bytes());
    }

    fn pump(&mut self, record: &mut Record) -> Result<()> {
        let mut buffer = [0; 2048];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.alive = false,
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.alive = false,
            }
            break;
        }
        let now = Instant::now();
        let whole = self.input.len() / 8 * 8;
        for number in self.input[..whole].chunks_exact(8) {
            let number = u64::from_le_bytes(number.try_into()?);
            record.answer(usize::try_from(number)?, now);
        }
        self.input.drain(..whole);
        Ok(())
    }
}

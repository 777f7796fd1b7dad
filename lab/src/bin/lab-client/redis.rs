//! A steady, open-loop load on Redis whose answers are checked.
//!
//! Requests are due at fixed moments whether or not earlier ones have been answered: a server that
//! stands still is seen to. Each connection has keys of its own, so the value that a GET must
//! bring is known when it is sent.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use lab::client::RedisReport;
use rustix::event::PollFlags;

use crate::record::Record;
use crate::timing::{Orders, TAIL, wait};

const CONNECTIONS: usize = 4;
const KEYS: usize = 1000;
const VALUE_BYTES: usize = 1024;

struct Connection {
    number: usize,
    /// Absent once it has broken.
    stream: Option<TcpStream>,
    output: Vec<u8>,
    input: Vec<u8>,
    waiting: VecDeque<(usize, Expected)>,
    /// Version of each key's value.
    versions: Vec<u64>,
    random: u64,
}

enum Expected {
    Ok,
    Value(Option<Vec<u8>>),
}

pub(crate) fn run(address: SocketAddr, rate: u32) -> Result<()> {
    let interval = Duration::from_secs(1) / rate;
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        connections.push(Connection::new(address, number)?);
    }
    let begun = Instant::now();
    let mut record = Record::new(begun);
    let mut orders = Orders::default();
    let (mut wrong, mut broken) = (0u64, 0u64);
    let mut next = begun;
    let mut ends: Option<Instant> = None;
    let mut warm = false;
    loop {
        let now = Instant::now();
        let waiting = connections.iter().any(|one| !one.waiting.is_empty());
        if ends.is_some_and(|ends| now >= ends || !waiting) {
            break;
        }
        if !warm && now - begun > Duration::from_secs(20) {
            bail!("no answer from {address}");
        }
        while ends.is_none() && now >= next {
            let number = record.ask(next);
            connections[number % CONNECTIONS].request(number);
            next += interval;
        }
        for one in &mut connections {
            let before = one.stream.is_some();
            one.pump(&mut record, &mut wrong)?;
            if before && one.stream.is_none() {
                broken += 1;
                record.broke(Instant::now());
            }
        }
        if !warm && record.answered() > 0 {
            warm = true;
            println!("warm");
        }
        let fds: Vec<_> = connections
            .iter()
            .filter_map(|one| {
                let flags = if one.output.is_empty() {
                    PollFlags::IN
                } else {
                    PollFlags::IN | PollFlags::OUT
                };
                Some((one.stream.as_ref()?.as_fd(), flags))
            })
            .collect();
        let news = wait(&fds, ends.is_none(), ends.unwrap_or(next))?;
        if news && orders.take(&mut record)? {
            ends = Some(Instant::now() + TAIL);
        }
    }
    let whole = record.whole();
    let report = RedisReport {
        sent: whole.sent,
        answered: whole.answered,
        lost: whole.lost,
        wrong,
        broken_connections: broken,
        p50_ms: whole.p50_ms,
        p99_ms: whole.p99_ms,
        max_ms: whole.max_ms,
        longest_gap_ms: whole.longest_gap_ms,
        windows: record.windows(),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

impl Connection {
    fn new(address: SocketAddr, number: usize) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(20))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Connection {
            number,
            stream: Some(stream),
            output: Vec::new(),
            input: Vec::new(),
            waiting: VecDeque::new(),
            versions: vec![0; KEYS],
            random: 88_172_645_463_325_252 + number as u64,
        })
    }

    fn request(&mut self, number: usize) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let key = usize::try_from(self.random % KEYS as u64).unwrap_or(0);
        let name = format!("{}:{key:05}", self.number);
        // A broken connection takes no more, but its requests are lost and must show.
        let expected = if self.random >> 63 == 0 {
            self.command(&[b"GET", name.as_bytes()]);
            Expected::Value((self.versions[key] > 0).then(|| self.value(key)))
        } else {
            self.versions[key] += 1;
            let value = self.value(key);
            self.command(&[b"SET", name.as_bytes(), &value]);
            Expected::Ok
        };
        self.waiting.push_back((number, expected));
    }

    fn value(&self, key: usize) -> Vec<u8> {
        let mut value = format!("{}:{key}:{}:", self.number, self.versions[key]).into_bytes();
        let pattern = value.clone();
        value.extend(pattern.iter().cycle().take(VALUE_BYTES - pattern.len()));
        value
    }

    fn command(&mut self, parts: &[&[u8]]) {
        self.output
            .extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
        for part in parts {
            self.output
                .extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
            self.output.extend_from_slice(part);
            self.output.extend_from_slice(b"\r\n");
        }
    }

    /// Writes and reads what it can without waiting.
    fn pump(&mut self, record: &mut Record, wrong: &mut u64) -> Result<()> {
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let mut alive = true;
        if !self.output.is_empty() {
            match stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => alive = false,
            }
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => alive = false,
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => alive = false,
            }
            break;
        }
        if !alive {
            self.stream = None;
        }
        let now = Instant::now();
        while let Some((answer, length)) = parse(&self.input)? {
            let Some((number, expected)) = self.waiting.pop_front() else {
                bail!("an answer to nothing");
            };
            let right = match (&expected, answer) {
                (Expected::Ok, Answer::Status(b"OK")) => true,
                (Expected::Value(expected), Answer::Value(value)) => expected.as_deref() == value,
                _ => false,
            };
            *wrong += u64::from(!right);
            record.answer(number, now);
            self.input.drain(..length);
        }
        Ok(())
    }
}

enum Answer<'a> {
    Status(&'a [u8]),
    Value(Option<&'a [u8]>),
    Error,
}

/// One answer of Redis' protocol off the front of `input`, and its length.
fn parse(input: &[u8]) -> Result<Option<(Answer<'_>, usize)>> {
    let Some(end) = input.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let (line, after) = (&input[1..end], end + 2);
    match input[0] {
        b'+' => Ok(Some((Answer::Status(line), after))),
        b'-' => Ok(Some((Answer::Error, after))),
        b'$' => {
            let length: i64 = std::str::from_utf8(line)?.parse()?;
            let Ok(length) = usize::try_from(length) else {
                return Ok(Some((Answer::Value(None), after)));
            };
            Ok(input
                .get(after..after + length + 2)
                .map(|value| (Answer::Value(Some(&value[..length])), after + length + 2)))
        }
        other => bail!("an answer of unknown type {other}"),
    }
}

//! Dirties memory at a chosen rate, and can tell whether any of it was lost.
//!
//! Every page holds its index, its generation and a body derived from both; the generation that
//! each page should have is kept apart. A page that went missing on the way shows an older
//! generation; a damaged one does not match its own head.
//!
//! Several may run at once, each with a name of its own. Told to `call-out`, one opens a TCP
//! connection to an address outside and gives back what comes from there between two batches of
//! pages: from then on somebody outside notices when it stands still.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Outcome;

/// Where a writer listens; a name follows if it has one.
const SOCKET: &str = "/run/lab-writer";
/// Longest wait for the one who is called.
const CALL_LIMIT: Duration = Duration::from_secs(5);
const PAGE_WORDS: usize = 512;
const PAGE_BYTES: u64 = 4096;
/// Pages between two looks at the clock and the socket.
const BATCH: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Rewrites whole pages with fresh data.
    Full,
    /// The same, with data that can be compressed to less than half.
    Text,
    /// Rewrites 8 bytes of each page.
    Touch,
}

struct Writer {
    memory: Vec<u64>,
    /// The generation that each page should have.
    generations: Vec<u32>,
    mode: Mode,
    written: u64,
    writing: Duration,
    /// Damaged on purpose, and nobody has looked yet.
    damaged: bool,
    /// Who was called outside.
    outside: Option<TcpStream>,
}

pub(crate) fn run(mib: &str, rate: &str, mode: &str, name: &str) -> Outcome {
    let mib: usize = mib.parse()?;
    let rate: f64 = rate.parse()?;
    let mode = match mode {
        "full" => Mode::Full,
        "text" => Mode::Text,
        "touch" => Mode::Touch,
        _ => return Err("the mode is full, text or touch".into()),
    };
    let pages = (mib << 20) / (PAGE_WORDS * 8);
    let mut writer = Writer {
        memory: vec![0; pages * PAGE_WORDS],
        generations: vec![0; pages],
        mode,
        written: 0,
        writing: Duration::ZERO,
        damaged: false,
        outside: None,
    };
    for page in 0..pages {
        writer.fill(page);
    }
    let socket = socket(name);
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)?;
    println!("writer ready");
    writer.write_forever(&listener, rate)
}

fn socket(name: &str) -> String {
    match name {
        "" => SOCKET.into(),
        name => format!("{SOCKET}-{name}"),
    }
}

impl Writer {
    fn write_forever(&mut self, listener: &UnixListener, rate: f64) -> Outcome {
        let mut next = 0;
        loop {
            // Writing on would repair the damage before anybody can find it.
            listener.set_nonblocking(!self.damaged)?;
            if let Ok((stream, _)) = listener.accept() {
                self.serve(stream)?;
            }
            if self.damaged {
                continue;
            }
            self.answer_outside();
            let begun = Instant::now();
            for _ in 0..BATCH {
                self.rewrite(next);
                next = (next + 1) % self.generations.len();
            }
            self.written += BATCH as u64;
            let bytes = (BATCH as u64 * PAGE_BYTES) as f64;
            if rate > 0.0 {
                // What a sleep takes too long is not caught up: bursts would outrun the rate.
                let due = Duration::from_secs_f64(bytes / (rate * 1e6));
                sleep(due.saturating_sub(begun.elapsed()));
            }
            self.writing += begun.elapsed();
        }
    }

    fn rewrite(&mut self, page: usize) {
        self.generations[page] = self.generations[page].wrapping_add(1);
        match self.mode {
            Mode::Full | Mode::Text => self.fill(page),
            Mode::Touch => self.words(page)[0] = self.head(page),
        }
    }

    fn fill(&mut self, page: usize) {
        let head = self.head(page);
        let mut body = Body::new(head, self.mode);
        let words = self.words(page);
        words[0] = head;
        words[1..].fill_with(|| body.next());
    }

    fn words(&mut self, page: usize) -> &mut [u64] {
        &mut self.memory[page * PAGE_WORDS..(page + 1) * PAGE_WORDS]
    }

    /// What the page's first word should be.
    fn head(&self, page: usize) -> u64 {
        (page as u64) << 32 | u64::from(self.generations[page])
    }

    fn serve(&mut self, mut stream: UnixStream) -> Outcome {
        stream.set_nonblocking(false)?;
        let mut command = String::new();
        stream.read_to_string(&mut command)?;
        let answer = match command.trim().split_once(' ') {
            Some(("call-out", address)) => self.call_out(address),
            _ => self.obey(command.trim()),
        };
        // Who asked may be gone.
        let _ = writeln!(stream, "{answer}");
        Ok(())
    }

    fn obey(&mut self, command: &str) -> String {
        match command {
            "verify" => {
                self.damaged = false;
                self.verify()
            }
            "stat" => self.stat(),
            "corrupt" => {
                // For the test that a corruption is found.
                let middle = self.memory.len() / 2 + 7;
                self.memory[middle] ^= 1;
                self.damaged = true;
                "corrupted one bit".into()
            }
            other => format!("unknown command {other}"),
        }
    }

    fn call_out(&mut self, address: &str) -> String {
        let connect = || -> Result<TcpStream, Box<dyn std::error::Error>> {
            let address: SocketAddr = address.parse()?;
            let stream = TcpStream::connect_timeout(&address, CALL_LIMIT)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        match connect() {
            Ok(stream) => {
                self.outside = Some(stream);
                format!("CALLED {address}")
            }
            Err(error) => format!("FAILED to call {address}: {error}"),
        }
    }

    /// Gives back what came from outside, without waiting.
    fn answer_outside(&mut self) {
        let Some(stream) = &mut self.outside else {
            return;
        };
        let mut buffer = [0; 2048];
        let alive = match stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        if !alive {
            self.outside = None;
        }
    }

    fn verify(&mut self) -> String {
        for page in 0..self.generations.len() {
            let expected = self.head(page);
            // In touch mode the body is that of the first generation.
            let seed = match self.mode {
                Mode::Full | Mode::Text => expected,
                Mode::Touch => (page as u64) << 32,
            };
            let mut body = Body::new(seed, self.mode);
            let words = self.words(page);
            if words[0] != expected {
                return format!(
                    "CORRUPT page={page} expected={expected:#x} found={:#x}",
                    words[0]
                );
            }
            if words[1..].iter().any(|word| *word != body.next()) {
                return format!("CORRUPT page={page} body of generation {expected:#x}");
            }
        }
        format!(
            "VERIFIED pages={} written={}",
            self.generations.len(),
            self.written
        )
    }

    fn stat(&self) -> String {
        let bytes = (self.written * PAGE_BYTES) as f64;
        format!(
            "STAT pages={} mb_per_s={:.1} pid={}",
            self.written,
            bytes / 1e6 / self.writing.as_secs_f64().max(1e-9),
            std::process::id()
        )
    }
}

/// A page's body: xorshift from its head, or one of 1024 words by it.
struct Body {
    state: u64,
    text: bool,
}

impl Body {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

    fn new(head: u64, mode: Mode) -> Self {
        Body {
            state: head ^ Self::SPREAD,
            text: mode == Mode::Text,
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        match self.text {
            true => (self.state & 0x3ff).wrapping_mul(Self::SPREAD),
            false => self.state,
        }
    }
}

/// Asks the writer of that name and prints its answer.
pub(crate) fn ask(name: &str, command: &str) -> Outcome {
    let mut stream = UnixStream::connect(socket(name))?;
    stream.write_all(command.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    if answer.starts_with("CORRUPT") {
        return Err("memory is corrupt".into());
    }
    if answer.starts_with("FAILED") {
        return Err("nobody was reached".into());
    }
    Ok(())
}

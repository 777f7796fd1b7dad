//! Runs the library in the lab's guest, for tests alone.
//!
//! ```text
//! owners PID...            frames of each, and of all together
//! hot MS PID...            frames written in that time
//! free                     free frames, and whether they may be left behind
//! freeze MS PID...         freezes, holds for so long, thaws
//! freeze-late PID...       freezes with no time for it, thaws
//! freeze-and-hang PID...   freezes, and waits to be killed
//! family MIB               a parent and a forked child that share so much; the child rewrites its
//!                          copy once /run/cow is there
//! ```
#![expect(unsafe_code, reason = "fork and signal masks, for `family`")]

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use depgraph::ProcessId;
use guest_procs::guardian::{self, Guardian};
use guest_procs::owners::{Sampler, Scanner, anonymous_kib, free_pages, free_pages_safe};
use guest_procs::{FOLDER, Freezer, Means, Outcome, Quiet, identify, realtime};
use guest_proto::PageSet;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const DEADLINE: Duration = Duration::from_secs(2);
const FOREVER: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["owners", ref pids @ ..] => owners(pids),
        ["hot", ms, ref pids @ ..] => hot(ms, pids),
        ["free"] => free(),
        ["freeze", ms, ref pids @ ..] => freeze(ms, pids, DEADLINE),
        ["freeze-late", ref pids @ ..] => freeze("0", pids, Duration::ZERO),
        ["freeze-and-hang", ref pids @ ..] => hang(pids),
        ["family", mib] => family(mib),
        ["guardian"] => guard(),
        _ => Err("usage: guest-procs-probe owners|hot|free|freeze|freeze-and-hang ...".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-procs-probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn processes(pids: &[&str]) -> Result<Vec<ProcessId>> {
    let identified = pids.iter().map(|pid| Ok(identify(pid.parse()?)?));
    identified.collect()
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn show(what: &str, pages: &PageSet, since: Instant) -> Result<()> {
    let (frames, runs, ms) = (pages.frames(u64::MAX)?, pages.runs(), ms(since));
    println!("{what} frames={frames} runs={runs} ms={ms:.1}");
    Ok(())
}

fn owners(pids: &[&str]) -> Result<()> {
    let mut scanner = Scanner::default();
    let processes = processes(pids)?;
    for process in &processes {
        let begun = Instant::now();
        let pages = scanner.owned(&[*process])?.pages;
        let what = format!("pid={} anon_kib={}", process.pid, anonymous_kib(*process)?);
        show(&what, &pages, begun)?;
    }
    let begun = Instant::now();
    let owned = scanner.owned(&processes)?;
    let what = format!("all gone={} dropped={}", owned.gone.len(), owned.dropped);
    show(&what, &owned.pages, begun)
}

fn hot(time: &str, pids: &[&str]) -> Result<()> {
    let begun = Instant::now();
    let sampler = Sampler::begin(&processes(pids)?)?;
    println!("begin ms={:.1}", ms(begun));
    sleep(Duration::from_millis(time.parse()?));
    let begun = Instant::now();
    let hot = sampler.end(&mut Scanner::default())?;
    show("hot", &hot.pages, begun)
}

fn free() -> Result<()> {
    let begun = Instant::now();
    let pages = free_pages()?;
    show("free", &pages, begun)?;
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find(|line| line.starts_with("MemFree:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    println!("memfree kib={}", kib.unwrap_or("0"));
    println!("verdict {}", free_pages_safe());
    Ok(())
}

/// A freezer with a guardian, as the agent has it.
fn freezer() -> Result<(Guardian, Freezer)> {
    realtime();
    let mut command = Command::new("/proc/self/exe");
    command.arg("guardian").stderr(std::process::Stdio::null());
    let guardian = Guardian::spawn(command)?;
    let freezer = Freezer::new(Path::new(FOLDER), &[guardian.pid()])?;
    Ok((guardian, freezer))
}

fn guard() -> Result<()> {
    guardian::run(io::stdin(), Path::new(FOLDER))?;
    Ok(())
}

fn tell(outcome: &Outcome, since: Instant) {
    let count = |means: Means| -> usize {
        let units = outcome.frozen.iter().filter(|unit| unit.means == means);
        units.map(|unit| unit.members.len()).sum()
    };
    println!(
        "frozen whole={} own={} traced={} refused={} ms={:.1}",
        count(Means::WholeGroup),
        count(Means::OwnGroup),
        count(Means::Tracing),
        outcome.refused.len(),
        ms(since),
    );
    for (process, refusal) in &outcome.refused {
        println!("refused pid={} {refusal}", process.pid);
    }
}

fn freeze(time: &str, pids: &[&str], limit: Duration) -> Result<()> {
    let time = Duration::from_millis(time.parse()?);
    let processes = processes(pids)?;
    let (_guardian, mut freezer) = freezer()?;
    let begun = Instant::now();
    let outcome = freezer.freeze(&processes, begun + limit)?;
    tell(&outcome, begun);
    sleep(time);
    let begun = Instant::now();
    let thawed = freezer.thaw_all()?;
    println!("thawed count={} ms={:.1}", thawed.len(), ms(begun));
    Ok(())
}

fn hang(pids: &[&str]) -> Result<()> {
    let processes = processes(pids)?;
    let (_guardian, mut freezer) = freezer()?;
    let quiet = Quiet::begin(Path::new(FOLDER))?;
    println!("quiet changed={}", quiet.changed());
    let begun = Instant::now();
    let outcome = freezer.freeze(&processes, begun + DEADLINE)?;
    tell(&outcome, begun);
    sleep(FOREVER);
    Ok(())
}

fn family(mib: &str) -> Result<()> {
    let mut memory = vec![1u8; mib.parse::<usize>()? << 20];
    std::hint::black_box(&mut memory);
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before it is used. SIGCHLD blocked stays
    // pending, for a test to see in /proc.
    unsafe {
        libc::sigemptyset(mask.as_mut_ptr());
        libc::sigaddset(mask.as_mut_ptr(), libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, mask.as_ptr(), std::ptr::null_mut());
    }
    // SAFETY: there is one thread, so the child is as whole as the parent.
    let child = unsafe { libc::fork() };
    if child != 0 {
        println!("parent={} child={child}", std::process::id());
        sleep(FOREVER);
    }
    while !Path::new("/run/cow").exists() {
        sleep(Duration::from_millis(10));
    }
    memory.fill(2);
    std::hint::black_box(&mut memory);
    std::fs::write("/run/cow.done", "")?;
    sleep(FOREVER);
    Ok(())
}

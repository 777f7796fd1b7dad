//! Loads of which each operation costs little, so that what following it adds is seen best. Run
//! where the processor counts instructions as time (`-icount`), their figures are exact.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Outcome;

/// Operations done beforehand: caches fill, pages come in.
const WARM_UP: u32 = 200;

/// Runs a load of so many operations and prints the nanoseconds of one.
pub(crate) fn run(name: &str, count: &str) -> Outcome {
    let count: u32 = count.parse()?;
    let nanoseconds = match name {
        "compute" => measure(count, || {
            let mut sum = 0u64;
            for i in 0..10_000u64 {
                sum = black_box(sum.wrapping_mul(31).wrapping_add(i));
            }
            Ok(())
        }),
        "syscall" => measure(count, || {
            black_box(std::os::unix::process::parent_id());
            Ok(())
        }),
        "zero" => {
            let mut file = File::open("/dev/zero")?;
            measure(count, || Ok(file.read_exact(&mut [0])?))
        }
        "file" => {
            let path = "/run/load-file";
            fs::write(path, "x")?;
            let file = File::open(path)?;
            measure(count, || Ok(file.read_exact_at(&mut [0], 0)?))
        }
        "pipe" => {
            let (mut from, to) = std::io::pipe()?;
            let (back, mut out) = std::io::pipe()?;
            let mut child = echo(back.into(), to.into())?;
            let result = ping_pong(count, &mut out, &mut from);
            drop(out);
            child.wait()?;
            result
        }
        "unix" => {
            let (mut ours, theirs) = UnixStream::pair()?;
            let mut child = echo(theirs.try_clone()?.into(), theirs.into())?;
            let mut to = ours.try_clone()?;
            let result = ping_pong(count, &mut to, &mut ours);
            drop((to, ours));
            child.wait()?;
            result
        }
        "pipes" => measure(count, || {
            let (mut from, mut to) = std::io::pipe()?;
            to.write_all(b"x")?;
            Ok(from.read_exact(&mut [0])?)
        }),
        "spawn" => measure(count, || {
            Command::new("/bin/busybox").arg("true").status()?;
            Ok(())
        }),
        "redis" => measure_once(count, || {
            let count = count.to_string();
            let benchmark = Command::new("redis-benchmark")
                .args(["-n", &count, "-c", "4", "-t", "set", "-q"])
                .stdout(Stdio::null())
                .status()?;
            benchmark
                .success()
                .then_some(())
                .ok_or("redis-benchmark failed")?;
            Ok(())
        }),
        _ => Err("no such load".into()),
    }?;
    println!("{nanoseconds:.1}");
    Ok(())
}

/// Gives back every byte until there are no more.
pub(crate) fn give_back() -> Outcome {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut byte = [0];
    while input.read(&mut byte)? == 1 {
        output.write_all(&byte)?;
        output.flush()?;
    }
    Ok(())
}

type Figure = Result<f64, Box<dyn std::error::Error>>;

fn measure(count: u32, mut operation: impl FnMut() -> Outcome) -> Figure {
    for _ in 0..WARM_UP.min(count) {
        operation()?;
    }
    measure_once(count, || {
        for _ in 0..count {
            operation()?;
        }
        Ok(())
    })
}

fn measure_once(count: u32, all: impl FnOnce() -> Outcome) -> Figure {
    let begin = Instant::now();
    all()?;
    Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(count))
}

/// Another process that gives back every byte.
fn echo(input: OwnedFd, output: OwnedFd) -> Result<std::process::Child, std::io::Error> {
    Command::new("/proc/self/exe")
        .arg("load-echo")
        .stdin(input)
        .stdout(output)
        .spawn()
}

fn ping_pong(count: u32, to: &mut impl Write, from: &mut impl Read) -> Figure {
    measure(count, || {
        to.write_all(b"x")?;
        Ok(from.read_exact(&mut [0])?)
    })
}

//! Stops single processes by tracing them.
//!
//! The kernel lets traced processes go on when the *thread* that traces them ends, however it
//! ends: no guardian is needed. One thread does it all, and ends with the last handle. While a
//! process stands its stops are only looked at, never collected: should that thread end, whatever
//! signal one of its threads was stopped with still reaches it.
//!
//! Who is killed meanwhile is reported to its parent when it is let go. Children of this process
//! must not be traced: their ends would be collected here.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use depgraph::ProcessId;

use super::traced::Traced;

/// Pauses between two looks at threads that are about to stop: that is told by SIGCHLD alone,
/// which belongs to the program around this library.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_millis(10);
/// Longest wait for a process that stands to be let go.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Order {
    Stop(ProcessId, Sender<io::Result<()>>),
    LetGo(ProcessId),
}

/// The thread that traces.
#[derive(Debug)]
pub(super) struct Tracer {
    orders: Sender<Order>,
}

impl Tracer {
    pub(super) fn start() -> io::Result<Self> {
        let (orders, received) = channel();
        thread::Builder::new()
            .name("tracer".into())
            .spawn(move || serve(&received))?;
        Ok(Tracer { orders })
    }

    /// Begins to stop a process.
    pub(super) fn stop(&self, process: ProcessId) -> Held {
        let (report, stopped) = channel();
        // If the thread has ended, waiting fails.
        let _ = self.orders.send(Order::Stop(process, report));
        Held {
            process,
            stopped,
            orders: self.orders.clone(),
            stands: false,
        }
    }
}

/// Holds one process; lets it go when dropped.
#[derive(Debug)]
pub(super) struct Held {
    process: ProcessId,
    stopped: Receiver<io::Result<()>>,
    orders: Sender<Order>,
    stands: bool,
}

impl Held {
    /// Waits until every thread of the process stands; false if they do not by the deadline.
    pub(super) fn await_stopped(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.stopped.recv_timeout(left) {
            Ok(outcome) => {
                self.stands = outcome.is_ok();
                outcome.map(|()| true)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the tracer has ended")),
        }
    }

    /// Has the process let go, without waiting for it.
    pub(super) fn let_go(&self) {
        // If the thread has ended, it has let go.
        let _ = self.orders.send(Order::LetGo(self.process));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.let_go();
        // The other end goes when it is done. A thread that did not stop is sleeping where nothing
        // reaches it, and is let go when it does.
        while self.stands && self.stopped.recv_timeout(PATIENCE).is_ok() {}
    }
}

fn serve(orders: &Receiver<Order>) {
    let mut traced: Vec<Traced> = Vec::new();
    let mut pause = SHORTEST;
    loop {
        let order = if traced.iter().all(Traced::stands) {
            pause = SHORTEST;
            orders.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            pause = (pause * 2).min(LONGEST);
            orders.recv_timeout(pause)
        };
        match order {
            Ok(order) => take(&mut traced, order),
            Err(RecvTimeoutError::Timeout) => {}
            // The end of this thread lets everything go.
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // All at once: they stop side by side.
        while let Ok(order) = orders.try_recv() {
            take(&mut traced, order);
        }
        for one in &mut traced {
            one.advance();
        }
        traced.retain(|one| !one.is_done());
    }
}

fn take(traced: &mut Vec<Traced>, order: Order) {
    match order {
        Order::Stop(process, report) => {
            traced.push(Traced::begin(process, report));
        }
        Order::LetGo(process) => {
            let them = traced.iter_mut().filter(|one| one.process() == process);
            them.for_each(Traced::let_go);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::process::Command;

    use super::*;
    use crate::identify;

    fn tracer_of(pid: u32) -> String {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("TracerPid:"));
        line.unwrap().trim().to_owned()
    }

    #[test]
    fn a_process_stops_and_goes_on_again_and_again() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let process = identify(child.id()).unwrap();
        let tracer = Tracer::start().unwrap();
        for _ in 0..3 {
            let mut held = tracer.stop(process);
            let deadline = Instant::now() + Duration::from_secs(20);
            assert!(held.await_stopped(deadline).unwrap());
            assert_ne!(tracer_of(child.id()), "0");
            drop(held);
            assert_eq!(tracer_of(child.id()), "0");
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Its parent hears of it when it is let go.
    #[test]
    fn who_stands_can_be_killed() {
        let mut parent = Command::new("sh")
            .args(["-c", "sleep 100 & echo $!; wait $!; exit $(($? - 128))"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = parent.stdout.take().unwrap();
        io::BufReader::new(output).read_line(&mut line).unwrap();
        let process = identify(line.trim().parse().unwrap()).unwrap();
        let mut held = Tracer::start().unwrap().stop(process);
        assert!(
            held.await_stopped(Instant::now() + Duration::from_secs(20))
                .unwrap()
        );
        let pid = rustix::process::Pid::from_raw(process.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        drop(held);
        assert_eq!(parent.wait().unwrap().code(), Some(libc::SIGKILL));
    }

    #[test]
    fn the_wrong_process_is_let_go() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let mut process = identify(child.id()).unwrap();
        process.start += 1;
        let tracer = Tracer::start().unwrap();
        let mut held = tracer.stop(process);
        let error = held
            .await_stopped(Instant::now() + Duration::from_secs(20))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        drop(held);
        while tracer_of(child.id()) != "0" {
            thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

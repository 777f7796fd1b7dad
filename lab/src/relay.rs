//! The program under test: `unmoor send` and `unmoor receive` on the lab's hosts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;

use crate::libvirt::{DOMAIN, Libvirt, migrate_folder};
use crate::{HOST_B, Host, Lab, Vm, program, usage};

/// The port that the lab's receivers listen on.
pub const PORT: u16 = 7070;

/// The port that the lab's daemons listen on.
pub const DAEMON_PORT: u16 = 49140;

/// A running `unmoor` with `--json`; killed when dropped.
#[derive(Debug)]
pub struct Unmoor {
    child: Child,
    events: Arc<Events>,
    stderr: PathBuf,
    /// Processor time, once it has ended.
    cpu: Option<Duration>,
}

/// The events so far, filled by a thread that reads them.
#[derive(Debug, Default)]
struct Events {
    seen: Mutex<(Vec<Value>, bool)>,
    news: Condvar,
}

impl Unmoor {
    /// Starts `unmoor` at `host` with the given arguments and `--json`.
    pub fn start(lab: &Lab, host: Host, args: &[&str]) -> Result<Self> {
        Self::spawn(lab, command(lab, host), args)
    }

    /// Starts `unmoor` outside the lab's namespaces, where the test itself is.
    pub fn start_outside(lab: &Lab, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(program("unmoor"));
        keep_apart(&mut command, lab.run_dir(), "outside");
        Self::spawn(lab, command, args)
    }

    fn spawn(lab: &Lab, mut command: Command, args: &[&str]) -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let stderr = lab.run_dir().join(format!("unmoor-{count}.stderr"));
        let mut child = command
            .args(args)
            .arg("--json")
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr)?)
            .spawn()
            .context("starting unmoor")?;
        let stdout = child.stdout.take().context("no output")?;
        let events = Arc::new(Events::default());
        let filled = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                filled.lock().0.push(event);
                filled.news.notify_all();
            }
            filled.lock().1 = true;
            filled.news.notify_all();
        });
        Ok(Unmoor {
            child,
            events,
            stderr,
            cpu: None,
        })
    }

    /// Starts `unmoor receive` for `vm` at host B, or at `host`, and waits until it listens.
    pub fn receive(lab: &Lab, host: Host, vm: &Vm, more: &[&str]) -> Result<Self> {
        let address = format!("{}:{PORT}", address(host)?);
        let qmp = vm.qmp_path().display().to_string();
        let mut args = vec!["receive", "--qmp", &qmp, "--listen", &address];
        args.extend(protection(more));
        args.extend_from_slice(more);
        let receiver = Self::start(lab, host, &args)?;
        receiver.await_event("listening", Duration::from_secs(20))?;
        Ok(receiver)
    }

    /// Starts `unmoor send` for `vm` from `host` to the other one.
    pub fn send(lab: &Lab, host: Host, vm: &Vm, more: &[&str]) -> Result<Self> {
        let other = if host == Host::A { Host::B } else { Host::A };
        let to = format!("{}:{PORT}", address(other)?);
        let qmp = vm.qmp_path().display().to_string();
        let mut args = vec!["send", "--qmp", &qmp, "--to", &to];
        args.extend(protection(more));
        args.extend_from_slice(more);
        Self::start(lab, host, &args)
    }

    /// Starts `unmoor migrate` for libvirt's VM from one host to the other.
    pub fn migrate(lab: &Lab, from: &Libvirt, to: &Libvirt, more: &[&str]) -> Result<Self> {
        let command = from.command(program("unmoor"));
        Self::migrate_by(lab, command, from, to, more)
    }

    /// As [`migrate`](Unmoor::migrate), by a user who may not do whatever they want.
    pub fn migrate_unprivileged(lab: &Lab, from: &Libvirt, to: &Libvirt) -> Result<Self> {
        let mut command = from.command("setpriv");
        command.args(["--bounding-set", "-dac_override,-dac_read_search", "--"]);
        command.arg(program("unmoor"));
        Self::migrate_by(lab, command, from, to, &[])
    }

    fn migrate_by(
        lab: &Lab,
        mut command: Command,
        from: &Libvirt,
        to: &Libvirt,
        more: &[&str],
    ) -> Result<Self> {
        keep_apart(&mut command, lab.run_dir(), &from.host().to_string());
        let relay = format!("{}:{DAEMON_PORT}", address(to.host())?);
        let sockets = migrate_folder(lab).display().to_string();
        let (here, there) = (from.uri(), to.uri());
        let mut args = vec!["migrate", DOMAIN, "--connect", &here, "--to", &there];
        args.extend(["--relay", &relay, "--sockets", &sockets]);
        args.extend(protection(more));
        args.extend_from_slice(more);
        Self::spawn(lab, command, &args)
    }

    /// Starts `unmoord` at a host with libvirt, where it knows the other one, and waits until it
    /// listens.
    pub fn daemon(lab: &Lab, libvirt: &Libvirt, more: &[&str]) -> Result<Self> {
        let command = libvirt.command(program("unmoord"));
        let sockets = migrate_folder(lab);
        Self::daemon_of(lab, libvirt.host(), command, &sockets, more)
    }

    /// Starts this `unmoord` at a host without libvirt, with a folder of sockets of its own.
    pub fn plain_daemon(lab: &Lab, host: Host, unmoord: &Path, more: &[&str]) -> Result<Self> {
        let command = lab.command(host, unmoord);
        Self::daemon_of(lab, host, command, &sockets(lab, host), more)
    }

    fn daemon_of(
        lab: &Lab,
        own: Host,
        mut command: Command,
        sockets: &Path,
        more: &[&str],
    ) -> Result<Self> {
        let other = if own == Host::A { Host::B } else { Host::A };
        keep_apart(&mut command, lab.run_dir(), &own.to_string());
        let listen = format!("{}:{DAEMON_PORT}", address(own)?);
        let peer = format!("{other}={}:{DAEMON_PORT}", address(other)?);
        let name = own.to_string();
        let sockets = sockets.display().to_string();
        let mut args = vec!["--listen", &listen, "--name", &name, "--peer", &peer];
        args.extend(["--sockets", &sockets]);
        args.extend(protection(more));
        args.extend_from_slice(more);
        let daemon = Self::spawn(lab, command, &args)?;
        daemon.await_event("listening", Duration::from_secs(20))?;
        Ok(daemon)
    }

    /// Waits for an event of that name.
    pub fn await_event(&self, name: &str, limit: Duration) -> Result<Value> {
        self.await_matching(name, |_| true, limit)
    }

    /// Waits for an event of that name that `matches`.
    pub fn await_matching(
        &self,
        name: &str,
        matches: impl Fn(&Value) -> bool,
        limit: Duration,
    ) -> Result<Value> {
        let deadline = Instant::now() + limit;
        let mut seen = self.events.lock();
        loop {
            let found = seen.0.iter().find(|e| e["event"] == name && matches(e));
            if let Some(event) = found {
                return Ok(event.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.1 || left.is_zero() {
                bail!(
                    "no event `{name}` from unmoor; its last were {:?} and it wrote {}",
                    seen.0.iter().rev().take(3).collect::<Vec<_>>(),
                    self.stderr()
                );
            }
            (seen, _) = self
                .events
                .news
                .wait_timeout(seen, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Value> {
        self.events.lock().0.clone()
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        let bytes = std::fs::read(&self.stderr).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.events.lock().1
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id())?;
        let pid = Pid::from_raw(pid).context("no process id")?;
        kill_process(pid, signal).context("signalling unmoor")
    }

    /// Waits for it to end and yields its exit code (-1 if a signal ended it).
    pub fn exit(&mut self, limit: Duration) -> Result<i32> {
        let deadline = Instant::now() + limit;
        let mut seen = self.events.lock();
        // Its output closes when it ends.
        while !seen.1 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let without_end = ["progress", "pass", "stalled"];
                let told = seen.0.iter().filter(|event| {
                    let name = event["event"].as_str().unwrap_or_default();
                    !without_end.contains(&name)
                });
                let last: Vec<String> = told.rev().take(12).map(Value::to_string).collect();
                bail!("unmoor has not ended; its last events are {last:#?}");
            }
            (seen, _) = self
                .events
                .news
                .wait_timeout(seen, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(seen);
        if self.cpu.is_none() {
            // A process that has ended and was not waited for yet can still be asked.
            let pid = Pid::from_raw(i32::try_from(self.child.id())?).context("no process id")?;
            waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            )?;
            self.cpu = Some(usage::cpu(self.child.id())?);
        }
        Ok(self.child.wait()?.code().unwrap_or(-1))
    }

    /// Processor time that it used; known once [`exit`](Unmoor::exit) has returned.
    pub fn cpu(&self) -> Option<Duration> {
        self.cpu
    }

    /// Waits for success and yields the summary.
    pub fn summary(&mut self, limit: Duration) -> Result<Value> {
        let code = self.exit(limit)?;
        if code != 0 {
            bail!(
                "unmoor ended with {code}: {:?} {}",
                self.events().last(),
                self.stderr()
            );
        }
        self.await_event("summary", Duration::ZERO)
    }
}

impl Events {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<Value>, bool)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Unmoor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `unmoor` at `host`, which has folders of its own for what runs and what is kept.
pub fn command(lab: &Lab, host: Host) -> Command {
    let mut command = lab.command(host, program("unmoor"));
    keep_apart(&mut command, lab.run_dir(), &host.to_string());
    command.envs(lab.clock_variables());
    command
}

/// `unmoor` keeps its sockets and records under this name in this folder, and not where this
/// machine's own are.
pub fn keep_apart(command: &mut Command, folder: &Path, name: &str) {
    for (variable, kind) in [("UNMOOR_RUN_DIR", "run"), ("UNMOOR_STATE_DIR", "state")] {
        command.env(variable, folder.join(format!("{name}-{kind}")));
    }
}

/// Where the plain daemon at `host` has its sockets.
pub fn sockets(lab: &Lab, host: Host) -> PathBuf {
    lab.run_dir().join(format!("{host}-sockets"))
}

/// Where `unmoor` at `host` keeps its sockets.
pub fn run_folder(lab: &Lab, host: Host) -> PathBuf {
    lab.run_dir().join(format!("{host}-run"))
}

/// Where `unmoor` at `host` keeps what is to last.
pub fn state_folder(lab: &Lab, host: Host) -> PathBuf {
    lab.run_dir().join(format!("{host}-state"))
}

/// Plain text, unless certificates are named.
fn protection(more: &[&str]) -> Option<&'static str> {
    (!more.contains(&"--tls-dir")).then_some("--insecure")
}

fn address(host: Host) -> Result<&'static str> {
    match host {
        Host::A => Ok(crate::HOST_A),
        Host::B => Ok(HOST_B),
        Host::Client => bail!("the client has no migration link"),
    }
}

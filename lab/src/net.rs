//! Hosts, client, switch and links: network namespaces.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Prefix of every namespace; the lab's process id and its number in that process follow.
const PREFIX: &str = "unmoor";
/// The network of the migration link.
const MIGRATION_NET: &str = "10.78.0.0/24";
/// Prefix of every folder that the lab makes; the process id follows.
const FOLDER_PREFIX: &str = "unmoor-lab-";
/// What to do where the root folder is that of a plain chroot. From inside nothing helps: a mount would be
/// seen outside, too, wherever folders are shared, and this process would not have it as its root.
const NO_MOUNT_POINT: &str = "the lab needs mount namespaces, and the root folder is no mount point, as in a \
    plain chroot: leave it, and enter it by `unshare --mount sh -c 'mount --rbind FOLDER FOLDER && exec chroot \
    FOLDER'`";
/// Where Debian keeps what makes clocks jump.
const FAKE_TIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
/// A file system in memory, for what would take too long on a disk.
const IN_MEMORY: &str = "/dev/shm";

/// A place in the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// The first host.
    A,
    /// The second host.
    B,
    /// Where clients of the guest run.
    Client,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Host::A => "a",
            Host::B => "b",
            Host::Client => "client",
        })
    }
}

/// How the lab is to be.
#[derive(Debug, Clone, Default)]
pub struct LabOptions {
    /// Rate of the migration link as `tc` writes it, for example `1gbit`; unlimited if absent.
    pub link_rate: Option<String>,
    /// The clocks of programs under test can be made to jump.
    pub clocks_jump: bool,
}

impl LabOptions {
    /// A lab whose migration link has the given rate.
    pub fn with_rate(rate: &str) -> Self {
        LabOptions {
            link_rate: Some(rate.to_owned()),
            ..LabOptions::default()
        }
    }
}

/// Bytes that have crossed the migration link, as its interface counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBytes {
    /// Sent by host A.
    pub from_a: u64,
    /// Sent by host B.
    pub from_b: u64,
}

/// The namespaces and a folder for sockets and logs; all removed when dropped.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    run: tempfile::TempDir,
    /// Says by how much clocks are wrong.
    clock: Option<PathBuf>,
    built: Instant,
}

impl Lab {
    /// Builds the lab, after removing what dead runs left behind.
    pub fn new(options: &LabOptions) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(root_is_mounted()?, NO_MOUNT_POINT);
        remove_leftovers();
        // Numbered, since what a lab is dropped with is found by name: two labs in one process
        // must not end each other.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let run = folder(&std::env::temp_dir())?;
        let lab = Lab {
            prefix: format!("{PREFIX}{}-{count}", std::process::id()),
            clock: options.clocks_jump.then(|| run.path().join("clock")),
            run,
            built: Instant::now(),
        };
        if options.clocks_jump {
            lab.set_clocks("+0")?;
        }
        // From here on dropping `lab` removes whatever has been made.
        lab.build(options)
            .context("building the lab's network (it needs root)")?;
        Ok(lab)
    }

    fn build(&self, options: &LabOptions) -> Result<()> {
        let namespace = |name: &str| format!("{}-{name}", self.prefix);
        for name in ["switch", "a", "b", "client"] {
            ip(&["netns", "add", &namespace(name)])?;
            ip(&["-n", &namespace(name), "link", "set", "lo", "up"])?;
        }
        let switch = namespace("switch");
        bridge(&switch, "br0")?;
        for (name, address) in [("a", "10.77.0.2/24"), ("b", "10.77.0.3/24")] {
            let host = namespace(name);
            let port = format!("port-{name}");
            veth(&host, "up0", &switch, &port)?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            bridge(&host, "br0")?;
            ip(&["-n", &host, "link", "set", "up0", "master", "br0", "up"])?;
            ip(&["-n", &host, "addr", "add", address, "dev", "br0"])?;
            ip(&["-n", &host, "tuntap", "add", "tap0", "mode", "tap"])?;
            ip(&["-n", &host, "link", "set", "tap0", "master", "br0", "up"])?;
        }
        let client = namespace("client");
        veth(&client, "eth0", &switch, "port-client")?;
        ip(&[
            "-n",
            &switch,
            "link",
            "set",
            "port-client",
            "master",
            "br0",
            "up",
        ])?;
        ip(&["-n", &client, "addr", "add", "10.77.0.1/24", "dev", "eth0"])?;
        ip(&["-n", &client, "link", "set", "eth0", "up"])?;

        veth(&namespace("a"), "mig0", &namespace("b"), "mig0")?;
        for (name, address) in [("a", super::HOST_A), ("b", super::HOST_B)] {
            let host = namespace(name);
            let address = format!("{address}/24");
            ip(&["-n", &host, "addr", "add", &address, "dev", "mig0"])?;
            ip(&["-n", &host, "link", "set", "mig0", "up"])?;
            // Linux's own default on every machine: BBR, which some have instead, takes a
            // receiver that stands still for a moment for a slow link, for seconds.
            ip(&[
                "-n",
                &host,
                "route",
                "replace",
                MIGRATION_NET,
                "dev",
                "mig0",
                "congctl",
                "cubic",
            ])?;
        }
        if let Some(rate) = &options.link_rate {
            for host in [Host::A, Host::B] {
                let mut tc = self.command(host, "tc");
                tc.args(["qdisc", "add", "dev", "mig0", "root", "tbf", "rate", rate]);
                tc.args(["burst", "256kb", "latency", "50ms"]);
                run(&mut tc)?;
            }
        }
        Ok(())
    }

    /// A command that runs at `host`. Its process id is the program's own, and it dies with the
    /// thread that starts it.
    pub fn command(&self, host: Host, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(host)])
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .stdin(Stdio::null());
        command
    }

    /// Bytes that have crossed the migration link so far.
    pub fn link_bytes(&self) -> Result<LinkBytes> {
        let output = Command::new("ip")
            .args(["-n", &self.namespace(Host::A), "-j", "-s"])
            .args(["link", "show", "dev", "mig0"])
            .output()?;
        let links: Value = serde_json::from_slice(&output.stdout)?;
        let counted = |direction: &str| {
            links[0]["stats64"][direction]["bytes"]
                .as_u64()
                .context("no counters on mig0")
        };
        Ok(LinkBytes {
            from_a: counted("tx")?,
            from_b: counted("rx")?,
        })
    }

    /// From now on host A's packets on the migration link are as an Ethernet carries them, and are counted
    /// so: without this a virtual card passes many segments on as one, with one header.
    pub fn send_single_segments(&self) -> Result<()> {
        let namespace = self.namespace(Host::A);
        ip(&["-n", &namespace, "link", "set", "mig0", "gso_max_segs", "1"])
    }

    /// Takes the migration link down or up.
    pub fn set_link(&self, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&["-n", &self.namespace(Host::A), "link", "set", "mig0", state])
    }

    /// From now on the clocks of programs under test are wrong by so much, such as `+1h`. Those that
    /// only count are not.
    pub fn set_clocks(&self, by: &str) -> Result<()> {
        let clock = self
            .clock
            .as_ref()
            .context("clocks do not jump in this lab")?;
        Ok(std::fs::write(clock, format!("{by}\n"))?)
    }

    /// What a program needs in its environment for that.
    pub(crate) fn clock_variables(&self) -> Vec<(&'static str, String)> {
        let Some(clock) = &self.clock else {
            return Vec::new();
        };
        vec![
            ("LD_PRELOAD", FAKE_TIME.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
            // It is looked at again at each call.
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }

    /// Ids of the processes that run at `host`.
    pub fn pids(&self, host: Host) -> Result<Vec<u32>> {
        let output = Command::new("ip")
            .args(["netns", "pids", &self.namespace(host)])
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect())
    }

    /// The folder for sockets and logs.
    pub fn run_dir(&self) -> &Path {
        self.run.path()
    }

    fn namespace(&self, host: Host) -> String {
        format!("{}-{host}", self.prefix)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove_namespaces(&format!("{}-", self.prefix));
        // A time that cannot be kept is no reason to fail.
        let _ = crate::results::record_time(self.built.elapsed());
    }
}

/// Removes the namespaces of labs whose process is dead, ends what still runs in them, and removes
/// their folders: a process that is killed, or that panics where panics abort, drops nothing.
pub fn remove_leftovers() {
    for name in namespaces() {
        if of_the_dead(&name, PREFIX) {
            remove_namespaces(&name);
        }
    }
    for place in [std::env::temp_dir(), IN_MEMORY.into()] {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            if of_the_dead(&entry.file_name().to_string_lossy(), FOLDER_PREFIX) {
                // Another lab may be removing it as well.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whether `name` is `prefix`, the id of a process that is no more, and `-`.
fn of_the_dead(name: &str, prefix: &str) -> bool {
    let owner = name
        .strip_prefix(prefix)
        .and_then(|rest| rest.split_once('-'))
        .and_then(|(owner, _)| owner.parse::<u32>().ok());
    owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists())
}

/// A folder in memory that is removed when dropped, or by the next run.
pub(crate) fn folder_in_memory() -> std::io::Result<tempfile::TempDir> {
    folder(Path::new(IN_MEMORY))
}

fn folder(place: &Path) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("{FOLDER_PREFIX}{}-", std::process::id()))
        .tempdir_in(place)
}

fn remove_namespaces(prefix: &str) {
    for name in namespaces().iter().filter(|name| name.starts_with(prefix)) {
        let pids = Command::new("ip").args(["netns", "pids", name]).output();
        let pids = pids.map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).split_ascii_whitespace() {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = Command::new("ip")
            .args(["netns", "del", name])
            .stderr(Stdio::null())
            .status();
    }
}

/// Whether something is mounted at the root folder; only that can be made private.
fn root_is_mounted() -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .context("reading the mounts of this system: /proc must be mounted")?;
    Ok(mounts
        .lines()
        .any(|mount| mount.split(' ').nth(4) == Some("/")))
}

fn namespaces() -> Vec<String> {
    let output = Command::new("ip").args(["netns", "list"]).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next().map(str::to_owned))
        .collect()
}

fn bridge(namespace: &str, name: &str) -> Result<()> {
    ip(&[
        "-n",
        namespace,
        "link",
        "add",
        name,
        "type",
        "bridge",
        "stp_state",
        "0",
        "forward_delay",
        "0",
    ])?;
    ip(&["-n", namespace, "link", "set", name, "up"])
}

fn veth(from: &str, from_name: &str, to: &str, to_name: &str) -> Result<()> {
    ip(&[
        "link", "add", from_name, "netns", from, "type", "veth", "peer", "name", to_name, "netns",
        to,
    ])
}

fn ip(args: &[&str]) -> Result<()> {
    run(Command::new("ip").args(args))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

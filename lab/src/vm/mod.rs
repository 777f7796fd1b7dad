//! Guests on a real QEMU.

mod arguments;
mod control;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hypervisor::{Client, Error};
use serde_json::{Value, json};

use crate::{Host, Lab, Missing, provisions, versions};

pub(crate) use arguments::arguments;
pub use control::Control;

/// Longest wait for QEMU's monitors.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Time between two looks where no event tells.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Which QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QemuVersion {
    /// 7.2. Under emulation it loses dirty pages of a migrating guest all by itself, unless the
    /// guest's RAM is no multiple of 256 KiB: give it such a size.
    V7_2,
    /// 10.0, as Debian 12 has it in its backports.
    V10_0,
    /// 10.0 with the fixes that Debian 13 has. Needs `lab/versions.sh` to have been run.
    V10_0Trixie,
    /// The newest that Debian had when the lab was set up.
    Newest,
}

impl QemuVersion {
    /// All of them.
    pub const ALL: [QemuVersion; 4] = [
        QemuVersion::V7_2,
        QemuVersion::V10_0,
        QemuVersion::V10_0Trixie,
        QemuVersion::Newest,
    ];

    /// What the lab calls it.
    pub fn label(self) -> &'static str {
        match self {
            QemuVersion::V7_2 => "7.2",
            QemuVersion::V10_0 => "10.0",
            QemuVersion::V10_0Trixie => "10.0-trixie",
            QemuVersion::Newest => "newest",
        }
    }

    /// Its exact version, or why it is not here.
    pub fn exact(self) -> Result<String, Missing> {
        versions::exact("qemu", self.label())
    }

    /// The program, which finds its libraries, modules and firmware itself.
    pub fn program(self) -> PathBuf {
        self.folder().join("usr/bin/qemu-system-x86_64")
    }

    /// Where it is unpacked.
    pub(crate) fn folder(self) -> PathBuf {
        versions::folder("qemu", self.label())
    }
}

/// What the guest is. All answer on the control channel, echo on port 7007 and serve Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// Busybox and Redis in an initramfs: boots in seconds, occupies little.
    Small,
    /// Debian 12 with systemd, Redis, nginx, PostgreSQL, ssh and cron, on a disk that is never
    /// written: what the guest writes stays in its memory, so source and destination share the
    /// disk. It needs 1 GiB of RAM, and `lab/debian.sh` to have been run.
    Debian,
    /// The same of Debian 13.
    Debian13,
}

/// Which Linux the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// 5.10, Debian 11's. Needs `lab/versions.sh` to have been run.
    V5_10,
    /// 6.1, Debian 12's. The only one for the Debian guests.
    V6_1,
    /// 6.12, Debian 13's.
    V6_12,
    /// The newest that Debian had when the lab was set up, built for VMs.
    NewestCloud,
    /// The same built for every machine. Needs `lab/versions.sh` to have been run.
    NewestGeneric,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 5] = [
        Kernel::V5_10,
        Kernel::V6_1,
        Kernel::V6_12,
        Kernel::NewestCloud,
        Kernel::NewestGeneric,
    ];

    /// What the lab calls it.
    pub fn label(self) -> &'static str {
        match self {
            Kernel::V5_10 => "5.10",
            Kernel::V6_1 => "6.1",
            Kernel::V6_12 => "6.12",
            Kernel::NewestCloud => "newest-cloud",
            Kernel::NewestGeneric => "newest-generic",
        }
    }

    /// Its exact version, or why it is not here.
    pub fn exact(self) -> Result<String, Missing> {
        versions::exact("kernel", self.label())
    }

    /// What `uname -r` says in the guest; empty if it is not here.
    pub fn release(self) -> String {
        let file = versions::folder("kernel", self.label()).join("release");
        fs::read_to_string(file).unwrap_or_default()
    }

    pub(crate) fn file(self) -> PathBuf {
        versions::folder("kernel", self.label()).join("vmlinuz")
    }

    /// Its modules and the image; `None` if there is none with both.
    fn initrd(self, image: Image) -> Option<PathBuf> {
        let name = match (image, self) {
            (Image::Small, _) => format!("initrd-{}.gz", self.label()),
            (Image::Debian | Image::Debian13, Kernel::V6_1) => "debian-initrd.gz".to_owned(),
            (Image::Debian | Image::Debian13, _) => return None,
        };
        Some(provisions().join(name))
    }
}

impl Image {
    /// Longest wait for the guest to boot: seconds in truth (20 for Debian), under emulation on a
    /// busy machine more.
    fn boot_limit(self) -> Duration {
        Duration::from_secs(match self {
            Image::Small => 120,
            Image::Debian | Image::Debian13 => 300,
        })
    }

    fn disk(self) -> Option<PathBuf> {
        match self {
            Image::Small => None,
            Image::Debian => Some(provisions().join("debian-12.squashfs")),
            Image::Debian13 => Some(provisions().join("debian-13.squashfs")),
        }
    }

    /// The file that changes whenever the image does.
    pub(crate) fn key(self, kernel: Kernel) -> PathBuf {
        provisions().join(match self {
            Image::Small => format!("initrd-{}.key", kernel.label()),
            Image::Debian => "debian-12.key".to_owned(),
            Image::Debian13 => "debian-13.key".to_owned(),
        })
    }
}

/// How a VM is to be.
#[derive(Debug, Clone)]
pub struct VmOptions {
    /// Which QEMU.
    pub version: QemuVersion,
    /// What the guest is.
    pub image: Image,
    /// Which Linux it runs.
    pub kernel: Kernel,
    /// Machine type.
    pub machine: String,
    /// RAM as QEMU writes it; it has to suffice for the image.
    pub memory: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Waits for a migration (`-incoming defer`).
    pub incoming: bool,
    /// Stays paused (`-S`).
    pub paused: bool,
    /// Has a network card on the host's tap0, which one VM a host can have.
    pub network: bool,
    /// Runs unmoor's agent. (The Debian guest always does.)
    pub agent: bool,
    /// Time in the guest is the number of instructions that it has executed: figures are exact,
    /// and it runs on one processor of the host.
    pub counts_instructions: bool,
    /// Further words on the kernel's command line.
    pub kernel_words: String,
    /// Further arguments.
    pub extra: Vec<String>,
}

impl Default for VmOptions {
    fn default() -> Self {
        VmOptions {
            version: QemuVersion::V10_0,
            image: Image::Small,
            kernel: Kernel::V6_1,
            machine: "q35".into(),
            memory: "512M".into(),
            vcpus: 2,
            incoming: false,
            paused: false,
            network: true,
            agent: false,
            counts_instructions: false,
            kernel_words: String::new(),
            extra: Vec::new(),
        }
    }
}

impl VmOptions {
    /// A VM with the guest of Debian 12, and as much RAM as that needs.
    pub fn debian() -> Self {
        VmOptions {
            image: Image::Debian,
            memory: "1G".into(),
            ..VmOptions::default()
        }
    }

    pub(crate) fn initrd(&self) -> Result<PathBuf> {
        let initrd = self.kernel.initrd(self.image);
        initrd.context("the Debian guests run kernel 6.1 only: choose that, or the small image")
    }

    /// The same VM as a destination.
    pub fn as_destination(&self) -> Self {
        VmOptions {
            incoming: true,
            ..self.clone()
        }
    }
}

/// A running QEMU; killed when dropped.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    folder: PathBuf,
    options: VmOptions,
    monitor: Option<Client>,
    control: Option<Control>,
}

impl Vm {
    /// Starts a QEMU at `host` and waits for its monitors.
    pub fn start(lab: &Lab, host: Host, options: &VmOptions) -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let initrd = options.initrd()?;
        options.version.exact()?;
        options.kernel.exact()?;
        for file in [Some(&initrd), options.image.disk().as_ref()] {
            if let Some(file) = file.filter(|file| !file.exists()) {
                bail!(
                    "{} is missing: run `make setup setup-debian`",
                    file.display()
                );
            }
        }
        let folder = lab.run_dir().join(format!("vm-{host}-{count}"));
        fs::create_dir(&folder)?;
        let mut command = lab.command(host, options.version.program());
        command.args(arguments(options, &folder)?);
        command.stderr(File::create(folder.join("stderr"))?);
        command.stdout(Stdio::null());
        let child = command.spawn().context("starting QEMU")?;
        let mut vm = Vm {
            child,
            folder,
            options: options.clone(),
            monitor: None,
            control: None,
        };
        vm.await_monitor()?;
        Ok(vm)
    }

    /// QEMU makes its sockets before it reads its kernel, and listens on each a moment after it is there;
    /// it tells nobody when. The lab's own monitor is the last of them.
    fn await_monitor(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let path = self.folder.join("lab-qmp");
        loop {
            match Client::connect(&path, START_LIMIT) {
                Ok(client) => {
                    self.monitor = Some(client);
                    return Ok(());
                }
                Err(Error::NoSocket { .. } | Error::Dead { .. }) => {}
                Err(error) => return Err(error).context(self.stderr()),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended at once ({status}): {}", self.stderr());
            }
            if Instant::now() > deadline {
                bail!("QEMU does not open its monitor: {}", self.stderr());
            }
            sleep(LOOK_EVERY);
        }
    }

    /// The monitor for the program under test: QEMU serves one client a socket.
    pub fn qmp_path(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// The host's end of the agent's port.
    pub fn agent_path(&self) -> PathBuf {
        self.folder.join("agent")
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the VM was started.
    pub fn options(&self) -> &VmOptions {
        &self.options
    }

    /// RAM in bytes, as QEMU says.
    pub fn memory_bytes(&mut self) -> Result<u64> {
        let summary = self.qmp("query-memory-size-summary", &json!({}))?;
        summary["base-memory"].as_u64().context("no base memory")
    }

    /// Runs a command on the lab's own monitor.
    pub fn qmp(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        Ok(self.monitor()?.execute(command, arguments)?)
    }

    /// The lab's own monitor.
    pub fn monitor(&mut self) -> Result<&mut Client> {
        self.monitor.as_mut().context("no monitor")
    }

    /// QEMU's run state.
    pub fn status(&mut self) -> Result<String> {
        let answer = self.qmp("query-status", &json!({}))?;
        Ok(answer["status"].as_str().unwrap_or("").to_owned())
    }

    /// Waits until the guest has booted.
    pub fn wait_booted(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.options.image.boot_limit();
        while !self.serial().contains("BOOTED") {
            if let Some(status) = self.child.try_wait()? {
                bail!("QEMU ended ({status}): {}{}", self.stderr(), self.serial());
            }
            if Instant::now() > deadline {
                bail!("the guest does not boot: {}", self.serial());
            }
            sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Waits until QEMU is in a run state.
    pub fn wait_status(&mut self, wanted: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.status()?;
            if status == wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("QEMU is `{status}`, not `{wanted}`");
            }
            sleep(LOOK_EVERY);
        }
    }

    /// What the guest has written to its serial line.
    pub fn serial(&self) -> String {
        read_lossy(&self.folder.join("serial"))
    }

    /// What QEMU has written to standard error.
    pub fn stderr(&self) -> String {
        read_lossy(&self.folder.join("stderr"))
    }

    /// Runs a shell command in the guest; fails if the command does.
    pub fn guest(&mut self, command: &str) -> Result<String> {
        let path = self.folder.join("control");
        if self.control.is_none() {
            self.control = Some(Control::connect(&path)?);
        }
        let control = self.control.as_mut().context("no control channel")?;
        control.run(command)
    }

    /// Has the guest run a shell command; nobody waits for it, and the guest may not come to it.
    pub fn tell_guest(&mut self, command: &str) -> Result<()> {
        let mut control = self.take_control()?;
        control.tell(command)?;
        self.control = Some(control);
        Ok(())
    }

    /// The channel on which [`guest`](Vm::guest) talks, to be used by another thread. It has to be
    /// dropped before `guest` is called again: QEMU serves one at a time.
    pub fn take_control(&mut self) -> Result<Control> {
        self.control
            .take()
            .map_or_else(|| Control::connect(&self.folder.join("control")), Ok)
    }

    /// Whether QEMU has ended, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for QEMU to end.
    pub fn wait_ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("QEMU has not ended");
            }
            sleep(LOOK_EVERY);
        }
    }

    /// Kills QEMU.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lossy(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

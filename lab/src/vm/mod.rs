//! Guests on a real QEMU.

mod arguments;
mod control;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hypervisor::{Client, Error};
use serde_json::{Value, json};

use crate::{Host, Lab, provisions};

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
    /// 10.0.
    V10,
}

impl QemuVersion {
    fn folder(self) -> &'static str {
        match self {
            QemuVersion::V7_2 => "qemu-7.2",
            QemuVersion::V10 => "qemu-10",
        }
    }

    /// The environment and firmware paths of the unpacked package.
    fn arguments(self) -> (PathBuf, (String, PathBuf), Vec<PathBuf>) {
        let folder = provisions().join(self.folder());
        let share = folder.join("usr/share");
        (
            folder.join("usr/bin/qemu-system-x86_64"),
            (
                "QEMU_MODULE_DIR".to_owned(),
                folder.join("usr/lib/x86_64-linux-gnu/qemu"),
            ),
            vec![share.join("qemu"), share.join("seabios")],
        )
    }

    /// The program, outside the lab.
    pub fn command(self) -> Command {
        let (program, (name, value), folders) = self.arguments();
        let mut command = Command::new(program);
        command.env(name, value);
        for folder in folders {
            command.arg("-L").arg(folder);
        }
        command
    }
}

/// What the guest is. Both answer on the control channel, echo on port 7007 and serve Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// Busybox and Redis in an initramfs: boots in seconds, occupies little.
    Small,
    /// Debian with systemd, Redis, nginx, PostgreSQL, ssh and cron, on a disk that is never
    /// written: what the guest writes stays in its memory, so source and destination share the
    /// disk. It needs 1 GiB of RAM, and `lab/debian.sh` to have been run.
    Debian,
}

/// Which Linux the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's own: 6.1.
    Debian12,
    /// The one of Debian 12's backports: 6.12. With the small image only.
    Backports,
}

impl Kernel {
    fn file(self) -> PathBuf {
        provisions().join(match self {
            Kernel::Debian12 => "vmlinuz",
            Kernel::Backports => "vmlinuz-backports",
        })
    }

    /// Its modules and the image; `None` if there is none with both.
    fn initrd(self, image: Image) -> Option<PathBuf> {
        let name = match (image, self) {
            (Image::Small, Kernel::Debian12) => "initrd.gz",
            (Image::Small, Kernel::Backports) => "initrd-backports.gz",
            (Image::Debian, Kernel::Debian12) => "debian-initrd.gz",
            (Image::Debian, Kernel::Backports) => return None,
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
            Image::Debian => 300,
        })
    }

    fn disk(self) -> Option<PathBuf> {
        match self {
            Image::Small => None,
            Image::Debian => Some(provisions().join("debian.squashfs")),
        }
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
            version: QemuVersion::V10,
            image: Image::Small,
            kernel: Kernel::Debian12,
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
    /// A VM with the Debian guest, and as much RAM as that needs.
    pub fn debian() -> Self {
        VmOptions {
            image: Image::Debian,
            memory: "1G".into(),
            ..VmOptions::default()
        }
    }

    fn initrd(&self) -> Result<PathBuf> {
        let initrd = self.kernel.initrd(self.image);
        initrd.context("the Debian guest has its own kernel only")
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
        let (program, (name, value), firmware) = options.version.arguments();
        let mut command = lab.command(host, program);
        command.env(name, value);
        for folder in firmware {
            command.arg("-L").arg(folder);
        }
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

//! Guests on a real QEMU.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hypervisor::Client;
use serde_json::{Value, json};

use crate::machine::accelerator;
use crate::{GUEST, Host, Lab, provisions};

/// Longest wait for QEMU's monitors.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for an answer of the guest.
const GUEST_LIMIT: Duration = Duration::from_secs(90);
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
        let initrd = options.kernel.initrd(options.image);
        let initrd = initrd.context("the Debian guest has its own kernel only")?;
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
        let mut command = command(lab, host, options, &initrd, &folder);
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
        let deadline = Instant::now() + START_LIMIT;
        // QEMU makes its sockets before it reads its kernel; it tells nobody when.
        while !vm.qmp_path().exists() || !vm.folder.join("lab-qmp").exists() {
            if let Some(status) = vm.child.try_wait()? {
                bail!("QEMU ended at once ({status}): {}", vm.stderr());
            }
            if Instant::now() > deadline {
                bail!("QEMU does not open its monitor: {}", vm.stderr());
            }
            sleep(LOOK_EVERY);
        }
        Ok(vm)
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
        if self.monitor.is_none() {
            let path = self.folder.join("lab-qmp");
            self.monitor = Some(Client::connect(&path, Duration::from_secs(20))?);
        }
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
        let (code, output) = control
            .run(command)
            .with_context(|| format!("running `{command}` in the guest"))?;
        if code != 0 {
            bail!("`{command}` in the guest ended with {code}: {output}");
        }
        Ok(output)
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

fn command(lab: &Lab, host: Host, options: &VmOptions, initrd: &Path, folder: &Path) -> Command {
    let (program, (name, value), firmware) = options.version.arguments();
    let mut command = lab.command(host, program);
    command.env(name, value);
    for folder in firmware {
        command.arg("-L").arg(folder);
    }
    let at = |name: &str| folder.join(name).display().to_string();
    let (accelerator, cpu) = match accelerator() {
        _ if options.counts_instructions => ("tcg,thread=single", "max"),
        "kvm" => ("kvm", "host"),
        _ => ("tcg,thread=multi", "max"),
    };
    command.args(["-machine", &options.machine, "-accel", accelerator]);
    command.args(["-cpu", cpu, "-m", &options.memory]);
    command.args(["-smp", &options.vcpus.to_string()]);
    command.args([
        "-display",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
    ]);
    command.arg("-kernel").arg(options.kernel.file());
    command.arg("-initrd").arg(initrd);
    let mut words = "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0".to_owned();
    if options.network {
        words += &format!(" lab.ip={GUEST}/24");
    }
    if options.agent {
        words += " lab.agent";
    }
    words = words + " " + &options.kernel_words;
    command.args(["-append", &words]);
    command.args(["-serial", &format!("file:{}", at("serial"))]);
    for monitor in ["qmp", "lab-qmp"] {
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", at(monitor))]);
    }
    command.args(["-device", "virtio-serial-pci"]);
    for (id, port, socket) in [
        ("control", "lab.0", "control"),
        ("agent", "org.unmoor.0", "agent"),
    ] {
        let path = at(socket);
        command.args([
            "-chardev",
            &format!("socket,id={id},path={path},server=on,wait=off"),
            "-device",
            &format!("virtserialport,chardev={id},name={port}"),
        ]);
    }
    command.args(["-device", "virtio-rng-pci"]);
    if options.network {
        command.args([
            "-netdev",
            "tap,id=n0,ifname=tap0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=n0,mac=52:54:00:77:00:10,romfile=",
        ]);
    }
    if let Some(disk) = options.image.disk() {
        let disk = disk.display();
        command.args([
            "-drive",
            &format!("if=none,id=root,file={disk},format=raw,readonly=on,file.locking=off"),
            "-device",
            "virtio-blk-pci,drive=root",
        ]);
    }
    if options.counts_instructions {
        command.args(["-icount", "shift=0"]);
    }
    if options.incoming {
        command.args(["-incoming", "defer"]);
    }
    if options.paused {
        command.arg("-S");
    }
    command.args(&options.extra);
    command
}

fn read_lossy(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The host's end of the channel that `lab-guest control` serves.
#[derive(Debug)]
struct Control {
    stream: UnixStream,
    pending: Vec<u8>,
    next_id: u64,
}

impl Control {
    fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("connecting to the guest")?;
        stream.set_read_timeout(Some(GUEST_LIMIT))?;
        // Answers to somebody before us may still be on their way: begin where nobody was.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok(Control {
            stream,
            pending: Vec::new(),
            next_id: u64::from(now.subsec_nanos()) << 20,
        })
    }

    fn run(&mut self, command: &str) -> Result<(i32, String)> {
        self.next_id += 1;
        let id = self.next_id.to_string();
        writeln!(self.stream, "{id} {command}")?;
        loop {
            let line = self.line()?;
            let fields: Vec<&str> = line.split(' ').collect();
            let [of, code, length] = fields[..] else {
                continue;
            };
            let (Ok(code), Ok(length)) = (code.parse(), length.parse::<usize>()) else {
                continue;
            };
            while self.pending.len() < length {
                self.read()?;
            }
            let output: Vec<u8> = self.pending.drain(..length).collect();
            if of == id {
                return Ok((code, String::from_utf8_lossy(&output).into_owned()));
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer)? {
            0 => bail!("QEMU closed the channel"),
            count => self.pending.extend_from_slice(&buffer[..count]),
        }
        Ok(())
    }
}

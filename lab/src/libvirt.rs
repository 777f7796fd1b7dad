//! libvirt on both hosts.
//!
//! Two daemons on one machine have all their folders in the same places. So each host has a mount
//! namespace of its own, in which those are other folders; whatever belongs to the host is started in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::vm::Control;
use crate::{GUEST, HOST_A, HOST_B, Host, Lab, Missing, QemuVersion, VmOptions, machine, versions};

/// Longest wait for a daemon or a guest.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Longest migration, in seconds.
const MIGRATION_LIMIT: &str = "120";
/// The name of the VM.
pub const DOMAIN: &str = "unmoor";

/// Folders that libvirtd has, and their names among the host's own.
const FOLDERS: [(&str, &str); 5] = [
    ("/etc/libvirt", "etc"),
    ("/run/libvirt", "run"),
    ("/var/lib/libvirt", "lib"),
    ("/var/log/libvirt", "log"),
    ("/var/cache/libvirt", "cache"),
];

/// Where a QEMU of the lab takes the system's place: libvirt has it load all modules that there are, and
/// those of another QEMU would end it.
const QEMU: &str = "usr/bin/qemu-system-x86_64";
const OF_QEMU: [&str; 3] = [
    "usr/lib/x86_64-linux-gnu/qemu",
    "usr/share/qemu",
    "usr/share/seabios",
];

/// Where a libvirt of the lab takes the system's place.
const OF_LIBVIRT: [&str; 3] = [
    "usr/lib/x86_64-linux-gnu/libvirt",
    "usr/share/libvirt",
    "usr/lib/libvirt",
];

/// Which libvirt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LibvirtVersion {
    /// 9.0, Debian 12's.
    V9_0,
    /// 11.3, Debian 13's. Needs `lab/versions.sh` to have been run.
    V11_3,
    /// The newest that Debian had when the lab was set up.
    Newest,
}

impl LibvirtVersion {
    /// All of them.
    pub const ALL: [LibvirtVersion; 3] = [
        LibvirtVersion::V9_0,
        LibvirtVersion::V11_3,
        LibvirtVersion::Newest,
    ];

    /// What the lab calls it.
    pub fn label(self) -> &'static str {
        match self {
            LibvirtVersion::V9_0 => "9.0",
            LibvirtVersion::V11_3 => "11.3",
            LibvirtVersion::Newest => "newest",
        }
    }

    /// Its exact version, or why it is not here.
    pub fn exact(self) -> Result<String, Missing> {
        versions::exact("libvirt", self.label())
    }

    /// Its client, which talks to daemons of other versions as well.
    pub fn virsh(self) -> PathBuf {
        self.folder().join("usr/bin/virsh")
    }

    fn folder(self) -> PathBuf {
        versions::folder("libvirt", self.label())
    }
}

/// How libvirt is to be at a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LibvirtOptions {
    /// Which libvirt.
    pub version: LibvirtVersion,
    /// Which QEMU it starts.
    pub qemu: QemuVersion,
    /// The machine that it takes its host for, if not for itself.
    pub known_as: Option<Host>,
}

impl Default for LibvirtOptions {
    fn default() -> Self {
        LibvirtOptions {
            version: LibvirtVersion::V9_0,
            qemu: QemuVersion::V10_0,
            known_as: None,
        }
    }
}

/// A host with libvirt.
#[derive(Debug)]
pub struct Libvirt {
    host: Host,
    version: LibvirtVersion,
    folder: PathBuf,
    /// Holds the namespaces.
    holder: Child,
    daemon: Child,
    /// A command in the host's network.
    enter: Vec<String>,
}

impl Libvirt {
    /// Starts libvirtd at `host`.
    pub fn start(lab: &Lab, host: Host, options: &LibvirtOptions) -> Result<Self> {
        options.version.exact()?;
        options.qemu.exact()?;
        let folder = lab.run_dir().join(format!("libvirt-{host}"));
        for (_, name) in FOLDERS {
            fs::create_dir_all(folder.join(name))?;
        }
        fs::create_dir_all(folder.join("migrate"))?;
        fs::create_dir_all(folder.join("sock"))?;
        fs::create_dir_all(migrate_folder(lab))?;
        fs::write(
            folder.join("libvirtd.conf"),
            daemon_settings(&folder, options.known_as.unwrap_or(host)),
        )?;
        fs::write(folder.join("etc/qemu.conf"), QEMU_SETTINGS)?;
        let holder = hold(lab, host, &folder, options)?;
        // `-r`: the holder's root is not its namespace's where the lab runs in a chroot.
        let enter = ["-t", &holder.id().to_string(), "-m", "-r", "-u", "-n", "--"];
        let enter = enter.map(str::to_owned).to_vec();
        let daemon = start_daemon(&enter, options.version, &folder)?;
        Ok(Libvirt {
            host,
            version: options.version,
            folder,
            holder,
            daemon,
            enter,
        })
    }

    /// Where it is.
    pub fn host(&self) -> Host {
        self.host
    }

    /// A command at this host, in its namespaces.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        enter(&self.enter, program.as_ref())
    }

    /// How others reach this daemon.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Runs virsh; whether it succeeds is the caller's to see.
    pub fn try_virsh(&self, words: &[&str]) -> Result<Output> {
        let mut command = self.command(self.version.virsh());
        let output = command.args(["-q", "-c", &self.uri()]).args(words).output();
        output.context("running virsh")
    }

    /// What virsh says; fails if it does.
    pub fn virsh(&self, words: &[&str]) -> Result<String> {
        let output = self.try_virsh(words)?;
        let said = text(&output);
        ensure!(
            output.status.success(),
            "virsh {} at {}: {said}",
            words.join(" "),
            self.host
        );
        Ok(said)
    }

    /// Begins to move the VM from here through the socket `slot` of unmoord at `to`.
    pub fn migrate(&self, lab: &Lab, to: &Libvirt, slot: u8) -> Result<Child> {
        let socket = migrate_folder(lab).join(format!("{}/{slot}.sock", to.host));
        self.migrate_over(to, &format!("unix://{}", socket.display()))
    }

    /// Begins to move the VM from here as libvirt does it alone, over the same link: what `unmoor` is
    /// compared with.
    pub fn migrate_alone(&self, to: &Libvirt) -> Result<Child> {
        let address = match to.host {
            Host::A => HOST_A,
            Host::B => HOST_B,
            Host::Client => bail!("no VM moves to the client"),
        };
        self.migrate_over(to, &format!("tcp://{address}:49152"))
    }

    fn migrate_over(&self, to: &Libvirt, uri: &str) -> Result<Child> {
        let mut command = self.command("timeout");
        command
            .arg(MIGRATION_LIMIT)
            .arg(self.version.virsh())
            .args(["-q", "-c", &self.uri(), "migrate", "--live", "--p2p"])
            .args(["--desturi", &to.uri()])
            .args(["--migrateuri", uri])
            .arg(DOMAIN)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().context("starting virsh migrate")
    }

    /// The state of the VM as libvirt here tells it: `running`, `paused`, or nothing if there is none.
    pub fn state(&self) -> Result<Option<String>> {
        // One call: between two the VM could go.
        let list = self.virsh(&["list", "--all"])?;
        let line = list.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            words.any(|word| word == DOMAIN).then_some(words)
        });
        Ok(line.map(|words| words.collect::<Vec<_>>().join(" ")))
    }

    /// The VM's description, without what libvirt makes up for each run.
    pub fn description(&self) -> Result<String> {
        self.virsh(&["dumpxml", "--migratable", DOMAIN])
    }

    /// Starts a VM from a description, which is forgotten when it ends.
    pub fn create(&self, description: &str) -> Result<()> {
        let file = self.write_down(description)?;
        self.virsh(&["create", &file])?;
        Ok(())
    }

    /// Starts a VM from a description that is kept.
    pub fn define(&self, description: &str) -> Result<()> {
        let file = self.write_down(description)?;
        self.virsh(&["define", &file])?;
        self.virsh(&["start", DOMAIN])?;
        Ok(())
    }

    fn write_down(&self, description: &str) -> Result<String> {
        let file = self.folder.join("domain.xml");
        fs::write(&file, description)?;
        Ok(file.display().to_string())
    }

    /// The socket of one of the VM's channels, as this process sees it.
    pub fn channel(&self, name: &str) -> Result<PathBuf> {
        let description = self.virsh(&["dumpxml", DOMAIN])?;
        let path = description
            .split('\'')
            .find(|word| word.starts_with('/') && word.ends_with(&format!("/{name}")))
            .with_context(|| format!("{name} has no socket in {description}"))?;
        // Releases differ in the folder that it is in.
        let own = FOLDERS
            .iter()
            .find_map(|(folder, name)| Some((name, path.strip_prefix(&format!("{folder}/"))?)));
        let (folder, path) = own.with_context(|| format!("{path} is in no folder of libvirt's"))?;
        Ok(self.folder.join(folder).join(path))
    }

    /// The channel on which the guest takes commands, once it has booted.
    pub fn control(&self) -> Result<Control> {
        let path = self.channel("lab.0")?;
        let mut control = Control::connect(&path)?;
        let deadline = Instant::now() + START_LIMIT;
        while control.run("echo here").is_err() {
            ensure!(Instant::now() < deadline, "the guest does not answer");
            control = Control::connect(&path)?;
        }
        Ok(control)
    }

    /// The folder of unmoord's sockets here, as this process sees it.
    pub fn sockets(&self) -> PathBuf {
        self.folder.join("migrate")
    }

    /// QEMU's process.
    pub fn qemu(&self) -> Result<u32> {
        let file = self.folder.join(format!("run/qemu/{DOMAIN}.pid"));
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(text.trim().parse()?)
    }

    /// A QEMU that is started from now on, and libvirtd, have at most so many bytes of memory of their own.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        let status = Command::new("prlimit")
            .args(["--pid", &self.daemon.id().to_string()])
            .arg(format!("--data={bytes}:{bytes}"))
            .status()?;
        ensure!(status.success(), "prlimit: {status}");
        Ok(())
    }

    /// libvirtd's socket, as this process sees it.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("sock/libvirt-sock")
    }

    /// Kills libvirtd; QEMU goes on.
    pub fn kill_daemon(&mut self) -> Result<()> {
        self.daemon.kill()?;
        self.daemon.wait()?;
        Ok(())
    }

    /// Starts it again.
    pub fn restart_daemon(&mut self) -> Result<()> {
        self.daemon = start_daemon(&self.enter, self.version, &self.folder)?;
        Ok(())
    }

    /// Nobody at this host can make a socket in a folder of unmoord's any more.
    pub fn close_sockets(&self, lab: &Lab, name: &str) -> Result<()> {
        let folder = migrate_folder(lab).join(name);
        for how in [["--bind"].as_slice(), &["-o", "remount,bind,ro"]] {
            let mut mount = self.command("mount");
            let status = mount.args(how).arg(&folder).arg(&folder).status()?;
            ensure!(status.success(), "mount: {status}");
        }
        Ok(())
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        // A VM that still runs is ended with the lab.
        for child in [&mut self.daemon, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Folder of unmoord's sockets: the same path on both hosts, another folder on each.
pub fn migrate_folder(lab: &Lab) -> PathBuf {
    lab.run_dir().join("migrate")
}

/// A description of the lab's usual VM.
pub fn describe(options: &VmOptions, memory_mib: u32) -> Result<String> {
    let kind = match machine::accelerator() {
        "kvm" => "kvm",
        _ => "qemu",
    };
    let initrd = options.initrd()?;
    let agent = if options.agent { " lab.agent" } else { "" };
    Ok(format!(
        "<domain type='{kind}'>
  <name>{DOMAIN}</name>
  <uuid>0f0e0d0c-0b0a-0908-0706-050403020100</uuid>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>{}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{}</kernel>
    <initrd>{}</initrd>
    <cmdline>console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 lab.ip={GUEST}/24{agent}</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model></cpu>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <interface type='ethernet'>
      <mac address='52:54:00:77:00:10'/>
      <target dev='tap0' managed='no'/>
      <model type='virtio'/>
      <driver name='qemu'/>
      <rom enabled='no'/>
    </interface>
    <channel type='unix'><source mode='bind'/><target type='virtio' name='lab.0'/></channel>
    <channel type='unix'><source mode='bind'/><target type='virtio' name='org.unmoor.0'/></channel>
    <memballoon model='none'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>",
        options.vcpus,
        options.kernel.file().display(),
        initrd.display(),
    ))
}

/// What a command has said.
pub fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Nothing of this machine is looked at or changed: no cgroups, no labels, no owners, no namespaces.
const QEMU_SETTINGS: &str = r#"user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"#;

fn daemon_settings(folder: &Path, host: Host) -> String {
    let number = match host {
        Host::A => 1,
        Host::B => 2,
        Host::Client => 3,
    };
    let folder = folder.display();
    format!(
        r#"unix_sock_dir = "{folder}/sock"
unix_sock_rw_perms = "0700"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "6c1a8a5e-0000-4000-8000-00000000000{number}"
log_level = 3
log_outputs = "3:file:{folder}/libvirtd.log"
"#
    )
}

/// A process in new namespaces, in which libvirt's folders are the host's own, and QEMU and libvirt those
/// that it is to have.
fn hold(lab: &Lab, host: Host, folder: &Path, options: &LibvirtOptions) -> Result<Child> {
    // What is mounted over something needs something there, which this machine may not have: a layer that
    // only this host sees.
    let layer = folder.join("usr").display().to_string();
    fs::create_dir_all(&layer)?;
    let mut script = format!(
        "set -e
mount --make-rprivate /
mount -t tmpfs layer {layer}
mkdir {layer}/upper {layer}/work
mount -t overlay -o lowerdir=/usr,upperdir={layer}/upper,workdir={layer}/work layer /usr
touch /{QEMU}
"
    );
    for path in OF_QEMU.iter().chain(&OF_LIBVIRT) {
        script += &format!("mkdir -p /{path}\n");
    }
    let mut bind = |from: PathBuf, to: &str| {
        script += &format!("mount --bind {} {to}\n", from.display());
    };
    for (path, name) in FOLDERS {
        bind(folder.join(name), path);
    }
    let migrate = migrate_folder(lab);
    bind(folder.join("migrate"), &migrate.display().to_string());
    for path in [QEMU].iter().chain(&OF_QEMU) {
        bind(options.qemu.folder().join(path), &format!("/{path}"));
    }
    for path in OF_LIBVIRT {
        bind(options.version.folder().join(path), &format!("/{path}"));
    }
    script += &format!("hostname lab-{host}\necho ready\nexec sleep infinity\n");
    let file = folder.join("hold.sh");
    fs::write(&file, script)?;
    let log = fs::File::create(folder.join("hold.log"))?;
    let mut holder = lab
        .command(host, "unshare")
        .args(["--mount", "--uts", "--", "sh"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let mut said = String::new();
    let stdout = holder.stdout.take().context("no output")?;
    BufReader::new(stdout).read_line(&mut said)?;
    if said != "ready\n" {
        let log = fs::read_to_string(folder.join("hold.log")).unwrap_or_default();
        bail!("no namespaces for {host}: {log}");
    }
    Ok(holder)
}

/// Starts libvirtd, and waits until it says that it is ready, as it would say to systemd.
fn start_daemon(namespaces: &[String], version: LibvirtVersion, folder: &Path) -> Result<Child> {
    let log = fs::File::create(folder.join("libvirtd.out"))?;
    let notify = folder.join("notify");
    // Of the daemon before.
    let _ = fs::remove_file(&notify);
    let notified = UnixDatagram::bind(&notify)?;
    notified.set_read_timeout(Some(START_LIMIT))?;
    let mut command = enter(namespaces, &version.folder().join("usr/sbin/libvirtd"));
    command
        .args([
            "--config".as_ref(),
            folder.join("libvirtd.conf").as_os_str(),
        ])
        .args([
            "--pid-file".as_ref(),
            folder.join("libvirtd.pid").as_os_str(),
        ])
        .env("NOTIFY_SOCKET", &notify)
        .stdout(Stdio::null())
        .stderr(log);
    let mut daemon = command.spawn().context("starting libvirtd")?;
    let mut said = [0; 256];
    loop {
        match notified.recv(&mut said) {
            Ok(length) if said[..length].starts_with(b"READY=1") => return Ok(daemon),
            Ok(_) => {}
            Err(error) => {
                daemon.kill()?;
                daemon.wait()?;
                let log = fs::read_to_string(folder.join("libvirtd.log")).unwrap_or_default();
                bail!("libvirtd does not start ({error}): {log}");
            }
        }
    }
}

/// A program in those namespaces, which ends with the thread that starts it.
fn enter(namespaces: &[String], program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(namespaces)
        .args(["setpriv", "--pdeathsig", "KILL", "--"])
        .arg(program)
        .stdin(Stdio::null());
    command
}

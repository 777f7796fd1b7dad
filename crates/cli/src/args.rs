//! The command line. Help, manual pages and completions all come from here.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use guest_proto::Rule;
use pack::Method;

use crate::bandwidth::{Bandwidth, rate};
use crate::exit::Exit;

/// Folder of the sockets that libvirt and QEMU use, unless another is named.
pub(crate) const SOCKETS: &str = "/run/unmoor/migrate";

/// Most bytes of rules in a file.
const POLICY_MAX: usize = 32 << 10;

/// Live migration of QEMU/KVM virtual machines through a relay on each host.
///
/// Works with the QEMU that you already run: start the destination with `-incoming defer`, run
/// `unmoor receive` beside it, then `unmoor send` beside the source.
#[derive(Debug, Parser)]
#[command(name = "unmoor", version, after_help = Exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Moves a running VM to a host where `unmoor receive` waits.
    Send(Box<SendArgs>),
    /// Waits for a VM and gives it to a QEMU started with `-incoming defer`.
    Receive(ReceiveArgs),
    /// Moves a VM that libvirt manages to a host where `unmoord` runs.
    Migrate(Box<MigrateArgs>),
    /// Gives a VM that libvirt manages what `unmoor migrate` needs, and says what else would help.
    Prepare(PrepareArgs),
    /// Says whether a VM can be moved, and what to change if not.
    Check(CheckArgs),
    /// Says which processes of a VM depend on the outside world, and why.
    Explain(ExplainArgs),
    /// Says what moving a VM would be like, and changes nothing.
    Plan(PlanArgs),
    /// Lists the migrations that run on this host, and those whose outcome is not known.
    Status(StatusArgs),
    /// Changes a migration from here while it runs.
    Tune(TuneArgs),
    /// Settles a migration after which both hosts were cut off from each other.
    Resolve(ResolveArgs),
    /// Lists the migrations from this host that have ended, the newest last.
    History(HistoryArgs),
    /// Makes certificates for the hosts between which VMs move, and shows them.
    Cert(CertArgs),
    /// Prints a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Writes the manual pages into a directory.
    Man {
        /// The directory, which must exist.
        #[arg(value_hint = ValueHint::DirPath)]
        directory: PathBuf,
    },
    /// Watches a source half and resumes the VM if that dies before the commit.
    #[command(hide = true)]
    Guardian,
}

/// Arguments of `unmoor send`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct SendArgs {
    /// QMP socket of the running QEMU.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub qmp: PathBuf,

    /// Where `unmoor receive` listens.
    #[arg(long, value_name = "HOST:PORT", value_hint = ValueHint::Hostname)]
    pub to: String,

    /// QEMU's socket of the VM's virtio-serial port org.unmoor.0: processes on which nobody
    /// outside depends are paused for a moment, and their memory travels once.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub agent: Option<PathBuf>,

    /// Connections to use, 1 to 16: more than one where the network gives each its own share, such
    /// as bonded links, or loses packets on a long way.
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub connections: u8,

    /// Runs a shell command when the destination is ready and the VM is stopped, just before the
    /// commit; if it fails, the VM resumes here. Its run time is downtime.
    #[arg(long, value_name = "COMMAND")]
    pub before_commit: Option<String>,

    /// QEMU's process, where it is not the one that made the QMP socket.
    #[arg(long, value_name = "PID")]
    pub qemu_pid: Option<u32>,

    #[command(flatten)]
    /// How it moves.
    pub how: HowArgs,
}

/// How a VM moves from here, whoever manages it.
#[derive(Debug, Args)]
pub struct HowArgs {
    /// Longest acceptable stop of the VM at the switchover.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = downtime)]
    pub downtime_limit: Duration,

    /// Most that may be sent while the VM runs: a rate such as 1Gbit or 100MB (per second), or a share
    /// of the network card's, such as 50%. The switchover itself is not limited; `unmoor tune`
    /// changes it.
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<Bandwidth>,

    /// Address of this host to connect from, and with it the network to use.
    #[arg(long, value_name = "ADDRESS")]
    pub bind: Option<IpAddr>,

    /// How memory is compressed on its way: auto (as it pays, measured), none, lz4, zstd or
    /// zstd:LEVEL, with levels from 1 to 19.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub compress: CompressArg,

    /// Memory for pages that the destination has, on each side, so that pages that change a little, or
    /// are the same as others, are told by them; 256MiB at the most, 0MB to do without. Used where
    /// something is compressed.
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = size)]
    pub history: u64,

    /// Threads that compress, 16 at the most; one for every processor unless given.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub compress_threads: Option<u8>,

    /// Gives up, leaving the VM where it is, when it has not moved after this time.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,

    /// How memory travels.
    #[arg(long, value_enum, default_value = "auto")]
    pub protocol: ProtocolArg,

    /// Longest acceptable pause of a process; a rule may allow others more or less.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub max_pause: Duration,

    /// What happens when the memory that is moved live does not converge.
    #[arg(long, value_enum, default_value = "wait")]
    pub on_stall: StallArg,

    /// Most bytes of guest memory that are kept back at once, for example 1GiB; half of the guest's
    /// memory unless given.
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub hold_limit: Option<u64>,

    #[command(flatten)]
    /// Rules about processes.
    pub policy: PolicyArgs,

    /// Compares, while the VM is stopped, all of its memory with what the destination has, in case
    /// QEMU has not noticed that a page was written: repair sends what differs, report only tells of
    /// it. It is part of the downtime. Without a shared memory backend QEMU's process is read.
    #[arg(long, value_enum, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "repair")]
    pub audit: Option<AuditArg>,

    /// Keeps copies of memory that is held back, even where it could be read from QEMU's process when
    /// it goes.
    #[arg(long)]
    pub copy_held: bool,

    /// Writes the page frames that did not travel because the guest declared them free: memory in
    /// which the two hosts may differ.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub left_behind: Option<PathBuf>,

    /// Writes a report for people to read in a browser, however the migration ends, and the same
    /// as data beside it, with the ending .json.
    #[arg(long, value_name = "FILE.html", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,

    /// Keeps no record of this migration for `unmoor history`.
    #[arg(long)]
    pub no_record: bool,

    /// Serves metrics for Prometheus at this address while the migration runs, under /metrics.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,

    /// Name that the destination's certificate is for, where it is not the one in --to.
    #[arg(long, value_name = "NAME", value_hint = ValueHint::Hostname)]
    pub tls_hostname: Option<String>,

    #[command(flatten)]
    /// The connection.
    pub net: NetArgs,

    #[command(flatten)]
    /// The output.
    pub output: OutputArgs,
}

/// Arguments of `unmoor migrate`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct MigrateArgs {
    /// The VM's name, or its UUID.
    pub domain: String,

    #[command(flatten)]
    /// libvirt here.
    pub libvirt: LibvirtArgs,

    /// Where to: the other host's name or address, to whose libvirt this host's goes by SSH, or the URI
    /// of its libvirt as this host's reaches it.
    #[arg(long, value_name = "HOST|URI", value_hint = ValueHint::Hostname)]
    pub to: String,

    /// Where unmoord listens there; port 49140 of the host in --to unless given.
    #[arg(long, value_name = "HOST:PORT", value_hint = ValueHint::Hostname)]
    pub relay: Option<String>,

    /// Folder of the sockets that libvirt and QEMU use: unmoord's --sockets, the same on all hosts.
    #[arg(long, value_name = "DIR", default_value = SOCKETS, value_hint = ValueHint::DirPath)]
    pub sockets: PathBuf,

    #[command(flatten)]
    /// How it moves.
    pub how: HowArgs,
}

/// Arguments of `unmoor prepare`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct PrepareArgs {
    /// The VM's name, or its UUID.
    pub domain: String,

    #[command(flatten)]
    /// libvirt here.
    pub libvirt: LibvirtArgs,

    /// Changes nothing: prints the XML that would be added.
    #[arg(long)]
    pub print: bool,

    /// Prints one JSON object.
    #[arg(long, conflicts_with = "print")]
    pub json: bool,
}

/// Which libvirt has the VM.
#[derive(Debug, Args)]
pub struct LibvirtArgs {
    /// URI of this host's libvirt.
    #[arg(
        long,
        value_name = "URI",
        default_value = "qemu:///system",
        env = "LIBVIRT_DEFAULT_URI"
    )]
    pub connect: String,
}

/// Arguments of `unmoor receive`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct ReceiveArgs {
    /// QMP socket of the QEMU that waits with `-incoming defer`.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub qmp: PathBuf,

    /// Address to listen on.
    #[arg(long, value_name = "HOST:PORT", value_hint = ValueHint::Hostname)]
    pub listen: String,

    /// This QEMU's socket of the VM's virtio-serial port org.unmoor.0: what the source has frozen
    /// is thawed as soon as the VM runs, and not only when its time is up.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub agent: Option<PathBuf>,

    /// Lets in only a source whose certificate has this name; may be given several times. Unless
    /// given, everybody with a certificate from the same authority.
    #[arg(long, value_name = "NAME")]
    pub tls_allow: Vec<String>,

    /// Ends with the first connection, also if it comes to nothing.
    #[arg(long)]
    pub once: bool,

    /// Goes on where another has died: for its guardian.
    #[arg(long, hide = true)]
    pub take_over: bool,

    #[command(flatten)]
    /// The connection.
    pub net: NetArgs,

    #[command(flatten)]
    /// The output.
    pub output: OutputArgs,
}

/// Arguments of `unmoor check`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct CheckArgs {
    /// QMP socket of the QEMU to check.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub qmp: PathBuf,

    /// QEMU's socket of the VM's virtio-serial port org.unmoor.0: checks the agent, too.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub agent: Option<PathBuf>,

    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unmoor explain`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct ExplainArgs {
    /// QEMU's socket of the VM's virtio-serial port org.unmoor.0.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub agent: PathBuf,

    /// How long to follow who exchanges data with whom.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub window: Duration,

    /// How long to watch, after that, how fast processes write memory. Each first write to a page
    /// costs them a fault meanwhile; 0s leaves it out.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub sample: Duration,

    #[command(flatten)]
    /// Rules about processes.
    pub policy: PolicyArgs,

    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,

    /// Prints a graph for Graphviz.
    #[arg(long, conflicts_with = "json")]
    pub dot: bool,
}

/// Arguments of `unmoor plan`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct PlanArgs {
    /// QMP socket of the running QEMU.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub qmp: PathBuf,

    /// QEMU's socket of the VM's virtio-serial port org.unmoor.0. Without it nobody could be
    /// paused, and only QEMU's own figures of memory and dirty rate are known.
    #[arg(long, value_name = "SOCK", value_hint = ValueHint::FilePath)]
    pub agent: Option<PathBuf>,

    /// The link's rate, for example 1Gbit or 100MB, per second.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub bandwidth: u64,

    /// How long to follow who exchanges data with whom.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub window: Duration,

    /// How long to watch, after that, which memory processes write, and once more for twice as
    /// long. Each first write to a page costs them a fault meanwhile.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = sample)]
    pub sample: Duration,

    /// Longest acceptable stop of the VM at the switchover.
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = downtime)]
    pub downtime_limit: Duration,

    /// Longest acceptable pause of a process; a rule may allow others more or less.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub max_pause: Duration,

    #[command(flatten)]
    /// Rules about processes.
    pub policy: PolicyArgs,

    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unmoor status`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct StatusArgs {
    /// Prints one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unmoor history`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct HistoryArgs {
    /// How many, at the most.
    #[arg(long, short = 'n', value_name = "COUNT", default_value = "20")]
    pub last: usize,

    /// Prints one whole record a line, as JSON: what `unmoor send --report` writes as data.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `unmoor tune`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct TuneArgs {
    /// The beginning of the session's name; not needed where one VM only is on its way from here.
    pub session: Option<String>,

    /// Most that may be sent from now on while the VM runs: a rate, a share of the network card's
    /// such as 50%, or none for no limit.
    #[arg(long, value_name = "RATE")]
    pub bandwidth: LimitArg,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitArg {
    /// No limit.
    None,
    /// This one.
    Some(Bandwidth),
}

impl FromStr for LimitArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(LimitArg::None),
            other => other.parse().map(LimitArg::Some),
        }
    }
}

/// Arguments of `unmoor resolve`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct ResolveArgs {
    /// The beginning of the session's name (`unmoor status`).
    pub session: String,

    /// The VM runs here from now on. Make sure first that it does not run on the other host, and
    /// never will.
    #[arg(long, conflicts_with = "give_up")]
    pub run_here: bool,

    /// The VM does not run here: a source goes on resting and is forgotten, a destination that waits
    /// ends.
    #[arg(long)]
    pub give_up: bool,
}

/// What an operator has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing yet: the other host is asked.
    Ask,
    RunHere,
    GiveUp,
}

impl ResolveArgs {
    pub(crate) fn verdict(&self) -> Verdict {
        match (self.run_here, self.give_up) {
            (true, _) => Verdict::RunHere,
            (_, true) => Verdict::GiveUp,
            _ => Verdict::Ask,
        }
    }
}

/// Arguments of `unmoor cert`.
#[derive(Debug, Args)]
#[command(after_help = Exit::HELP)]
pub struct CertArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CertCommand,
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Makes an authority: ca-cert.pem, which every host gets, and ca-key.pem, which stays here.
    Init {
        /// Folder of the authority; it is made.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,

        /// Days until it expires.
        #[arg(long, value_name = "DAYS", default_value = "3650", value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,

        /// Overwrites an authority that is there: certificates issued by it are worth nothing then.
        #[arg(long)]
        force: bool,
    },
    /// Makes a host's certificates, as a folder to be copied to that host.
    Issue {
        /// Names and addresses of the host, as others connect to it; the first names the folder.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,

        /// Folder of the authority.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        dir: PathBuf,

        /// Where the host's folder is made; in the authority's unless given.
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,

        /// Days until they expire.
        #[arg(long, value_name = "DAYS", default_value = "825", value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,

        /// Overwrites certificates that are there.
        #[arg(long)]
        force: bool,
    },
    /// Shows certificates: for whom, from whom, until when.
    Show {
        /// Files, or folders with such.
        #[arg(required = true, value_name = "FILE", value_hint = ValueHint::AnyPath)]
        paths: Vec<PathBuf>,

        /// Prints one JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

/// How memory travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolArg {
    /// stop-copy where an agent answers, else live
    Auto,
    /// All of it live, pass by pass
    Live,
    /// That of processes on which nobody outside depends once, while they are paused
    StopCopy,
    /// That of processes on which nobody outside depends once, after the switchover; nobody is paused.
    /// Without an agent, whatever has not been sent once by then. The VM needs this host until it has
    /// come
    PostCopy,
}

/// What an audit does with what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AuditArg {
    /// Pages that differ are sent
    Repair,
    /// They are counted
    Report,
}

/// How memory is compressed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompressArg {
    /// As it pays.
    Auto,
    /// Not at all.
    None,
    /// This way, whether it pays or not.
    Always(Method),
}

impl FromStr for CompressArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(CompressArg::Auto),
            "none" => Ok(CompressArg::None),
            other => match other.parse() {
                Ok(method) => Ok(CompressArg::Always(method)),
                Err(why) => Err(format!("auto, none, {why}")),
            },
        }
    }
}

/// What happens when the memory that is moved live does not converge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StallArg {
    /// It goes on until you, or --timeout, end it
    Wait,
    /// QEMU throttles the guest's processors
    AutoConverge,
    /// The VM is stopped and moved, whatever the downtime
    Switchover,
    /// What has not been sent by then follows after the switchover, and so does the memory of
    /// processes that would be paused for too long. The VM needs this host until it has come
    PostCopy,
    /// The migration is given up
    Abort,
}

/// Rules about processes.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// A rule, such as `may-pause unit:batch.service up-to 20s`; may be given several times.
    /// Where rules are equally specific it comes before those of a file and of the guest.
    #[arg(long, value_name = "RULE")]
    pub rule: Vec<Rule>,

    /// A file with a rule a line, as in the guest's /etc/unmoor/agent.d.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = policy_file)]
    pub policy: Option<PolicyFile>,
}

/// The rules of a file.
#[derive(Debug, Clone)]
pub struct PolicyFile(Vec<Rule>);

impl PolicyArgs {
    /// All rules, those that come before others first.
    pub fn rules(&self) -> Vec<Rule> {
        let of_file = self.policy.iter().flat_map(|file| &file.0);
        self.rule.iter().chain(of_file).cloned().collect()
    }
}

/// How to connect.
#[derive(Debug, Clone, Args)]
pub struct NetArgs {
    /// Folder of this host's certificates, by QEMU's names (ca-cert.pem, server-cert.pem, ...);
    /// /etc/pki/unmoor, /etc/pki/qemu or libvirt's unless given.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub tls_dir: Option<PathBuf>,

    /// Allows plain text, on loopback and private networks only.
    #[arg(long, conflicts_with = "tls_dir")]
    pub insecure: bool,

    /// Allows plain text on any network: guest memory can be read and changed on the way.
    #[arg(long, conflicts_with = "tls_dir")]
    pub insecure_anywhere: bool,

    /// Silence after which the connection is taken to be lost.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = silence)]
    pub peer_timeout: Duration,

    /// How long a connection that was lost may take to come back before the migration is given up;
    /// 0s gives it up at once.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub reconnect: Duration,
}

/// What to print.
#[derive(Debug, Clone, Args)]
pub struct OutputArgs {
    /// Prints one JSON event a line.
    #[arg(long)]
    pub json: bool,

    /// Prints nothing but the summary and errors.
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
}

fn downtime(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_millis(1)..=Duration::from_secs(2000)).contains(&limit) {
        Ok(limit)
    } else {
        Err("QEMU takes 1ms to 2000s".into())
    }
}

fn sample(text: &str) -> Result<Duration, String> {
    let sample = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (Duration::from_millis(100)..=Duration::from_secs(60)).contains(&sample) {
        Ok(sample)
    } else {
        Err("100ms to 60s: shorter says little, longer costs the guest".into())
    }
}

fn silence(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if limit >= Duration::from_secs(3) {
        Ok(limit)
    } else {
        Err("at least 3s: a living peer may be silent for one".into())
    }
}

/// Reads a policy. All that is wrong with it is told at once.
fn policy_file(path: &str) -> Result<PolicyFile, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for (line, rule) in guest_proto::rules(&text) {
        match rule {
            Ok(rule) => found.push(rule),
            Err(error) => wrong.push(format!("{path}:{line}: {error}")),
        }
    }
    let size: usize = found.iter().map(|rule| rule.to_string().len()).sum();
    if !wrong.is_empty() {
        Err(wrong.join("; "))
    } else if size > POLICY_MAX {
        Err(format!(
            "the rules take {size} bytes; what goes to the agent in one message is at most {POLICY_MAX}"
        ))
    } else {
        Ok(PolicyFile(found))
    }
}

/// Bytes from a size such as `512MiB` or `2GB`.
fn size(text: &str) -> Result<u64, String> {
    let explain = || "write a size such as 512MiB or 2GB".to_owned();
    let trimmed = text.trim();
    let unit_at = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(explain)?;
    let (number, unit) = trimmed.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| explain())?;
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(explain()),
    };
    number.checked_mul(unit).ok_or_else(explain)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_in_powers_of_ten_and_two() {
        assert_eq!(size("512MiB"), Ok(512 << 20));
        assert_eq!(size("2 GB"), Ok(2_000_000_000));
        for wrong in ["512", "much", "-1GB", "99999999999999999GB", "1kB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_that_qemu_would_refuse_are_refused_here() {
        assert!(downtime("0ms").is_err());
        assert!(downtime("3000s").is_err());
        assert_eq!(downtime("300ms"), Ok(Duration::from_millis(300)));
    }
}

//! A QEMU: typed questions and orders.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::settings::LINK_RATE;
use crate::{Client, Error, Event, Id, Incoming, Version, VmFacts};

/// QEMU's run state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunState {
    /// The VM runs.
    Running,
    /// The VM is paused by its owner.
    Paused,
    /// The VM waits for a migration to arrive.
    InMigrate,
    /// The VM is stopped for the end of its migration.
    FinishMigrate,
    /// The VM's migration has completed: it rests.
    PostMigrate,
    /// Any other, by QEMU's name.
    Other(String),
}

impl RunState {
    /// Reads an answer to `query-status`.
    pub fn from_value(value: &Value) -> Self {
        Self::parse(value["status"].as_str().unwrap_or(""))
    }

    fn parse(name: &str) -> Self {
        match name {
            "running" => RunState::Running,
            "paused" => RunState::Paused,
            "inmigrate" => RunState::InMigrate,
            "finish-migrate" => RunState::FinishMigrate,
            "postmigrate" => RunState::PostMigrate,
            other => RunState::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::InMigrate => "inmigrate",
            RunState::FinishMigrate => "finish-migrate",
            RunState::PostMigrate => "postmigrate",
            RunState::Other(name) => name,
        })
    }
}

/// The state of QEMU's migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationStatus {
    /// There has been none.
    None,
    /// Under way: setup, active, device and the like, by QEMU's name.
    UnderWay(String),
    /// Cancelled.
    Cancelled,
    /// Completed.
    Completed,
    /// Failed.
    Failed,
}

impl MigrationStatus {
    fn parse(name: &str) -> Self {
        match name {
            "none" => MigrationStatus::None,
            "cancelled" => MigrationStatus::Cancelled,
            "completed" => MigrationStatus::Completed,
            "failed" => MigrationStatus::Failed,
            other => MigrationStatus::UnderWay(other.to_owned()),
        }
    }

    /// The state that a MIGRATION event tells.
    pub fn of_event(event: &Event) -> Option<Self> {
        event.data.get("status")?.as_str().map(Self::parse)
    }
}

impl fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MigrationStatus::None => "none",
            MigrationStatus::UnderWay(name) => name,
            MigrationStatus::Cancelled => "cancelled",
            MigrationStatus::Completed => "completed",
            MigrationStatus::Failed => "failed",
        })
    }
}

/// Memory figures of a migration under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RamInfo {
    /// Bytes that QEMU has yet to send in this pass.
    pub remaining: u64,
    /// All memory in bytes.
    pub total: u64,
    /// Passes over the dirty bitmap so far.
    pub dirty_sync_count: u64,
    /// Pages that the VM dirties a second, as QEMU last measured.
    pub dirty_pages_rate: u64,
}

/// The answer to `query-migrate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationInfo {
    /// The state.
    pub status: MigrationStatus,
    /// Memory figures, once there are any.
    pub ram: Option<RamInfo>,
    /// Why it failed, in QEMU's words.
    pub error_desc: Option<String>,
    /// What forbids any migration of this VM, in QEMU's words.
    pub blocked_reasons: Vec<String>,
}

impl MigrationInfo {
    /// Reads an answer to `query-migrate`.
    pub fn from_value(value: &Value) -> Self {
        let ram = value.get("ram").map(|ram| {
            let field = |name: &str| ram[name].as_u64().unwrap_or(0);
            RamInfo {
                remaining: field("remaining"),
                total: field("total"),
                dirty_sync_count: field("dirty-sync-count"),
                dirty_pages_rate: field("dirty-pages-rate"),
            }
        });
        MigrationInfo {
            status: MigrationStatus::parse(value["status"].as_str().unwrap_or("none")),
            ram,
            error_desc: value["error-desc"].as_str().map(str::to_owned),
            blocked_reasons: value["blocked-reasons"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|reason| reason.as_str().map(str::to_owned))
                .collect(),
        }
    }
}

/// A QEMU under control.
#[derive(Debug)]
pub struct Vm {
    client: Client,
}

impl Vm {
    /// Connects to the QMP socket at `path`, waiting up to `limit` for QEMU's greeting.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, Error> {
        Ok(Vm {
            client: Client::connect(path, limit)?,
        })
    }

    /// Speaks over a socket at whose other end somebody passes on what QEMU says.
    pub fn over(stream: UnixStream, limit: Duration) -> Result<Self, Error> {
        Ok(Vm {
            client: Client::over(stream, limit)?,
        })
    }

    /// Readable when there is something to [`process`](Vm::process).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.client.fd()
    }

    /// Whether [`process`](Vm::process) has something although nothing is readable.
    pub fn has_queued(&self) -> bool {
        self.client.has_queued()
    }

    /// Takes events and answers that have arrived, without waiting.
    pub fn process(&mut self) -> Result<Vec<Incoming>, Error> {
        self.client.process()
    }

    /// Waits until QEMU says something by itself, at most until `deadline`.
    pub fn wait_event(&mut self, deadline: Instant) -> Result<(), Error> {
        if self.client().wait_readable(deadline)? {
            self.process()?;
        }
        Ok(())
    }

    /// The process that made the monitor's socket, if this host can see it: QEMU itself, unless it
    /// was given the socket by somebody else.
    pub fn process_id(&self) -> Option<u32> {
        self.client.process_id()
    }

    /// The connection itself.
    pub(crate) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    pub(crate) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, Error> {
        self.client.execute(command, arguments)
    }

    /// What QEMU tells to people only, as the text that they read.
    pub(crate) fn ask_for_people(&mut self, line: &str) -> Result<String, Error> {
        let answer = self.ask("human-monitor-command", &json!({"command-line": line}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// The run state.
    pub fn status(&mut self) -> Result<RunState, Error> {
        let answer = self.ask("query-status", &json!({}))?;
        Ok(RunState::from_value(&answer))
    }

    /// Asks for the run state, without waiting: [`RunState::from_value`] reads the answer that
    /// [`process`](Vm::process) will bring.
    pub fn submit_status(&mut self) -> Result<Id, Error> {
        self.client.submit("query-status", &json!({}))
    }

    /// The version that QEMU greeted with.
    pub fn version(&self) -> Version {
        let version = &self.client.greeting()["version"]["qemu"];
        let part = |name: &str| {
            version[name]
                .as_u64()
                .and_then(|part| u32::try_from(part).ok())
                .unwrap_or(0)
        };
        Version {
            major: part("major"),
            minor: part("minor"),
            micro: part("micro"),
        }
    }

    /// The facts that must fit between two hosts.
    pub fn facts(&mut self) -> Result<VmFacts, Error> {
        let machine = self.ask("qom-get", &json!({"path": "/machine", "property": "type"}))?;
        let machine = machine.as_str().unwrap_or("");
        let memory = self.ask("query-memory-size-summary", &json!({}))?;
        let bytes = |name: &str| memory[name].as_u64().unwrap_or(0);
        let cpus = self.ask("query-cpus-fast", &json!({}))?;
        let mut devices = Vec::new();
        for container in ["/machine/peripheral", "/machine/peripheral-anon"] {
            let children = self.ask("qom-list", &json!({"path": container}))?;
            let types = children
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|child| child["type"].as_str()?.strip_prefix("child<"))
                .map(|name| name.trim_end_matches('>').to_owned());
            devices.extend(types);
        }
        devices.sort_unstable();
        Ok(VmFacts {
            qemu_version: self.version(),
            machine_type: machine
                .strip_suffix("-machine")
                .unwrap_or(machine)
                .to_owned(),
            memory_bytes: bytes("base-memory") + bytes("plugged-memory"),
            vcpus: cpus.as_array().map_or(0, |cpus| cpus.len() as u64),
            devices,
            no_post_copy: None,
        })
    }

    /// All migration capabilities that this QEMU knows, with their state.
    pub fn capabilities(&mut self) -> Result<BTreeMap<String, bool>, Error> {
        let answer = self.ask("query-migrate-capabilities", &json!({}))?;
        let list = answer.as_array().ok_or_else(|| Error::Answer {
            command: "query-migrate-capabilities",
            what: "not a list".into(),
        })?;
        Ok(list
            .iter()
            .filter_map(|one| {
                let name = one["capability"].as_str()?;
                Some((name.to_owned(), one["state"].as_bool()?))
            })
            .collect())
    }

    /// Switches capabilities on and off.
    pub fn set_capabilities(&mut self, states: &BTreeMap<String, bool>) -> Result<(), Error> {
        if states.is_empty() {
            return Ok(());
        }
        let list: Vec<Value> = states
            .iter()
            .map(|(name, state)| json!({"capability": name, "state": state}))
            .collect();
        self.ask("migrate-set-capabilities", &json!({"capabilities": list}))?;
        Ok(())
    }

    /// All migration parameters of this QEMU.
    pub fn parameters(&mut self) -> Result<Map<String, Value>, Error> {
        match self.ask("query-migrate-parameters", &json!({}))? {
            Value::Object(parameters) => Ok(parameters),
            _ => Err(Error::Answer {
                command: "query-migrate-parameters",
                what: "not an object".into(),
            }),
        }
    }

    /// Sets migration parameters.
    pub fn set_parameters(&mut self, parameters: &Map<String, Value>) -> Result<(), Error> {
        if parameters.is_empty() {
            return Ok(());
        }
        let arguments = Value::Object(parameters.clone());
        self.ask("migrate-set-parameters", &arguments)?;
        Ok(())
    }

    /// How a migration stands.
    pub fn migration_info(&mut self) -> Result<MigrationInfo, Error> {
        let answer = self.ask("query-migrate", &json!({}))?;
        Ok(MigrationInfo::from_value(&answer))
    }

    /// Asks how a migration stands, without waiting: [`MigrationInfo::from_value`] reads the
    /// answer that [`process`](Vm::process) will bring.
    pub fn submit_migration_query(&mut self) -> Result<Id, Error> {
        self.client.submit("query-migrate", &json!({}))
    }

    /// Changes the downtime limit of a migration under way, without waiting for the answer, and
    /// tells what the link carries, in bytes a second, if QEMU takes that
    /// ([`Saved::takes_link_rate`](crate::Saved::takes_link_rate)).
    pub fn submit_downtime_limit(
        &mut self,
        limit: Duration,
        link: Option<u64>,
    ) -> Result<Id, Error> {
        let mut arguments = json!({"downtime-limit": milliseconds(limit)});
        if let Some(link) = link {
            arguments[LINK_RATE] = json!(link);
        }
        self.client.submit("migrate-set-parameters", &arguments)
    }

    /// Lets QEMU throttle the guest's processors up to so many percent, in one step, without
    /// waiting for the answer. Works if throttling was wanted from the start.
    pub fn submit_throttle(&mut self, percent: u8) -> Result<Id, Error> {
        let arguments = json!({"max-cpu-throttle": percent, "cpu-throttle-increment": percent});
        self.client.submit("migrate-set-parameters", &arguments)
    }

    /// Gives QEMU a descriptor under a name, for `fd:NAME`.
    pub fn send_fd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let arguments = json!({"fdname": name});
        self.client.execute_with_fd("getfd", &arguments, Some(fd))?;
        Ok(())
    }

    /// Begins a migration to `uri`.
    pub fn migrate(&mut self, uri: &str) -> Result<(), Error> {
        self.ask("migrate", &json!({"uri": uri}))?;
        Ok(())
    }

    /// Goes on with a post-copy migration that has broken off, from `uri`.
    pub fn migrate_recover(&mut self, uri: &str) -> Result<(), Error> {
        self.ask("migrate-recover", &json!({"uri": uri}))?;
        Ok(())
    }

    /// Begins to take a migration from `uri`.
    pub fn migrate_incoming(&mut self, uri: &str) -> Result<(), Error> {
        self.ask("migrate-incoming", &json!({"uri": uri}))?;
        Ok(())
    }
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

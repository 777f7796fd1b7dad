//! A scripted QEMU, and monitors that are none.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hypervisor::{Client, Error, Vm};
use serde_json::{Value, json};

pub(crate) const LIMIT: Duration = Duration::from_secs(5);
pub(crate) const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": []}}"#;

/// What a scripted QEMU answers: a result, or the words of a refusal; `None` closes the monitor.
pub(crate) type Answer = Option<Result<Value, String>>;

pub(crate) struct Script {
    _folder: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) commands: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Script {
    pub(crate) fn new(mut answer: impl FnMut(&str, &Value) -> Answer + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let commands = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&commands);
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            writeln!(stream, "{GREETING}\r").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap();
                seen.lock()
                    .unwrap()
                    .push((name.to_owned(), command["arguments"].clone()));
                let answered = match name {
                    "qmp_capabilities" => Some(Ok(json!({}))),
                    _ => answer(name, &command["arguments"]),
                };
                let reply = match answered {
                    Some(Ok(value)) => json!({"return": value, "id": command["id"], "new": 1}),
                    Some(Err(desc)) => {
                        json!({"error": {"class": "GenericError", "desc": desc}, "id": command["id"]})
                    }
                    None => return,
                };
                let event =
                    json!({"event": "STOP", "timestamp": {"seconds": 7, "microseconds": 9}});
                // An event between every command and its answer, the answer in single bytes.
                writeln!(stream, "{event}").unwrap();
                for byte in format!("{reply}\r\n").bytes() {
                    stream.write_all(&[byte]).unwrap();
                }
            }
        });
        Script {
            _folder: folder,
            path,
            commands,
        }
    }

    pub(crate) fn vm(&self) -> Vm {
        Vm::connect(&self.path, LIMIT).unwrap()
    }

    pub(crate) fn commands(&self, name: &str) -> Vec<Value> {
        let all = self.commands.lock().unwrap();
        let of = all.iter().filter(|(command, _)| command == name);
        of.map(|(_, arguments)| arguments.clone()).collect()
    }

    /// The names of all commands, in order, without questions.
    pub(crate) fn orders(&self) -> Vec<String> {
        let all = self.commands.lock().unwrap();
        let names = all.iter().map(|(command, _)| command.clone());
        names.filter(|name| !name.starts_with("query-")).collect()
    }
}

/// A monitor that does what `serve` does with its only connection.
pub(crate) fn raw(
    serve: impl FnOnce(UnixStream) + Send + 'static,
) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    (folder, path, server)
}

/// Greets, answers `count` commands with nothing, and leaves the connection open.
pub(crate) fn answer(mut stream: &UnixStream, count: usize) {
    writeln!(stream, "{GREETING}\r").unwrap();
    let mut lines = BufReader::new(stream).lines();
    for _ in 0..count {
        let command: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        writeln!(stream, "{}\r", json!({"return": {}, "id": command["id"]})).unwrap();
    }
}

pub(crate) fn connect_error(path: &Path, limit: Duration) -> Error {
    Client::connect(path, limit).unwrap_err()
}

/// A QEMU in a given state; `change` overrides answers.
pub(crate) fn qemu(
    status: &'static str,
    mut change: impl FnMut(&str, &Value) -> Option<Answer> + Send + 'static,
) -> Script {
    Script::new(move |command, arguments| {
        if let Some(answer) = change(command, arguments) {
            return answer;
        }
        Some(Ok(match command {
            "query-status" => json!({"status": status}),
            "query-migrate" => json!({}),
            "query-migrate-capabilities" => json!([
                {"capability": "xbzrle", "state": true},
                {"capability": "return-path", "state": true},
                {"capability": "events", "state": false},
                {"capability": "multifd", "state": false},
                {"capability": "auto-converge", "state": true},
            ]),
            "query-migrate-parameters" => {
                json!({"max-bandwidth": 134_217_728, "downtime-limit": 300, "tls-creds": ""})
            }
            "query-memory-size-summary" => json!({"base-memory": 1 << 20}),
            "query-cpus-fast" => json!([{}, {}]),
            "qom-get" => json!("pc-q35-10.0-machine"),
            "qom-list" => {
                json!([{"name": "n0", "type": "child<virtio-net-pci>"}, {"name": "type", "type": "string"}])
            }
            "query-block" => json!([{"inserted": {"file": "/disk", "ro": false}}]),
            _ => json!({}),
        }))
    })
}

/// A QEMU whose states follow the commands: `migrate_cancel` ends a migration, `cont` resumes.
pub(crate) fn recoverable(mut state: &'static str, mut migration: &'static str) -> Script {
    qemu("unused", move |command, _| {
        match command {
            "migrate_cancel" => (state, migration) = ("running", "cancelled"),
            "cont" => state = "running",
            _ => {}
        }
        match command {
            "query-status" => Some(Some(Ok(json!({"status": state})))),
            "query-migrate" => Some(Some(Ok(json!({"status": migration})))),
            _ => None,
        }
    })
}

//! QEMU's monitor, as libvirt lets others use it, made a socket that speaks QMP.
//!
//! ```text
//! whoever speaks QMP ◄─► socket ──commands──► thread ──► virDomainQemuMonitorCommand
//!                          ▲ ◄───answers────────┘
//!                          └─────events──────── thread ◄──newest of each── libvirt's event loop
//! ```
//!
//! libvirt's event loop is never kept waiting: that would be the end of its connection. QEMU may begin a
//! pass thousands of times a second; the reader gets the newest when it has time for it.

use std::ffi::CStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use virt::connect::Connect;
use virt::domain::Domain;

use crate::Error;
use crate::listener::{Event, Listener};

/// The events of which a migration consists.
const EVENTS: &CStr = c"^(MIGRATION|MIGRATION_PASS|STOP|RESUME)$";

/// QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    _listener: Listener,
    socket: Option<UnixStream>,
}

/// The end at which QEMU seems to be.
#[derive(Debug, Clone)]
struct Voice(Arc<Mutex<UnixStream>>);

impl Voice {
    fn say(&self, message: &Value) -> std::io::Result<()> {
        let line = format!("{message}\r\n");
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(line.as_bytes())
    }
}

impl Monitor {
    pub(crate) fn open(connect: &Connect, domain: &Domain) -> Result<Self, Error> {
        let (ours, theirs) = UnixStream::pair()?;
        let voice = Voice(Arc::new(Mutex::new(ours.try_clone()?)));
        let version = ask(domain, &json!({"execute": "query-version"}))?;
        voice.say(&json!({"QMP": {"version": version["return"], "capabilities": []}}))?;
        let (events, news) = newest();
        let teller = voice.clone();
        std::thread::Builder::new()
            .name("events".into())
            .spawn(move || news.tell(|event| teller.say(&as_qemu_says(event))))?;
        let listener = Listener::new(connect, domain, EVENTS, move |event| events.keep(event))?;
        let domain = domain.clone();
        std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || serve(ours, &voice, &domain))?;
        Ok(Monitor {
            _listener: listener,
            socket: Some(theirs),
        })
    }

    /// The socket, the first time.
    pub fn take_socket(&mut self) -> Option<UnixStream> {
        self.socket.take()
    }
}

/// Events that have not been read yet, of each kind the newest.
type Unheard = Arc<Mutex<Vec<Event>>>;

/// Where they are put.
struct Events {
    unheard: Unheard,
    wake: SyncSender<()>,
}

/// Where they are taken from.
struct News {
    unheard: Unheard,
    woken: Receiver<()>,
}

/// The two ends; what is taken ends when what is put does.
fn newest() -> (Events, News) {
    let unheard = Unheard::default();
    let (wake, woken) = sync_channel(1);
    let events = Events {
        unheard: Arc::clone(&unheard),
        wake,
    };
    (events, News { unheard, woken })
}

impl Events {
    /// Never waits for the reader.
    fn keep(&self, event: &Event) {
        let mut unheard = self.unheard.lock().unwrap_or_else(PoisonError::into_inner);
        unheard.retain(|older| older.name != event.name);
        unheard.push(event.clone());
        drop(unheard);
        // One that is about to wake sees this, too.
        let _ = self.wake.try_send(());
    }
}

impl News {
    /// Writes them in their order, until there is no sender left or one cannot be written.
    fn tell(self, mut tell: impl FnMut(&Event) -> std::io::Result<()>) {
        for () in self.woken {
            let unheard =
                std::mem::take(&mut *self.unheard.lock().unwrap_or_else(PoisonError::into_inner));
            if unheard.iter().try_for_each(&mut tell).is_err() {
                return;
            }
        }
    }
}

/// Passes commands on until whoever gives them closes the socket.
fn serve(socket: UnixStream, voice: &Voice, domain: &Domain) {
    for line in BufReader::new(socket).split(b'\n') {
        let Ok(line) = line else {
            return;
        };
        let Some((command, id)) = command(&line) else {
            continue;
        };
        let answer = match command["execute"].as_str() {
            // libvirt has done that long ago.
            Some("qmp_capabilities") => json!({"return": {}}),
            _ => ask(domain, &command).unwrap_or_else(|error| refusal(&error.to_string())),
        };
        if voice.say(&with_id(answer, id)).is_err() {
            return;
        }
    }
}

fn ask(domain: &Domain, command: &Value) -> Result<Value, Error> {
    let answer = domain.qemu_monitor_command(&command.to_string(), 0)?;
    serde_json::from_str(&answer).map_err(|_| Error::Answer(answer))
}

/// A command without the number that it has for whoever gives it: libvirt gives it another.
fn command(line: &[u8]) -> Option<(Value, Value)> {
    let mut command: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let id = command.remove("id").unwrap_or_default();
    Some((Value::Object(command), id))
}

/// An answer with the number that was taken off the command.
fn with_id(mut answer: Value, id: Value) -> Value {
    if let Value::Object(answer) = &mut answer {
        answer.insert("id".into(), id);
    }
    answer
}

fn refusal(why: &str) -> Value {
    json!({"error": {"class": "GenericError", "desc": why}})
}

/// An event as QEMU has told it.
fn as_qemu_says(event: &Event) -> Value {
    let data = event.details.as_deref();
    let data = data.and_then(|text| serde_json::from_str(text).ok());
    json!({
        "event": event.name,
        "data": data.unwrap_or_else(|| json!({})),
        "timestamp": {"seconds": event.seconds, "microseconds": event.micros},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_loses_its_number_and_the_answer_has_it() {
        let (plain, id) = command(br#"{"execute":"query-status","id":7}"#).unwrap();
        assert_eq!(plain, json!({"execute": "query-status"}));
        let answer = with_id(json!({"return": {}, "id": "libvirt-12"}), id);
        assert_eq!(answer, json!({"return": {}, "id": 7}));
        assert!(command(b"").is_none() && command(b"[1]").is_none());
    }

    #[test]
    fn a_flood_of_events_keeps_the_newest_of_each_kind_in_order() {
        let (events, news) = newest();
        let event = |name: &str, seconds| Event {
            name: name.into(),
            seconds,
            micros: 0,
            details: None,
        };
        for seconds in 0..100_000 {
            events.keep(&event("MIGRATION_PASS", seconds));
        }
        events.keep(&event("STOP", 100_000));
        events.keep(&event("MIGRATION_PASS", 100_001));
        drop(events);
        let mut told = Vec::new();
        news.tell(|event| {
            told.push((event.name.clone(), event.seconds));
            Ok(())
        });
        let expected = [("STOP", 100_000), ("MIGRATION_PASS", 100_001)];
        assert_eq!(told, expected.map(|(name, at)| (name.to_owned(), at)));
    }

    #[test]
    fn an_event_is_told_as_qemu_tells_it() {
        let told = |name: &str, details: Option<&str>| {
            as_qemu_says(&Event {
                name: name.into(),
                seconds: 5,
                micros: 6,
                details: details.map(str::to_owned),
            })
        };
        let stop = told("STOP", None);
        assert_eq!(stop["event"], "STOP");
        assert_eq!(stop["timestamp"], json!({"seconds": 5, "microseconds": 6}));
        let migration = told("MIGRATION", Some(r#"{"status":"active"}"#));
        assert_eq!(migration["data"]["status"], "active");
    }
}

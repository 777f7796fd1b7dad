//! QMP's messages: one JSON object a line.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::Error;

/// The longest line that is taken, in bytes; the longest that QEMU writes is a list of devices.
const LINE_MAX: usize = 16 << 20;

/// An asynchronous message.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// For example `STOP`.
    pub name: String,
    /// Its data; an empty object if it has none.
    pub data: Value,
    /// When QEMU emitted it: since the epoch, on the host's clock.
    pub timestamp: Duration,
}

/// One message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// The greeting, with the version.
    Greeting(Value),
    /// A command's result.
    Return {
        /// The command's number.
        id: Option<u64>,
        /// The result.
        value: Value,
    },
    /// A command's refusal.
    Refusal {
        /// The command's number.
        id: Option<u64>,
        /// QEMU's words.
        desc: String,
    },
    /// An event.
    Event(Event),
}

/// Turns bytes into messages and commands into bytes.
#[derive(Debug, Default)]
pub struct Codec {
    pending: Vec<u8>,
    /// Bytes of `pending` that hold no line end.
    searched: usize,
}

impl Codec {
    /// A codec at the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next complete message.
    pub fn next_message(&mut self) -> Result<Option<Message>, Error> {
        loop {
            let end = self.pending[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            let Some(end) = end.map(|end| end + self.searched) else {
                self.searched = self.pending.len();
                if self.searched > LINE_MAX {
                    return Err(Error::NotQmp("a line without end".into()));
                }
                return Ok(None);
            };
            self.searched = 0;
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = line.trim_ascii();
            if !line.is_empty() {
                return parse(line).map(Some);
            }
        }
    }

    /// A command as bytes.
    pub fn command(name: &str, arguments: &Value, id: u64) -> Vec<u8> {
        let mut command = json!({ "execute": name, "id": id });
        if arguments.as_object().is_some_and(|map| !map.is_empty()) {
            command["arguments"] = arguments.clone();
        }
        let mut line = command.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

fn parse(line: &[u8]) -> Result<Message, Error> {
    let foreign = || {
        let shown: String = String::from_utf8_lossy(line).chars().take(80).collect();
        Error::NotQmp(format!("received `{}`", shown.escape_debug()))
    };
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|_| foreign())?;
    let id = object.get("id").and_then(Value::as_u64);
    if let Some(greeting) = object.remove("QMP") {
        return Ok(Message::Greeting(greeting));
    }
    if let Some(value) = object.remove("return") {
        return Ok(Message::Return { id, value });
    }
    if let Some(error) = object.get("error") {
        let desc = error["desc"].as_str().unwrap_or("without saying why");
        return Ok(Message::Refusal {
            id,
            desc: desc.to_owned(),
        });
    }
    if let Some(name) = object.get("event").and_then(Value::as_str) {
        let stamp = object.get("timestamp").unwrap_or(&Value::Null);
        let part = |name: &str| stamp[name].as_u64().unwrap_or(0);
        return Ok(Message::Event(Event {
            name: name.to_owned(),
            timestamp: Duration::from_secs(part("seconds"))
                .saturating_add(Duration::from_micros(part("microseconds"))),
            data: object.get("data").cloned().unwrap_or_else(|| json!({})),
        }));
    }
    Err(foreign())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SESSION: &str = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": ["oob"]}}"#,
        "\r\n",
        r#"{"timestamp": {"seconds": 5, "microseconds": 7}, "event": "STOP"}"#,
        "\r\n\r\n",
        r#"{"return": {"status": "running", "unknown-field": [1]}, "id": 3}"#,
        "\r\n",
        r#"{"id": 4, "error": {"class": "GenericError", "desc": "no"}}"#,
        "\r\n",
        r#"{"return": {}}"#,
        "\n",
    );

    fn messages(pieces: &[&[u8]]) -> Vec<Message> {
        let mut codec = Codec::new();
        let mut messages = Vec::new();
        for piece in pieces {
            codec.push(piece);
            while let Some(message) = codec.next_message().unwrap() {
                messages.push(message);
            }
        }
        messages
    }

    #[test]
    fn every_kind_of_message() {
        let all = messages(&[SESSION.as_bytes()]);
        assert!(matches!(&all[0], Message::Greeting(v) if v["version"]["qemu"]["major"] == 10));
        assert_eq!(
            all[1],
            Message::Event(Event {
                name: "STOP".into(),
                data: json!({}),
                timestamp: Duration::new(5, 7000)
            })
        );
        assert!(
            matches!(&all[2], Message::Return { id: Some(3), value } if value["status"] == "running")
        );
        assert_eq!(
            all[3],
            Message::Refusal {
                id: Some(4),
                desc: "no".into()
            }
        );
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn commands() {
        assert_eq!(
            Codec::command("stop", &json!({}), 1),
            b"{\"execute\":\"stop\",\"id\":1}\n"
        );
        let with = Codec::command("migrate", &json!({"uri": "fd:x"}), 2);
        let back: Value = serde_json::from_slice(&with).unwrap();
        assert_eq!(back["arguments"]["uri"], "fd:x");
    }

    #[test]
    fn an_event_needs_no_more_than_its_name() {
        let seen = messages(&[b"{\"event\": \"X\"}\n"]);
        assert!(matches!(&seen[..], [Message::Event(event)] if event.name == "X"));
    }

    #[test]
    fn what_is_not_qmp_is_shown() {
        let mut codec = Codec::new();
        codec.push(b"HTTP/1.1 400 Bad Request\r\n");
        let error = codec.next_message().unwrap_err().to_string();
        assert!(error.contains("HTTP/1.1 400"), "{error}");
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_messages(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10)) {
            let bytes = SESSION.as_bytes();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            let pieces: Vec<_> = cuts.iter().map(|to| { let piece = &bytes[from..*to]; from = *to; piece }).collect();
            prop_assert_eq!(messages(&pieces), messages(&[bytes]));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut codec = Codec::new();
            codec.push(&bytes);
            while let Ok(Some(_)) = codec.next_message() {}
        }
    }
}

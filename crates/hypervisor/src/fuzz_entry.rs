//! What the fuzz target and the property tests run: QEMU's monitor may say anything.

use crate::{Codec, Message, MigrationInfo, MigrationStatus};

/// Takes `data` whole and byte by byte: both must come to the same, and nothing may panic.
pub fn monitor(data: &[u8]) {
    let whole = run(data, data.len().max(1));
    for step in [1, 61] {
        assert_eq!(whole, run(data, step));
    }
}

fn run(data: &[u8], step: usize) -> Vec<String> {
    let mut codec = Codec::new();
    let mut told = Vec::new();
    for part in data.chunks(step) {
        codec.push(part);
        loop {
            match codec.next_message() {
                Ok(Some(message)) => {
                    look_at(&message);
                    told.push(format!("{message:?}"));
                }
                Ok(None) => break,
                Err(error) => {
                    told.push(error.to_string());
                    return told;
                }
            }
        }
    }
    told
}

/// What is made of it.
fn look_at(message: &Message) {
    match message {
        Message::Return { value, .. } => {
            let _ = MigrationInfo::from_value(value);
        }
        Message::Event(event) => {
            let _ = MigrationStatus::of_event(event);
        }
        Message::Greeting(_) | Message::Refusal { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_monitor_does_no_harm() {
        for text in [
            &b"{\"QMP\": {}}\r\n{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 18446744073709551615, \"microseconds\": 18446744073709551615}}\n"[..],
            b"{\"return\": {\"status\": 7, \"ram\": []}, \"id\": -1}\n[]\n",
            b"\n\n \r\n\xff\n",
        ] {
            super::monitor(text);
        }
    }
}

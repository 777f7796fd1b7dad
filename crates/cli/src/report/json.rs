//! One JSON event a line on standard output.

use std::io::Write;
use std::time::Instant;

use serde::Serialize;

use super::{Event, Report};

/// Writes each event as one line, with the milliseconds since the start as `t_ms`.
#[derive(Debug)]
pub(crate) struct Json {
    started: Instant,
}

#[derive(Serialize)]
struct Line<'a> {
    t_ms: u64,
    #[serde(flatten)]
    event: &'a Event,
}

impl Json {
    pub(crate) fn new(started: Instant) -> Self {
        Json { started }
    }
}

impl Report for Json {
    fn tell(&mut self, event: &Event) {
        let line = Line {
            t_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            event,
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            // Nobody reading is no reason to end a migration.
            let _ = std::io::stdout().lock().write_all(&text);
        }
    }
}

//! Spans and events for `tracing`, by fixed names.
//!
//! ```text
//! migration{session, peer}      from the connection to the end
//!   phase{name}                 what is being done
//!   stopped                     from the stop for the switchover to the end
//!   pause{pid, name}            a process that stands
//! ```

use std::collections::HashMap;

use tracing::{Span, info, info_span, warn};
use tracing_subscriber::fmt::format::FmtSpan;

use super::{Detail, Event, Report};

/// Whether spans and events are wanted: then they go to standard error.
const VARIABLE: &str = "UNMOOR_TRACE";

/// Sets up where spans and events go, if they are wanted.
pub(super) fn begin() -> bool {
    let wanted = std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty());
    // Set up already, it goes where it goes.
    let _ = wanted.then(|| {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
            .try_init()
    });
    wanted
}

/// Passes everything on, and traces it.
pub(crate) struct Traced {
    inner: Box<dyn Report>,
    migration: Span,
    phase: Span,
    stopped: Span,
    pauses: HashMap<u32, Span>,
}

impl Traced {
    pub(crate) fn new(inner: Box<dyn Report>) -> Self {
        Traced {
            inner,
            migration: Span::none(),
            phase: Span::none(),
            stopped: Span::none(),
            pauses: HashMap::new(),
        }
    }

    fn trace(&mut self, event: &Event) {
        match event {
            Event::Connected { peer, session, .. } => {
                self.migration = info_span!("migration", session, peer);
            }
            Event::Phase { phase } => {
                self.phase = info_span!(parent: &self.migration, "phase", name = phase);
            }
            Event::Stopped => self.stopped = info_span!(parent: &self.migration, "stopped"),
            Event::Frozen { processes } => {
                for one in processes {
                    let (pid, name) = (one.pid, &*one.name);
                    let span = info_span!(parent: &self.migration, "pause", pid, name);
                    self.pauses.insert(pid, span);
                }
            }
            Event::Thawed { processes, .. } => {
                for one in processes {
                    self.pauses.remove(&one.pid);
                }
            }
            Event::Pass { pass } => info!(parent: &self.migration, pass, "pass"),
            Event::Audited(audited) => {
                let (pages, differing) = (audited.pages, audited.differing);
                info!(parent: &self.migration, pages, differing, ms = audited.ms, "audited");
            }
            Event::Ready => info!(parent: &self.migration, "ready"),
            Event::Committed => info!(parent: &self.migration, "committed"),
            Event::Runs { follows_bytes } => {
                info!(parent: &self.migration, follows_bytes, "runs");
            }
            Event::Arrived(following) => {
                let (faults, p99_ms) = (following.faults, following.fault_p99_ms);
                info!(parent: &self.migration, faults, p99_ms, "arrived");
            }
            Event::Stalled => warn!(parent: &self.migration, "stalled"),
            Event::Note { text } => info!(parent: &self.migration, text, "note"),
            Event::LostProbes { probes } => {
                for lost in probes {
                    let text = lost.sentence();
                    warn!(parent: &self.migration, text, "a probe does not work");
                }
            }
            Event::Resumed {
                after_ms,
                bytes_again,
                ..
            } => info!(parent: &self.migration, after_ms, bytes_again, "resumed"),
            Event::Summary(summary) => {
                info!(
                    parent: &self.migration,
                    total_ms = summary.total_ms,
                    downtime_ms = summary.downtime_ms,
                    wire_bytes = summary.wire_bytes,
                    "moved"
                );
                self.end();
            }
            Event::Received { running, pages, .. } => {
                info!(parent: &self.migration, running, pages, "received");
                self.end();
            }
            Event::Failed { exit, error, .. } => {
                warn!(parent: &self.migration, exit, error, "failed");
                self.end();
            }
            Event::Listening { address } => info!(address, "listening"),
            Event::Progress(_)
            | Event::Classified { .. }
            | Event::Writing { .. }
            | Event::Freezing { .. }
            | Event::Live { .. }
            | Event::FreePages { .. }
            | Event::ReportWritten { .. } => {}
        }
    }

    /// Closes all spans, the inner ones first.
    fn end(&mut self) {
        self.pauses.clear();
        self.stopped = Span::none();
        self.phase = Span::none();
        self.migration = Span::none();
    }
}

impl Report for Traced {
    fn tell(&mut self, event: &Event) {
        self.trace(event);
        self.inner.tell(event);
    }

    fn detail(&mut self, detail: &Detail<'_>) {
        self.inner.detail(detail);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Nowhere;

    impl Report for Nowhere {
        fn tell(&mut self, _event: &Event) {}
    }

    #[test]
    fn spans_open_and_close_by_their_names() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let mut traced = Traced::new(Box::new(Nowhere));
            for event in [
                Event::Connected {
                    peer: "b:1".into(),
                    session: "5e55".into(),
                    path: String::new(),
                },
                Event::Phase {
                    phase: "sending memory",
                },
                Event::Phase {
                    phase: "sending device state",
                },
                Event::Stopped,
                Event::Failed {
                    exit: 4,
                    error: "cancelled".into(),
                    vm: String::new(),
                },
            ] {
                traced.tell(&event);
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let expected = [
            ("migration{session=\"5e55\" peer=\"b:1\"}", "new"),
            ("phase{name=\"sending memory\"}", "new"),
            ("phase{name=\"sending device state\"}", "new"),
            ("phase{name=\"sending memory\"}", "close"),
            ("stopped", "new"),
            ("migration{", "failed"),
            ("stopped", "close"),
            ("phase{name=\"sending device state\"}", "close"),
            ("migration{", "close"),
        ];
        assert_eq!(lines.len(), expected.len(), "{text}");
        for (line, (span, what)) in lines.iter().zip(expected) {
            assert!(
                line.contains(span) && line.contains(what),
                "{line}: {span} {what}"
            );
        }
    }
}

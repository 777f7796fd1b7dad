//! Metrics of a running migration, for Prometheus.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{Detail, Event, Progress, Report};

/// Longest wait for a question, and for somebody to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest question.
const QUESTION_MAX: usize = 8 << 10;
/// What Prometheus expects.
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Passes everything on, and keeps figures that can be fetched.
pub(crate) struct Metrics {
    inner: Box<dyn Report>,
    figures: Figures,
}

type Figure = Gauge<u64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fate {
    fate: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

#[derive(Debug, Default)]
struct Figures {
    wire: Figure,
    pages: Family<Fate, Figure>,
    held: Figure,
    remaining: Figure,
    pass: Figure,
    rate: Figure,
    link: Figure,
    dirty: Figure,
    paused: Figure,
    stopped: Figure,
    reconnects: Figure,
    lost_probes: Figure,
    phase: Family<Phase, Figure>,
}

impl Figures {
    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("unmoor");
        let bytes = [
            ("wire", "Sent on the link", &self.wire),
            ("held", "Guest memory that is held back", &self.held),
            (
                "remaining",
                "Guest memory that QEMU has yet to send in this pass",
                &self.remaining,
            ),
        ];
        for (name, help, figure) in bytes {
            registry.register_with_unit(name, help, Unit::Bytes, figure.clone());
        }
        let rates = [
            ("rate", "Sent on the link a second, smoothed", &self.rate),
            ("link_rate", "What the link carries a second", &self.link),
            (
                "dirty_rate",
                "Guest memory written a second, by QEMU's count",
                &self.dirty,
            ),
        ];
        for (name, help, figure) in rates {
            let unit = Unit::Other("bytes_per_second".to_owned());
            registry.register_with_unit(name, help, unit, figure.clone());
        }
        let counts = [
            ("pass", "QEMU's pass over its dirty pages", &self.pass),
            ("paused_processes", "Processes that stand", &self.paused),
            (
                "vm_stopped",
                "1 from the stop for the switchover on",
                &self.stopped,
            ),
            (
                "reconnects",
                "Connections that were lost and came back",
                &self.reconnects,
            ),
            (
                "lost_probes",
                "Probes of the guest that do not work: what they would see is taken for a dependency",
                &self.lost_probes,
            ),
        ];
        for (name, help, figure) in counts {
            registry.register(name, help, figure.clone());
        }
        registry.register(
            "pages",
            "Guest pages by what became of them",
            self.pages.clone(),
        );
        registry.register("phase", "1 for what is being done", self.phase.clone());
    }

    fn progress(&self, progress: &Progress) {
        self.wire.set(progress.wire_bytes);
        self.held.set(progress.held_bytes);
        self.remaining.set(progress.remaining_bytes.unwrap_or(0));
        self.pass.set(progress.pass);
        self.rate.set(progress.rate);
        for (fate, pages) in [
            ("sent", progress.counts.pages_sent),
            ("zero", progress.counts.pages_zero),
            ("dropped", progress.counts.pages_dropped),
            ("free", progress.counts.pages_free),
            ("paused", progress.counts.pages_paused),
            ("cooled", progress.counts.pages_cooled),
            ("flushed", progress.counts.pages_flushed),
            ("followed", progress.counts.pages_followed),
            ("asked", progress.counts.pages_asked),
        ] {
            self.pages.get_or_create(&Fate { fate }).set(pages);
        }
    }

    fn event(&self, event: &Event) {
        match event {
            Event::Progress(progress) => self.progress(progress),
            Event::Phase { phase } => {
                self.phase.clear();
                self.phase.get_or_create(&Phase { phase }).set(1);
            }
            Event::Resumed { .. } => {
                self.reconnects.inc();
            }
            Event::Frozen { processes } => {
                self.paused.inc_by(processes.len() as u64);
            }
            Event::Thawed { processes, .. } => {
                let left = self.paused.get().saturating_sub(processes.len() as u64);
                self.paused.set(left);
            }
            Event::LostProbes { probes } => {
                self.lost_probes.set(probes.len() as u64);
            }
            Event::Stopped => {
                self.stopped.set(1);
            }
            _ => {}
        }
    }
}

impl Metrics {
    /// Opens the address. If that fails the reason is told, and `inner` given back.
    pub(crate) fn begin(
        address: SocketAddr,
        inner: Box<dyn Report>,
    ) -> Result<Self, (String, Box<dyn Report>)> {
        let figures = Figures::default();
        let mut registry = Registry::default();
        figures.register(&mut registry);
        match serve_metrics(address, registry) {
            Ok(()) => Ok(Metrics { inner, figures }),
            Err(error) => Err((format!("--metrics {address}: {error}"), inner)),
        }
    }
}

impl Report for Metrics {
    fn tell(&mut self, event: &Event) {
        self.figures.event(event);
        self.inner.tell(event);
    }

    fn detail(&mut self, detail: &Detail<'_>) {
        if let Detail::Sample(sample) = detail {
            self.figures.wire.set(sample.wire_bytes);
            self.figures.held.set(sample.held_bytes);
            self.figures.link.set(sample.link_bytes_per_s.unwrap_or(0));
            self.figures
                .dirty
                .set(sample.dirty_bytes_per_s.unwrap_or(0));
        }
        self.inner.detail(detail);
    }
}

/// Answers whoever asks, one after the other, until the process ends.
pub(crate) fn serve_metrics(address: SocketAddr, registry: Registry) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let registry = Arc::new(registry);
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever goes away in between has no answer.
                let _ = answer(stream, &registry);
            }
        })?;
    Ok(())
}

fn answer(mut stream: TcpStream, registry: &Registry) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let question = question(&mut stream)?;
    let mut words = question.split_ascii_whitespace();
    let (status, content, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => {
            let mut body = String::new();
            text::encode(&mut body, registry).map_err(io::Error::other)?;
            ("200 OK", TYPE, body)
        }
        (Some("GET"), _) => ("404 Not Found", "text/plain", "see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}

/// The head of a request.
fn question(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 1024];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        if count == 0 || bytes.len() > QUESTION_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl Report for Nowhere {
        fn tell(&mut self, _event: &Event) {}
    }

    fn ask(address: SocketAddr, question: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn figures_are_there_to_be_fetched() {
        // A port that is free now; somebody else may be faster.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        let taken = Metrics::begin(address, Box::new(Nowhere));
        assert!(
            taken
                .err()
                .is_some_and(|(why, _)| why.contains("--metrics"))
        );
        drop(free);
        let mut metrics = Metrics::begin(address, Box::new(Nowhere))
            .map_err(|e| e.0)
            .unwrap();
        metrics.tell(&Event::Phase {
            phase: "sending memory",
        });
        metrics.tell(&Event::Stopped);
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        for line in [
            "unmoor_phase{phase=\"sending memory\"} 1",
            "unmoor_vm_stopped 1",
            "unmoor_wire_bytes 0",
            "# EOF",
        ] {
            assert!(answer.contains(line), "{answer}");
        }
        assert!(ask(address, "GET / HTTP/1.1\r\n\r\n").contains("404"));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").contains("405"));
    }
}

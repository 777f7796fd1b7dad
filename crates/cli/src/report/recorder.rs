//! Keeps what happens, for the record and the report that are written at the end.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use super::file::Files;
use super::human::{audit_in_words, faults_in_words, names};
use super::record::{Mark, MarkKind, Outcome, Pause, Record, Spared, Wanted, processes};
use super::samples::Samples;
use super::{Detail, Event, Named, Paused, Report, Summary, bytes, duration_ms, html, kept};
use crate::exit::Exit;

/// Marks that are kept: a migration that never converges tells the same again and again.
const MARKS_MAX: usize = 1000;

/// Passes everything on, and writes what it has kept when the migration has ended.
pub(crate) struct Recorder {
    inner: Box<dyn Report>,
    /// The report that the user wants.
    files: Option<Files>,
    /// Where records of all migrations are kept.
    folder: Option<PathBuf>,
    started: Instant,
    record: Record,
    samples: Samples,
}

impl Recorder {
    /// Opens the report's files, if there is to be one. If that fails the reason is told, and
    /// `inner` given back.
    pub(crate) fn begin(
        path: Option<&Path>,
        folder: Option<PathBuf>,
        wanted: Wanted,
        inner: Box<dyn Report>,
    ) -> Result<Self, (String, Box<dyn Report>)> {
        let files = match path.map(Files::open).transpose() {
            Ok(files) => files,
            Err(why) => return Err((why, inner)),
        };
        Ok(Recorder {
            inner,
            files,
            folder,
            started: Instant::now(),
            record: Record {
                version: 1,
                software: crate::SOFTWARE.to_owned(),
                began: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                wanted,
                ..Record::default()
            },
            samples: Samples::default(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn keep(&mut self, event: &Event) {
        let now = self.now();
        let record = &mut self.record;
        match event {
            Event::Connected { peer, session, .. } => {
                record.peer = Some(peer.clone());
                record.session = Some(session.clone());
            }
            Event::Note { text } => self.mark(now, MarkKind::Note, text.clone()),
            Event::LostProbes { probes } => {
                for lost in probes {
                    self.mark(now, MarkKind::Note, lost.sentence());
                }
                self.record.lost_probes.clone_from(probes);
            }
            Event::Resumed { after_ms, .. } => {
                let after = duration_ms(*after_ms);
                self.mark(
                    now,
                    MarkKind::Note,
                    format!("connected again after {after}"),
                );
            }
            Event::Phase { .. } => {
                record.migration_from_ms.get_or_insert(now);
            }
            Event::Classified {
                processes,
                independent,
                window_ms,
            } => {
                record.window_ms = Some(*window_ms);
                let text = format!("{independent} of {processes} processes may be paused");
                self.mark(now, MarkKind::Classified, text);
            }
            Event::Writing { processes } => record.writers.clone_from(processes),
            Event::Freezing {
                processes,
                expected_pause_ms,
            } => {
                let pauses = processes.iter().map(|process| Pause {
                    process: process.clone(),
                    from_ms: now,
                    stood_ms: None,
                    until_ms: None,
                    expected_ms: *expected_pause_ms,
                    ended: None,
                });
                record.pauses.extend(pauses);
                let text = format!(
                    "{} to be paused, for about {}",
                    names(processes),
                    duration_ms(*expected_pause_ms)
                );
                self.mark(now, MarkKind::Freeze, text);
            }
            Event::Frozen { processes } => {
                for pause in open(&mut record.pauses, processes) {
                    pause.stood_ms = Some(now);
                }
            }
            Event::Thawed { processes, why } => {
                self.thawed(processes, now, why);
                let text = format!("{} runs again: {why}", names(processes));
                self.mark(now, MarkKind::Thaw, text);
            }
            Event::Live { processes, why } => {
                self.thawed(processes, now, why);
                let spared = processes.iter().map(|process| Spared {
                    process: process.clone(),
                    why: why.clone(),
                });
                self.record.moved_live.extend(spared);
                let text = format!("{} moved live: {why}", names(processes));
                self.mark(now, MarkKind::Live, text);
            }
            Event::FreePages { pages } => {
                let free = bytes(pages.saturating_mul(4096));
                let text = format!("{free} of free memory need not travel");
                self.mark(now, MarkKind::FreePages, text);
            }
            Event::Stalled => {
                let text = "the VM writes as fast as its memory travels".to_owned();
                self.mark(now, MarkKind::Stalled, text);
            }
            Event::Stopped => {
                record.stopped_at_ms = Some(now);
                self.mark(now, MarkKind::Stopped, "the VM stops".to_owned());
            }
            Event::Audited(audited) => {
                self.mark(now, MarkKind::Audited, audit_in_words(audited));
            }
            Event::Ready => {
                let text = "all loaded, memory proven equal".to_owned();
                self.mark(now, MarkKind::Ready, text);
            }
            Event::Committed => self.mark(now, MarkKind::Committed, "commit".to_owned()),
            Event::Runs { follows_bytes } => {
                let follows = bytes(*follows_bytes);
                let text =
                    format!("the VM runs at the destination; {follows} of its memory follow");
                self.mark(now, MarkKind::Running, text);
            }
            Event::Arrived(following) => {
                let text = format!("all memory has arrived: {}", faults_in_words(following));
                self.mark(now, MarkKind::Arrived, text);
            }
            Event::Summary(summary) => self.moved(summary, now),
            Event::Failed { exit, error, vm } => {
                self.mark(now, MarkKind::Failed, error.clone());
                // Where the VM is not known to be here, nor is what stands in it.
                let here = *exit != Exit::InDoubt as u8 && *exit != Exit::NeedsHelp as u8;
                for pause in &mut self.record.pauses {
                    if here && pause.until_ms.is_none() {
                        pause.until_ms = Some(now);
                        pause.ended = Some("the migration was given up".to_owned());
                    }
                }
                self.record.outcome = Some(Outcome::NotMoved {
                    exit: *exit,
                    error: error.clone(),
                    vm: vm.clone(),
                });
            }
            Event::Listening { .. }
            | Event::Pass { .. }
            | Event::Progress(_)
            | Event::Received { .. }
            | Event::ReportWritten { .. } => {}
        }
    }

    fn mark(&mut self, t_ms: u64, kind: MarkKind, text: String) {
        if self.record.marks.len() < MARKS_MAX {
            self.record.marks.push(Mark { t_ms, kind, text });
        } else {
            self.record.marks_left_out += 1;
        }
    }

    fn thawed(&mut self, who: &[Named], now: u64, why: &str) {
        for pause in open(&mut self.record.pauses, who) {
            pause.until_ms = Some(now);
            pause.ended = Some(why.to_owned());
        }
    }

    fn moved(&mut self, summary: &Summary, now: u64) {
        let told = self
            .record
            .marks
            .iter()
            .any(|mark| mark.kind == MarkKind::Running);
        if summary.running_at_destination && !told {
            let runs = match (self.record.stopped_at_ms, summary.downtime_ms) {
                (Some(stopped), Some(downtime)) => stopped + whole(downtime),
                _ => now,
            };
            let text = "the VM runs at the destination".to_owned();
            self.mark(runs, MarkKind::Running, text);
        }
        for Paused { process, pause_ms } in &summary.frozen {
            for pause in open(&mut self.record.pauses, std::slice::from_ref(process)) {
                pause.until_ms = pause_ms.map(|ms| pause.from_ms + whole(ms));
                pause.ended = Some(match pause_ms {
                    Some(_) => "it runs at the destination".to_owned(),
                    None => "the destination did not say; the guest thaws it by itself when nobody asks it to wait any longer, within seconds".to_owned(),
                });
            }
        }
        self.record.outcome = Some(Outcome::Moved(Box::new(summary.clone())));
    }

    /// Writes record and report: after everything, so that whatever becomes of them changes nothing.
    fn write(&mut self) {
        self.record.ended_at_ms = self.now();
        self.record.samples = self.samples.take();
        match serde_json::to_vec_pretty(&self.record) {
            Ok(data) => {
                self.keep_record(&data);
                self.write_report(&data);
            }
            Err(error) => self.inner.tell(&Event::Note {
                text: format!("there is no record of this migration: {error}"),
            }),
        }
    }

    fn keep_record(&mut self, data: &[u8]) {
        let Some(folder) = &self.folder else {
            return;
        };
        let session = self.record.session.as_deref().unwrap_or("none");
        let session = session.get(..8).unwrap_or(session);
        let name = format!("{}-{session}", self.record.began.replace(':', ""));
        if let Err(error) = kept::keep(folder, &name, data) {
            let folder = folder.display();
            self.inner.tell(&Event::Note {
                text: format!(
                    "the record of this migration could not be kept in {folder}: {error}"
                ),
            });
        }
    }

    fn write_report(&mut self, data: &[u8]) {
        let Some(files) = &self.files else {
            return;
        };
        let page = html::page(&self.record);
        let written = files.write(&page, data);
        let (html, json) = (&files.html, &files.json);
        self.inner.tell(&match written {
            Ok(()) => Event::ReportWritten {
                html: html.display().to_string(),
                json: json.display().to_string(),
            },
            Err(error) => Event::Note {
                text: format!(
                    "the report {} could not be written: {error}",
                    html.display()
                ),
            },
        });
    }
}

impl Report for Recorder {
    fn tell(&mut self, event: &Event) {
        self.keep(event);
        self.inner.tell(event);
        if matches!(event, Event::Summary(_) | Event::Failed { .. }) {
            self.write();
        }
    }

    fn detail(&mut self, detail: &Detail<'_>) {
        match detail {
            Detail::Vm(facts) => self.record.vm = Some((*facts).clone()),
            Detail::Destination(facts) => self.record.destination = Some((*facts).clone()),
            Detail::Forecast(forecast) => self.record.forecast = Some(forecast.clone()),
            Detail::Processes(records) => {
                let (processes, left_out) = processes(records);
                self.record.processes = processes;
                self.record.processes_left_out = left_out;
            }
            Detail::Sample(sample) => {
                let t_ms = self.now();
                self.samples.push(super::Sample { t_ms, ..*sample });
            }
        }
    }
}

/// Pauses of these processes that have not ended.
fn open<'a>(pauses: &'a mut [Pause], who: &'a [Named]) -> impl Iterator<Item = &'a mut Pause> {
    pauses
        .iter_mut()
        .filter(|pause| pause.ended.is_none() && who.iter().any(|one| one.pid == pause.process.pid))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "milliseconds of a migration"
)]
fn whole(ms: f64) -> u64 {
    ms.round() as u64
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use serde_json::Value;

    use super::*;
    use crate::report::Forecast;

    /// Keeps what is passed on.
    struct Inner(Rc<RefCell<Vec<Value>>>);

    impl Report for Inner {
        fn tell(&mut self, event: &Event) {
            let event = serde_json::to_value(event).unwrap_or_default();
            self.0.borrow_mut().push(event);
        }
    }

    fn who() -> Vec<Named> {
        vec![Named {
            pid: 7,
            name: "job".to_owned(),
        }]
    }

    /// Tells these events; yields what was passed on, and the report as data.
    fn told(events: &[Event]) -> (Vec<Value>, Value) {
        let folder = tempfile::tempdir().unwrap();
        let passed = Rc::default();
        let inner = Box::new(Inner(Rc::clone(&passed)));
        let path = folder.path().join("a.html");
        let kept = folder.path().join("kept");
        let mut recorder =
            Recorder::begin(Some(&path), Some(kept.clone()), Wanted::default(), inner)
                .map_err(|(why, _)| why)
                .unwrap();
        recorder.detail(&Detail::Forecast(Forecast {
            total_ms: 1000.0,
            wire_bytes: 1,
            downtime_ms: 10.0,
            pauses: Vec::new(),
        }));
        for event in events {
            recorder.tell(event);
        }
        let data = std::fs::read(folder.path().join("a.json")).unwrap();
        let page = std::fs::read_to_string(&path).unwrap();
        let record = kept::names(&kept).unwrap();
        assert_eq!(std::fs::read(&record[0]).unwrap(), data);
        assert!(page.ends_with("</html>\n"), "{page}");
        (passed.take(), serde_json::from_slice(&data).unwrap())
    }

    #[test]
    fn a_pause_ends_with_the_thaw_or_with_the_migration() {
        let freezing = Event::Freezing {
            processes: who(),
            expected_pause_ms: 700.0,
        };
        let thawed = Event::Thawed {
            processes: who(),
            why: "somebody turned to them".to_owned(),
        };
        let failed = |exit: Exit| Event::Failed {
            exit: exit as u8,
            error: "cut".to_owned(),
            vm: "it runs on".to_owned(),
        };
        let frozen = Event::Frozen { processes: who() };
        let (passed, data) = told(&[freezing.clone(), frozen, thawed, failed(Exit::Failed)]);
        assert_eq!(passed.len(), 5);
        assert_eq!(passed[4]["event"], "report_written");
        assert_eq!(data["pauses"][0]["ended"], "somebody turned to them");
        assert_eq!(data["pauses"][0]["name"], "job");
        assert!(data["pauses"][0]["stood_ms"].is_u64());
        assert_eq!(data["outcome"]["result"], "not_moved");
        assert_eq!(data["forecast"]["total_ms"], 1000.0);

        let (_, data) = told(&[freezing.clone(), failed(Exit::Cancelled)]);
        assert_eq!(data["pauses"][0]["ended"], "the migration was given up");
        let (_, data) = told(&[freezing, failed(Exit::InDoubt)]);
        assert!(data["pauses"][0]["until_ms"].is_null());
    }

    #[test]
    fn what_is_told_without_end_is_counted_only() {
        let mut events = vec![Event::Stalled; MARKS_MAX + 20];
        events.push(Event::Failed {
            exit: 4,
            error: String::new(),
            vm: String::new(),
        });
        let (_, data) = told(&events);
        assert_eq!(data["marks"].as_array().map(Vec::len), Some(MARKS_MAX));
        assert_eq!(data["marks_left_out"], 21);
    }
}

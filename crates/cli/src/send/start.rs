//! The destination takes part: QEMU is prepared, and begins to write.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hypervisor::{RunState, Saved, VmFacts, Wanted, compare};
use pack::History;
use wire::Accept;

use super::session::Session;
use super::stream::QemuStream;
use super::{Failure, failed, tell_findings};
use crate::args::{CompressArg, StallArg};
use crate::guardian::{Guardian, Watch};
use crate::net::{Protection, host_of};
use crate::report::Detail;

/// Most threads that compress.
const THREADS_MAX: usize = 16;
/// Bytes of a guest page: pages of other sizes are not told by others.
const PAGE: usize = 4096;
/// The name under which QEMU knows its end of the stream.
const STREAM_FD: &str = "unmoor-migration";

impl Session<'_> {
    /// The destination takes part: prepares QEMU, with a guardian watching, and lets it write.
    pub(super) fn start_qemu(&mut self, accept: &Accept) -> Result<(), Failure> {
        if !self.engine.can_resume() {
            self.channel.keep_no_copies();
        }
        if self.engine.can_pack() {
            self.pack()?;
        }
        if self.let_owner_begin(accept)? {
            return Ok(());
        }
        let theirs: VmFacts = serde_json::from_str(&accept.vm_facts).map_err(|error| {
            Failure::Failed(format!(
                "the destination describes its VM unreadably: {error}"
            ))
        })?;
        tell_findings(&compare(&self.facts, &theirs), self.report)?;
        self.allow_following(&theirs)?;
        self.report.detail(&Detail::Destination(&theirs));
        self.destination_qemu = theirs.qemu_version.to_string();
        self.was_running = self.vm.status().map_err(|e| failed(&e))? == RunState::Running;

        let wanted = Wanted {
            downtime_limit: self.steering.pilot.first_downtime_limit(),
            may_throttle: self.args.how.on_stall == StallArg::AutoConverge,
        };
        let plan = Saved::plan_source(&mut self.vm, &wanted).map_err(|e| failed(&e))?;
        let named = self.args.how.tls_hostname.as_deref();
        let host = named.unwrap_or(host_of(&self.args.to));
        let mut guardian = Guardian::start().map_err(|error| {
            Failure::Failed(format!("cannot start the guardian process: {error}"))
        })?;
        let watch = Watch {
            session: self.session,
            qmp: std::path::absolute(&self.args.qmp).unwrap_or(self.args.qmp.clone()),
            peer: self.channel.peer(),
            protection: Protection::from_args(&self.args.how.net),
            host: host.to_owned(),
            from: self.args.how.bind,
            was_running: self.was_running,
            saved: plan.clone(),
        };
        self.watch = Some(watch.clone());
        guardian
            .guard(watch)
            .map_err(|error| Failure::Failed(format!("the guardian does not answer: {error}")))?;
        self.guardian = Some(guardian);
        self.saved = Some(plan.clone());
        plan.apply(&mut self.vm).map_err(|e| failed(&e))?;

        let (ours, qemus) = UnixStream::pair().map_err(|e| failed(&e))?;
        ours.set_nonblocking(true).map_err(|e| failed(&e))?;
        self.vm
            .send_fd(STREAM_FD, OwnedFd::from(qemus).as_fd())
            .map_err(|e| failed(&e))?;
        self.qemu = Some(QemuStream::new(ours));
        self.times.migrate = Some(Instant::now());
        self.vm
            .migrate(&format!("fd:{STREAM_FD}"))
            .map_err(|e| failed(&e))?;
        self.tell_phase();
        Ok(())
    }

    /// From here on batches of pages are compressed, if that pays.
    fn pack(&mut self) -> Result<(), Failure> {
        let threads = self.args.how.compress_threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            usize::from,
        );
        let bytes = usize::try_from(self.args.how.history).unwrap_or(usize::MAX);
        let history = (self.engine.can_recall() && bytes > 0).then(|| History::new(PAGE, bytes));
        self.output
            .pack(self.args.how.compress, history, threads.min(THREADS_MAX))
            .map_err(|error| Failure::Failed(format!("cannot start threads: {error}")))?;
        if self.args.how.compress != CompressArg::None {
            self.steering.link_rate.follow_closely();
        }
        Ok(())
    }
}

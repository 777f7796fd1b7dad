//! The pilot: whose memory is kept back, who is frozen when, and when QEMU may complete.
//!
//! ```text
//! agent:   survey, owners  │ watch, arm, report, free pages, written │ freeze │ renew …
//! memory:  (not read yet)  │ first walk, hot pages held              │ one circle │ settling │ free
//! QEMU:    downtime limit of 1 ms, so that it cannot complete ──────────────────────► the user's
//! ```
//!
//! A pure state machine beside [`Source`]: the agent's answers, QEMU's synchronisations and the
//! time come in; requests, settings and news come out as [`PilotAction`]s. What it decides moves
//! pages about in time and lets processes stand; whatever it does, and whatever the agent says,
//! the source half sends every page that is not declared free twice.

mod answers;
mod following;
mod member;
mod settings;
mod stages;
mod stall;
mod talk;
mod writing;

use std::collections::VecDeque;
use std::time::Duration;

use depgraph::ProcessId;
use guest_proto::{Request, ThawReason, VERSION};

use crate::{Source, Treatment, WalkPosition};
use following::Following;
use member::{Member, State};
pub use settings::{OnStall, PilotAction, PilotNews, PilotSettings, Protocol, View};
pub(crate) use stages::is_quiet;
pub use stages::{Job, SMALL_BYTES, Spared, Stages, pause, stages};
pub use stall::Stall;
use talk::Hearing;
use writing::Look;
pub use writing::sweeps;

/// Processes with less anonymous memory are moved live, unseen.
pub const CANDIDATE_KIB: u64 = 4 << 10;
/// Most processes whose memory is looked at: the largest.
pub const CANDIDATES_MAX: usize = 32;
/// Longest wait for the first answers, which hardly any memory is read before.
const FIRST_ANSWERS_LIMIT: Duration = Duration::from_secs(5);
/// The first question is asked again when it has not been answered for so long: what is written
/// to a guest's port just when somebody else lets go of it may be lost.
const GREET_AGAIN: Duration = Duration::from_secs(1);
/// An agent that says nothing for so long while the VM runs is given up.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);
/// Shortest time over which writing is observed.
pub const SAMPLE: Duration = Duration::from_millis(500);
/// Shortest time of a second look.
const SECOND_SAMPLE: Duration = Duration::from_millis(250);
/// Time between two looks at who has turned dependent.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Processes are thawed if nothing is heard from here for so long.
const LEASE: Duration = Duration::from_secs(5);
/// When the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// Who does not come to a stand within this runs on.
const FREEZE_LIMIT: Duration = Duration::from_millis(1500);
/// Nobody is frozen before flows have been followed for so long, the time in which probes were
/// attached included,
pub(crate) const WINDOW_MIN: Duration = Duration::from_secs(1);
/// nor before all probes have been at work for so long.
const ALL_PROBES_MIN: Duration = Duration::from_millis(300);
/// While so much of what is due is still to be sent, QEMU is not read any more: what is dirtied
/// meanwhile comes when the link has time for it, and QEMU cannot complete.
const ALMOST_SENT: Duration = Duration::from_millis(50);
/// Nobody stands for longer than this because the connection is lost.
const CUT_PATIENCE: Duration = Duration::from_secs(1);
/// About what a relay reads of pages that are held, in bytes a second.
const READ_RATE: u64 = 500_000_000;
/// So much memory is read before it is known whose it is: the link need not wait for the agent, and
/// the lowest memory is mostly the kernel's.
const EARLY: u64 = 16 << 20;
/// So much live memory is read while the link is full, so that it has something to carry when
/// QEMU comes to memory that is held.
const READ_AHEAD: u64 = 128 << 20;
/// So much of what QEMU has to send stays unread while the link is busy with what is held: it
/// cannot complete then.
const UNREAD_MIN: u64 = 8 << 20;
/// Processes are frozen when the first walk is about to end: so long before.
pub(crate) const LEAD: Duration = Duration::from_millis(400);
/// Time between two estimates of what is left of the walk.
const ESTIMATE_EVERY: Duration = Duration::from_millis(50);
/// QEMU's synchronisations between the last held page and the user's downtime limit: what was
/// dirtied while held pages travelled goes live, in a short pass of its own.
pub(crate) const SETTLING_PASSES: u32 = 2;
/// A limit that QEMU never reaches while memory is written.
const NEVER: Duration = Duration::from_millis(1);
/// A limit that QEMU always reaches.
const AT_ONCE: Duration = Duration::from_secs(2000);
/// What a link is taken to carry until that is known, in bytes a second.
pub const ASSUMED_LINK: u64 = 125_000_000;
/// How far the guest's processors are throttled more at each stall, in percent.
const THROTTLE_STEP: u8 = 20;
/// QEMU's own limit.
const THROTTLE_MAX: u8 = 99;

/// What is asked next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Hello,
    Probes,
    Survey,
    Owners,
    Watch,
    Arm,
    Report,
    FreePages,
    Written,
    /// Of some, a second look.
    WatchAgain,
    WrittenAgain,
    /// All is known that can be asked beforehand.
    Open,
    /// There is no agent.
    Gone,
}

/// What QEMU's walk is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// The time to freeze the next stage.
    Waiting,
    /// The agent's word that the stage stands.
    Freezing,
    /// One circle after the first synchronisation that comes after `since`.
    Circling {
        since: Duration,
        synced: Option<WalkPosition>,
    },
    /// So many more synchronisations.
    Settling(u32),
    /// Nothing: QEMU completes when it can.
    Free,
}

/// What the guest has declared free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FreePages {
    Unknown,
    /// And is asked again when QEMU has read it.
    Declared,
    Settled,
}

/// Steers one migration. See the module's head.
#[derive(Debug)]
pub struct Pilot {
    settings: PilotSettings,
    actions: VecDeque<PilotAction>,
    step: Step,
    /// The step after the probes have been asked for.
    after_probes: Step,
    course: Course,
    free: FreePages,
    hearing: Option<(Hearing, Duration)>,
    begun: Option<Duration>,
    members: Vec<Member>,
    /// Whose owners are to be asked for.
    unasked: VecDeque<ProcessId>,
    watched_from: Duration,
    /// What a second look is compared with.
    look: Option<Look>,
    /// From when on somebody may be frozen.
    seen_enough_at: Duration,
    /// Who writes how much, until it is decided who is frozen when.
    jobs: Vec<Job>,
    /// Still to be frozen.
    stages: VecDeque<Vec<Job>>,
    /// Who stands, or has been asked to.
    standing: Vec<Job>,
    /// The connection was lost while they stood.
    interrupted: bool,
    /// Whom the agent thaws next are to be frozen another time.
    again: bool,
    thaw: bool,
    look_at: Duration,
    renew_at: Duration,
    estimate_at: Duration,
    /// The downtime limit that QEMU has, once it may complete, and what it takes the link to carry.
    told_limit: Duration,
    told: Option<u64>,
    stall: Stall,
    live_before: u64,
    following: Following,
    throttle: u8,
    view: View,
}

impl Pilot {
    /// For a VM with an agent, which is asked from the first [`turn`](Pilot::turn) on.
    pub fn new(settings: PilotSettings) -> Self {
        let mut pilot = Pilot::without_agent(settings);
        pilot.step = Step::Hello;
        pilot.course = Course::Waiting;
        pilot.actions.clear();
        pilot
    }

    /// For a VM without: everything is moved live.
    pub fn without_agent(settings: PilotSettings) -> Self {
        let limit = settings.downtime_limit;
        Pilot {
            settings,
            actions: VecDeque::from([PilotAction::DowntimeLimit(limit, None)]),
            step: Step::Gone,
            after_probes: Step::FreePages,
            course: Course::Free,
            free: FreePages::Unknown,
            hearing: None,
            begun: None,
            members: Vec::new(),
            unasked: VecDeque::new(),
            watched_from: Duration::ZERO,
            look: None,
            seen_enough_at: Duration::ZERO,
            jobs: Vec::new(),
            stages: VecDeque::new(),
            standing: Vec::new(),
            interrupted: false,
            again: false,
            thaw: false,
            look_at: Duration::ZERO,
            renew_at: Duration::ZERO,
            estimate_at: Duration::ZERO,
            told_limit: limit,
            told: None,
            stall: Stall::default(),
            live_before: 0,
            following: Following::default(),
            throttle: 0,
            view: View {
                now: Duration::ZERO,
                link: None,
                cut: None,
                stopped: false,
            },
        }
    }

    /// QEMU's downtime limit to begin with.
    pub fn first_downtime_limit(&self) -> Duration {
        match self.course {
            Course::Free => self.settings.downtime_limit,
            _ => NEVER,
        }
    }

    /// Takes the next thing that only the outside can do.
    pub fn next_action(&mut self) -> Option<PilotAction> {
        self.actions.pop_front()
    }

    /// Processes that stand, as far as is known, and since when.
    pub fn frozen(&self) -> impl Iterator<Item = (ProcessId, Duration)> {
        self.members.iter().filter_map(|member| match member.state {
            State::Frozen { since } => Some((member.id, since)),
            _ => None,
        })
    }

    /// Whether an agent takes part.
    pub fn has_agent(&self) -> bool {
        self.step != Step::Gone
    }

    /// Whether all is known that must be before much memory is read.
    pub fn reads_memory(&self) -> bool {
        self.step > Step::Owners
    }

    /// Whether anybody's memory is kept back, or has been.
    pub fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether the agent follows flows, and may hold processes.
    pub fn has_window(&self) -> bool {
        self.step > Step::Arm && self.has_agent() && !self.members.is_empty()
    }

    /// Whether QEMU may complete as soon as it can: nothing is to happen before that.
    pub fn lets_complete(&self) -> bool {
        self.course == Course::Free && self.view.cut.is_none()
    }

    /// Whether QEMU's stream may be read. Reading nothing keeps QEMU from completing.
    pub fn may_read(&self, source: &Source) -> bool {
        if !source.knows_memory() {
            return true;
        }
        if source.must_drain() {
            return false;
        }
        // A guest that stands answers nothing.
        if self.view.stopped {
            return true;
        }
        if !self.reads_memory() {
            let sent = source.stats().pages_sent * source.page_size();
            return source.position().walk == 1 && sent < EARLY;
        }
        if source.position().walk < 2 || self.reads_what_stands(source) {
            return true;
        }
        // Until it is decided who stands, a second walk brings only what is written on.
        let undecided =
            self.step < Step::Open || !self.jobs.is_empty() || self.course == Course::Freezing;
        let asked_again = matches!(&self.hearing, Some((hearing, _)) if matches!(hearing.asked(), Request::FreePages));
        time_for(source.due_bytes(), self.link()) <= ALMOST_SENT && !undecided && !asked_again
    }

    /// Whether QEMU's stream may be read even while the link is full.
    pub fn reads_ahead(&self, source: &Source) -> bool {
        let keeps = self
            .members
            .iter()
            .any(|member| member.state != State::Live);
        let first = source.position().walk == 1 && source.due_bytes() < READ_AHEAD;
        let wanted = first || self.reads_what_stands(source);
        let last = self.view.stopped && source.may_follow();
        source.has_room() && (last || (keeps && wanted))
    }

    /// Whether memory of processes that stand is still to be seen once more: to be read as fast as
    /// it comes, so that all that is held is known to be final while the link is busy with it.
    fn reads_what_stands(&self, source: &Source) -> bool {
        let unseen = source.held_bytes() - source.due_bytes();
        matches!(self.course, Course::Circling { .. }) && unseen > UNREAD_MIN
    }

    /// When to come back at the latest.
    pub fn deadline(&self) -> Option<Duration> {
        if !self.has_agent() || self.view.stopped {
            return None;
        }
        let greeted = self.hearing.as_ref().filter(|_| self.step == Step::Hello);
        let next = [
            greeted.map(|(_, since)| *since + GREET_AGAIN),
            self.hearing
                .as_ref()
                .map(|(_, since)| *since + SILENCE_LIMIT),
            (self.has_window() && self.step == Step::Open && self.hearing.is_none())
                .then_some(self.look_at),
            self.frozen().next().map(|_| self.renew_at),
            self.estimates().then_some(self.estimate_at),
            self.sampled_at().filter(|_| self.hearing.is_none()),
            (!self.reads_memory()).then_some(self.begun.unwrap_or_default() + FIRST_ANSWERS_LIMIT),
        ];
        next.into_iter().flatten().min()
    }

    /// Looks at where things stand. Call after everything that has happened, and at the
    /// [`deadline`](Pilot::deadline).
    pub fn turn(&mut self, source: &mut Source, view: View) {
        self.view = view;
        let begun = *self.begun.get_or_insert(view.now);
        if self.step == Step::Gone || view.stopped {
            return;
        }
        let since = self.hearing.as_ref().map(|(_, since)| *since);
        if self.step == Step::Hello && since.is_some_and(|since| view.now >= since + GREET_AGAIN) {
            self.hearing = None;
        }
        if since.is_some_and(|since| view.now >= since + SILENCE_LIMIT) {
            let seconds = SILENCE_LIMIT.as_secs();
            let why = format!("the agent has been silent for {seconds} s");
            return self.agent_lost(&why, source);
        }
        if !self.reads_memory() && view.now >= begun + FIRST_ANSWERS_LIMIT {
            let what = self
                .hearing
                .as_ref()
                .map_or("", |(hearing, _)| hearing.what());
            let seconds = FIRST_ANSWERS_LIMIT.as_secs();
            let why = format!("it has not told within {seconds} s {what}");
            return self.agent_lost(&why, source);
        }
        self.keep_to_the_limits(source);
        self.follow(source);
        self.correct_the_link_rate();
        if self.hearing.is_none()
            && let Some(request) = self.next_request(source)
        {
            self.hearing = Some((Hearing::new(request.clone()), view.now));
            self.actions.push_back(PilotAction::Ask(request));
        }
    }

    /// What the agent tells by itself: it has thawed processes.
    pub fn news(&mut self, thawed: &[ProcessId], reason: ThawReason, source: &mut Source) {
        let why = match reason {
            ThawReason::Called => "somebody turned to them",
            ThawReason::LeaseExpired => "the agent had not heard from here",
        };
        let mut who = Vec::new();
        for member in &mut self.members {
            if thawed.contains(&member.id) && matches!(member.state, State::Frozen { .. }) {
                member.state = State::Live;
                source.treat(member.group, Treatment::Live);
                who.push(member.id);
            }
        }
        self.tell_thawed(who, why);
    }

    /// There is no agent any more, or none that can be trusted with anything.
    pub fn agent_lost(&mut self, why: &str, source: &mut Source) {
        if self.step == Step::Gone {
            return;
        }
        self.step = Step::Gone;
        self.hearing = None;
        let frozen: Vec<_> = self.frozen().map(|(id, _)| id).collect();
        self.release_all(source);
        self.free = FreePages::Settled;
        source.none_is_free();
        self.note(format!("the migration goes on without the agent: {why}"));
        // They are thawed by the lease.
        self.tell_thawed(frozen, "the agent is lost");
        self.set_free();
    }

    /// QEMU has synchronised its dirty bitmap, at the time `when`.
    pub fn synchronised(&mut self, when: Duration, source: &mut Source) {
        match &mut self.course {
            Course::Circling { since, synced } if synced.is_none() && when >= *since => {
                *synced = Some(source.position());
                for member in &self.members {
                    if matches!(member.state, State::Frozen { .. }) {
                        source.treat(member.group, Treatment::Standing);
                    }
                }
            }
            Course::Settling(passes) => {
                *passes += 1;
                if *passes >= SETTLING_PASSES {
                    self.set_free();
                }
            }
            _ => {}
        }
        let live = source.stats().live_pages;
        let bytes = (live - self.live_before) * source.page_size();
        self.live_before = live;
        let limit = self.settings.downtime_limit.as_secs_f64();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate"
        )]
        let fits = (self.link() as f64 * limit) as u64;
        if self.course == Course::Free && !self.view.stopped {
            if self.stall.pass(bytes, fits) {
                self.stall.forget();
                self.stalled(source);
            }
            self.complete_before_all_is_sent(bytes <= fits, source);
        }
    }

    fn stalled(&mut self, source: &mut Source) {
        self.actions
            .push_back(PilotAction::Tell(PilotNews::Stalled));
        match self.settings.on_stall {
            OnStall::Wait => {}
            OnStall::AutoConverge => {
                self.throttle = (self.throttle + THROTTLE_STEP).min(THROTTLE_MAX);
                self.actions.push_back(PilotAction::Throttle(self.throttle));
            }
            OnStall::Switchover => self.limit_downtime(AT_ONCE),
            OnStall::PostCopy if source.may_follow() => self.let_everything_follow(source),
            // There is a note why it may not.
            OnStall::PostCopy => {}
            OnStall::Abort => self.actions.push_back(PilotAction::GiveUp(
                "what is moved live does not converge, and --on-stall is abort".to_owned(),
            )),
        }
    }

    /// Thaws who has stood for longer than it may, or for nothing.
    fn keep_to_the_limits(&mut self, source: &mut Source) {
        let now = self.view.now;
        let stands = self.frozen().next().is_some();
        self.interrupted = stands && (self.interrupted || self.view.cut.is_some());
        let in_vain = stands
            && self
                .view
                .cut
                .is_some_and(|since| now >= since + CUT_PATIENCE);
        let overdue = self.members.iter().any(|member| match member.state {
            State::Frozen { since } => now >= since + member.limit(self.settings.max_pause),
            _ => false,
        });
        if (overdue || in_vain) && !self.thaw {
            let who: Vec<_> = self.frozen().map(|(id, _)| id).collect();
            if self.interrupted {
                return self.try_again(who, source);
            }
            match self.settings.on_stall == OnStall::PostCopy && source.may_follow() {
                true => {
                    self.let_them_follow(source);
                    self.following.thawed_to_follow = true;
                }
                false => self.release_all(source),
            }
            self.tell_thawed(who, "they have stood for as long as they may");
            self.thaw = true;
            self.set_free();
        }
    }

    /// It was not their fault: they run until there is a connection, and are frozen another time.
    fn try_again(&mut self, who: Vec<ProcessId>, source: &mut Source) {
        for member in &mut self.members {
            if matches!(member.state, State::Frozen { .. }) {
                member.state = State::Held;
                source.treat(member.group, Treatment::Held);
            }
        }
        self.jobs.append(&mut self.standing);
        self.jobs.retain(|job| who.contains(&job.id));
        self.jobs.extend(self.stages.drain(..).flatten());
        self.interrupted = false;
        self.again = true;
        self.thaw = true;
        if self.course == Course::Free {
            // QEMU shall not complete meanwhile.
            self.limit_downtime(NEVER);
        }
        self.course = Course::Waiting;
        self.tell_thawed(who, "the connection is lost");
    }

    /// Follows QEMU's walk.
    fn follow(&mut self, source: &mut Source) {
        match self.course {
            Course::Waiting if self.step == Step::Open => {
                if !self.jobs.is_empty() {
                    let can = self.view.cut.is_none() && !self.thaw;
                    if can && self.near_the_end(source) {
                        match self.settings.protocol {
                            Protocol::PostCopy => self.plan_what_follows(source),
                            _ => self.plan_stages(source),
                        }
                        self.next_stage_or_settle();
                    }
                } else if self.free != FreePages::Declared && source.due_bytes() == 0 {
                    self.set_free();
                }
            }
            Course::Circling {
                synced: Some(from), ..
            } => {
                let circle = WalkPosition {
                    walk: from.walk + 1,
                    slot: from.slot,
                };
                if source.position() >= circle && source.due_bytes() == 0 {
                    self.next_stage_or_settle();
                }
            }
            _ => {}
        }
    }

    /// Who is frozen when, by what the link carries now that it is known.
    fn plan_stages(&mut self, source: &mut Source) {
        let jobs = std::mem::take(&mut self.jobs);
        let plan = stages(&jobs, self.link(), self.settings.small_bytes);
        let may_follow = self.settings.on_stall == OnStall::PostCopy && source.may_follow();
        for (job, why) in plan.spared {
            let why = match why {
                Spared::TooLong(_) if may_follow => {
                    self.let_follow(job.id, source);
                    continue;
                }
                Spared::Quiet => "it writes little".to_owned(),
                Spared::TooLong(pause) => format!(
                    "it would stand for {:.1} s, and may for {:.1} s",
                    pause.as_secs_f64(),
                    job.limit.as_secs_f64()
                ),
            };
            self.release(&[job.id], &why, source);
        }
        self.stages = plan.stages.into();
    }

    fn next_stage_or_settle(&mut self) {
        self.course = if !self.stages.is_empty() {
            Course::Freezing
        } else if self.frozen().next().is_some() {
            Course::Settling(0)
        } else {
            Course::Waiting
        };
    }

    /// Whether the end of the first walk is awaited.
    fn estimates(&self) -> bool {
        let awaited = !self.jobs.is_empty() || self.free == FreePages::Declared;
        self.course == Course::Waiting && self.step == Step::Open && awaited
    }

    /// The first walk ends within the lead, or has ended. Where much is still to be held, the
    /// link would soon have nothing to carry: then the time is near, too.
    fn near_the_end(&mut self, source: &Source) -> bool {
        if self.view.now < self.estimate_at {
            return false;
        }
        self.estimate_at = self.view.now + ESTIMATE_EVERY;
        if source.position().walk >= 2 {
            return true;
        }
        let left = source.left_of_first_walk();
        let live = left.live + source.due_bytes();
        time_for(live, self.link()) <= LEAD + time_for(left.held, READ_RATE)
    }

    fn set_free(&mut self) {
        if self.course != Course::Free {
            self.course = Course::Free;
            self.limit_downtime(self.settings.downtime_limit);
        }
    }

    fn limit_downtime(&mut self, limit: Duration) {
        self.told = self.view.link.filter(|_| self.has_members());
        self.told_limit = limit;
        self.actions
            .push_back(PilotAction::DowntimeLimit(limit, self.told));
    }

    /// Tells QEMU what the link carries when that has changed.
    fn correct_the_link_rate(&mut self) {
        if self.course != Course::Free || !self.has_members() {
            return;
        }
        let (told, now) = (self.told.unwrap_or(0), self.view.link.unwrap_or(0));
        if told.abs_diff(now) > told / 8 {
            self.limit_downtime(self.told_limit);
        }
    }

    fn next_request(&mut self, source: &mut Source) -> Option<Request> {
        let now = self.view.now;
        if self.thaw {
            return Some(Request::Thaw);
        }
        match self.step {
            Step::Hello => Some(Request::Hello { version: VERSION }),
            Step::Probes => Some(Request::ProbeState),
            Step::Survey => Some(Request::Survey {
                rules: self.settings.rules.clone(),
                at_least_kib: CANDIDATE_KIB,
            }),
            // From here on frames are spoken of.
            Step::Owners | Step::FreePages if !source.knows_memory() => None,
            Step::Owners => self.unasked.front().map(|id| Request::Owners {
                processes: vec![*id],
            }),
            Step::Watch => {
                self.watched_from = now;
                Some(Request::WatchWrites {
                    processes: self.members.iter().map(|member| member.id).collect(),
                })
            }
            Step::Arm => {
                self.seen_enough_at = now + WINDOW_MIN;
                Some(Request::Arm {
                    rules: self.settings.rules.clone(),
                })
            }
            Step::Report => Some(Request::Report),
            Step::FreePages => Some(Request::FreePages),
            Step::WatchAgain => {
                self.watched_from = now;
                Some(Request::WatchWrites {
                    processes: self.unclear(),
                })
            }
            Step::Written | Step::WrittenAgain => {
                let sampled = self.sampled_at().is_some_and(|at| now >= at);
                sampled.then_some(Request::Written)
            }
            Step::Open => self.next_in_the_open(source),
            Step::Gone => None,
        }
    }

    /// When writes have been watched for long enough.
    fn sampled_at(&self) -> Option<Duration> {
        match self.step {
            Step::Written => Some(self.watched_from + SAMPLE),
            Step::WrittenAgain => Some(self.watched_from + SECOND_SAMPLE),
            _ => None,
        }
    }

    fn next_in_the_open(&mut self, source: &mut Source) -> Option<Request> {
        let now = self.view.now;
        if self.course == Course::Freezing
            && let Some(stage) = self.stages.front()
        {
            let who: Vec<_> = stage.iter().map(|job| job.id).collect();
            let rest: u64 = self.stages.iter().flatten().map(|job| job.hot_bytes).sum();
            let expected = pause(rest, self.link());
            let news = PilotNews::Freezing(who.clone(), expected);
            self.actions.push_back(PilotAction::Tell(news));
            return Some(Request::Freeze {
                processes: who,
                lease_ms: millis(LEASE),
                deadline_ms: millis(FREEZE_LIMIT),
            });
        }
        let stands = self.frozen().next().is_some();
        let read = stands || (self.estimates() && self.near_the_end(source));
        if self.free == FreePages::Declared && read {
            source.ask_again();
            return Some(Request::FreePages);
        }
        if stands && now >= self.renew_at {
            self.renew_at = now + RENEW_EVERY;
            return Some(Request::Renew {
                lease_ms: millis(LEASE),
            });
        }
        if self.has_window() && now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            let kept = self.members.iter().filter(|m| m.state != State::Live);
            let processes: Vec<_> = kept.map(|member| member.id).collect();
            return (!processes.is_empty()).then_some(Request::Dependents { processes });
        }
        None
    }

    /// These are moved live from now on.
    fn release(&mut self, who: &[ProcessId], why: &str, source: &mut Source) {
        let mut released = Vec::new();
        for member in &mut self.members {
            if who.contains(&member.id) && member.state != State::Live {
                member.state = State::Live;
                source.treat(member.group, Treatment::Live);
                released.push(member.id);
            }
        }
        self.jobs.retain(|job| !who.contains(&job.id));
        for stage in &mut self.stages {
            stage.retain(|job| !who.contains(&job.id));
        }
        self.stages.retain(|stage| !stage.is_empty());
        if !released.is_empty() {
            let news = PilotNews::Live(released, why.to_owned());
            self.actions.push_back(PilotAction::Tell(news));
        }
    }

    fn release_all(&mut self, source: &mut Source) {
        for member in &mut self.members {
            member.state = State::Live;
            source.treat(member.group, Treatment::Live);
        }
        self.unasked.clear();
        self.jobs.clear();
        self.stages.clear();
    }

    fn tell_thawed(&mut self, who: Vec<ProcessId>, why: &'static str) {
        if !who.is_empty() {
            let news = PilotNews::Thawed(who, why);
            self.actions.push_back(PilotAction::Tell(news));
        }
    }

    fn link(&self) -> u64 {
        self.view.link.unwrap_or(ASSUMED_LINK)
    }

    fn note(&mut self, text: String) {
        self.actions
            .push_back(PilotAction::Tell(PilotNews::Note(text)));
    }
}

fn time_for(bytes: u64, rate: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / rate.max(1))
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

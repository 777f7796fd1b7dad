//! Agents, from the one that is right to the one that lies.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use depgraph::{Class, ProcessId};
use guest_proto::{
    Answer, Armed, Candidate, Capabilities, FrozenReport, PageSet, ProbeState, ProcessRecord,
    Reason, Request, Summary, ThawReason, Tier, VERSION, Welcome,
};

use crate::guest::{FRAMES, Guest};
use crate::random::Random;

/// What an agent is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Character {
    Right,
    /// Answers after seconds.
    Late,
    /// Names frames at random.
    Wrong,
    /// Everything is independent and free, and says so of frames that there are not.
    Lying,
    /// Says nothing from some question on.
    Silent,
    /// Refuses some questions.
    Refusing,
    /// Goes away at some moment.
    Dying,
    /// Says that processes stand which do not.
    Pretending,
    /// Thaws by itself.
    Restless,
}

impl Character {
    pub(crate) const ALL: [Character; 9] = [
        Character::Right,
        Character::Late,
        Character::Wrong,
        Character::Lying,
        Character::Silent,
        Character::Refusing,
        Character::Dying,
        Character::Pretending,
        Character::Restless,
    ];
}

/// What comes from an agent.
pub(crate) enum Said {
    Answer(Answer, bool),
    Refused,
    News(Vec<ProcessId>, ThawReason),
    /// It is gone.
    Gone,
}

/// The agent.
pub(crate) struct Agent {
    pub(crate) character: Character,
    random: Random,
    /// What is on its way to the host, and when it is there.
    said: VecDeque<(Duration, Said)>,
    /// Asked and not answered.
    outstanding: bool,
    questions: usize,
    silent_after: usize,
    dies_at: Duration,
    lease_until: Option<Duration>,
    turns_at: Duration,
    /// Who was told to be dependent.
    told_dependent: BTreeSet<ProcessId>,
    pub(crate) seen: BTreeSet<&'static str>,
    frozen_times: usize,
    looks: usize,
}

impl Agent {
    pub(crate) fn new(character: Character, mut random: Random) -> Self {
        let dies_at = Duration::from_millis(random.below(9000) as u64);
        Agent {
            character,
            said: VecDeque::new(),
            outstanding: false,
            questions: 0,
            silent_after: 1 + random.below(16),
            dies_at,
            lease_until: None,
            turns_at: Duration::from_millis(500 + random.below(20_000) as u64),
            told_dependent: BTreeSet::new(),
            seen: BTreeSet::new(),
            frozen_times: 0,
            looks: 0,
            random,
        }
    }

    /// The host asks.
    pub(crate) fn asked(&mut self, request: &Request, guest: &mut Guest, now: Duration) {
        if matches!(request, Request::Hello { .. }) {
            // Greeted again: answers to the first greeting are nobody's.
            self.said.clear();
        } else {
            assert!(!self.outstanding, "two questions at once: {request:?}");
        }
        self.outstanding = true;
        self.questions += 1;
        let takes = match self.character {
            Character::Late => 200 + self.random.below(3000),
            _ => 5 + self.random.below(60),
        };
        let at = now + Duration::from_millis(takes as u64);
        if self.character == Character::Silent && self.questions > self.silent_after {
            return;
        }
        if self.character == Character::Refusing && self.random.one_in(5) {
            self.seen.insert("refused");
            self.said.push_back((at, Said::Refused));
            return;
        }
        let answers = self.answers(request, guest, at);
        let count = answers.len();
        for (number, answer) in (1..).zip(answers) {
            let said = Said::Answer(answer, number == count);
            self.said.push_back((at, said));
        }
    }

    /// What has come to the host by now.
    pub(crate) fn hear(&mut self, now: Duration) -> Option<Said> {
        if self.character == Character::Dying && now >= self.dies_at {
            self.dies_at = Duration::MAX;
            self.said.clear();
            self.seen.insert("agent lost");
            return Some(Said::Gone);
        }
        let (at, _) = self.said.front()?;
        if *at > now {
            return None;
        }
        let (_, said) = self.said.pop_front()?;
        if matches!(said, Said::Answer(_, true) | Said::Refused) {
            self.outstanding = false;
        }
        Some(said)
    }

    /// What it does by itself.
    pub(crate) fn acts(&mut self, guest: &mut Guest, now: Duration) {
        if now >= self.turns_at && self.character != Character::Lying {
            self.turns_at = Duration::MAX;
            let at = self.random.below(guest.processes.len());
            let process = &mut guest.processes[at];
            process.dependent = true;
            self.seen.insert("turned dependent");
            if process.stands {
                // Somebody has turned to it.
                self.thaws(guest, ThawReason::Called, now);
            }
        }
        if self.lease_until.is_some_and(|until| now >= until) {
            // Of one that is lost, or too slow, that is what the lease is for.
            assert_ne!(self.character, Character::Right, "the lease ran out");
            self.thaws(guest, ThawReason::LeaseExpired, now);
        }
        if self.character == Character::Restless && self.random.one_in(150) {
            self.thaws(guest, ThawReason::Called, now);
        }
    }

    fn thaws(&mut self, guest: &mut Guest, reason: ThawReason, now: Duration) {
        self.lease_until = None;
        let stood = thaw_all(guest);
        if !stood.is_empty() && self.character != Character::Silent {
            self.seen.insert("thawed by the agent");
            self.said.push_back((now, Said::News(stood, reason)));
        }
    }

    fn answers(&mut self, request: &Request, guest: &mut Guest, at: Duration) -> Vec<Answer> {
        match request {
            Request::Hello { .. } => vec![Answer::Welcome(Welcome {
                version: VERSION,
                software: "test".into(),
                kernel: "6.1".into(),
                tier: Tier::Probes,
                capabilities: Capabilities {
                    owners: true,
                    freezer: true,
                },
            })],
            Request::ProbeState => vec![Answer::ProbeState(ProbeState::default())],
            Request::Survey { .. } => {
                let all = guest.processes.iter();
                let candidates = all.filter(|one| !one.dependent).map(|one| Candidate {
                    id: one.id,
                    anonymous_kib: one.frames.len() as u64 * 4,
                });
                vec![Answer::Candidates(candidates.collect())]
            }
            Request::Owners { processes } => {
                self.seen.insert("held");
                let mut of = |id| guest.process(id).map(|one| one.frames.clone());
                let frames = processes
                    .iter()
                    .filter_map(|id| of(*id))
                    .flatten()
                    .collect();
                self.pages(frames, Vec::new())
            }
            Request::WatchWrites { processes } => {
                self.looks += 1;
                if self.looks == 2 {
                    self.seen.insert("second look");
                }
                for (at, process) in guest.processes.iter().enumerate() {
                    if processes.contains(&process.id) {
                        guest.written[at].clear();
                    }
                }
                vec![Answer::Watching]
            }
            Request::Arm { .. } => vec![Answer::Armed(Armed {
                attach_us: 1,
                snapshot_us: 1,
                probes: 27,
                missing: Vec::new(),
            })],
            Request::Report => {
                let records = guest
                    .processes
                    .iter()
                    .map(|one| self.record(one.id, one.dependent));
                let records = records.collect();
                vec![
                    Answer::Processes(records),
                    Answer::Summary(Summary::default()),
                ]
            }
            Request::Written => {
                let counted = guest.processes.iter().zip(&guest.written);
                let by_process = counted.map(|(one, pages)| (one.id, pages.len() as u64));
                let by_process = by_process.collect();
                let frames = guest.written.iter().flatten().copied().collect();
                self.pages(frames, by_process)
            }
            Request::FreePages => self.pages(guest.free.iter().copied().collect(), Vec::new()),
            Request::Freeze {
                processes,
                lease_ms,
                ..
            } => vec![self.freezes(processes, *lease_ms, guest, at)],
            Request::Renew { lease_ms } => {
                self.seen.insert("lease renewed");
                self.lease_until = Some(at + Duration::from_millis((*lease_ms).into()));
                vec![Answer::Renewed]
            }
            Request::Dependents { processes } => {
                let dependent = |id: &ProcessId| {
                    let mut all = guest.processes.iter();
                    all.any(|one| one.id == *id && one.dependent)
                };
                let who: Vec<_> = processes.iter().copied().filter(dependent).collect();
                self.told_dependent.extend(&who);
                vec![Answer::Dependents(who)]
            }
            Request::Thaw => {
                self.seen.insert("thawed on request");
                self.lease_until = None;
                vec![Answer::Thawed(thaw_all(guest))]
            }
            Request::Disarm => panic!("the pilot does not disarm"),
        }
    }

    fn record(&self, id: ProcessId, dependent: bool) -> ProcessRecord {
        ProcessRecord {
            id,
            parent: 1,
            name: "one".into(),
            command: String::new(),
            cgroup: String::new(),
            class: match dependent {
                true => Class::Dependent { distance: 1 },
                false => Class::Independent,
            },
            reason: Reason::None,
            anonymous_kib: 1 << 12,
            rule: None,
            pause_limit: None,
        }
    }

    fn freezes(
        &mut self,
        processes: &[ProcessId],
        lease_ms: u32,
        guest: &mut Guest,
        at: Duration,
    ) -> Answer {
        let mut report = FrozenReport::default();
        self.frozen_times += 1;
        self.seen.insert("frozen");
        if self.frozen_times > 1 {
            self.seen.insert("frozen twice");
        }
        for id in processes {
            assert!(!self.told_dependent.contains(id), "{id:?} is dependent");
            let refuses = self.character == Character::Refusing && self.random.one_in(4);
            let Some(process) = guest.process(*id) else {
                continue;
            };
            assert!(!process.stands, "{id:?} stands already");
            if refuses || process.dependent {
                report.refused.push((*id, "it does not want to".into()));
                continue;
            }
            process.stands = self.character != Character::Pretending;
            report.frozen.push(*id);
        }
        if !report.frozen.is_empty() {
            self.lease_until = Some(at + Duration::from_millis(lease_ms.into()));
        }
        if self.character == Character::Pretending {
            self.lease_until = None;
        }
        Answer::Frozen(report)
    }

    /// Page frames, as this agent tells them.
    fn pages(&mut self, frames: Vec<usize>, by_process: Vec<(ProcessId, u64)>) -> Vec<Answer> {
        let mut frames: Vec<u64> = frames.into_iter().map(|frame| frame as u64).collect();
        match self.character {
            Character::Wrong => {
                let some = 1 + self.random.below(80);
                frames = (0..some)
                    .map(|_| self.random.below(FRAMES) as u64)
                    .collect();
            }
            Character::Lying => {
                frames = (0..FRAMES as u64 + self.random.below(2) as u64).collect();
            }
            _ => {}
        }
        let set = PageSet::of(frames);
        let mut answers: Vec<Answer> = set.split(3).map(Answer::Pages).collect();
        answers.push(Answer::PagesEnd {
            gone: Vec::new(),
            dropped: 0,
            by_process,
        });
        answers
    }
}

fn thaw_all(guest: &mut Guest) -> Vec<ProcessId> {
    let mut stood = Vec::new();
    for process in &mut guest.processes {
        if std::mem::take(&mut process.stands) {
            stood.push(process.id);
        }
    }
    stood
}

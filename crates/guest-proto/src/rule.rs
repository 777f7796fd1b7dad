//! Rules of the administrator, one a line, in a file of the guest or from the host:
//!
//! ```text
//! always-live SUBJECT                  stays live, and so does what it is connected to
//! sink        SUBJECT                  stays live, but passes dependency on to nobody
//! may-pause   SUBJECT [up-to TIME]     may pause, whatever it is connected to
//! pause-limit SUBJECT up-to TIME       pauses for so long at most, if it pauses at all
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What is settled beforehand about some processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What is to be done; nothing in a rule that only limits.
    pub treatment: Option<Treatment>,
    /// To whom.
    pub subject: Subject,
    /// Longest pause.
    pub limit: Option<PauseLimit>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Treatment {
    /// Always live, and so is what it is connected to.
    AlwaysLive,
    /// May pause, whatever it is connected to.
    MayPause,
    /// Always live, but passes dependency on to nobody: for hubs.
    Sink,
}

/// Longest acceptable pause, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PauseLimit(u32);

impl PauseLimit {
    /// Nothing is to stand for longer, whatever a rule says.
    pub const MAX: Duration = Duration::from_secs(3600);

    /// Nothing for one that makes no sense: of no time, or beyond [`MAX`](Self::MAX).
    pub fn new(limit: Duration) -> Option<Self> {
        let millis = u32::try_from(limit.as_millis()).ok()?;
        (millis > 0 && limit <= Self::MAX).then_some(PauseLimit(millis))
    }

    /// As a time; whatever the other side has sent, within [`MAX`](Self::MAX).
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0.into()).min(Self::MAX)
    }
}

/// Whom a rule is about. In patterns `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Subject {
    /// Processes of a systemd unit.
    Unit(String),
    /// Processes of a control group, by its path.
    Cgroup(String),
    /// Processes of a program, by its path.
    Exe(String),
    /// Processes of a name, as the kernel has it.
    Name(String),
    /// One process.
    Pid(u32),
    /// All processes of a service or scope of which one is in contact with the outside itself.
    FacingClients,
}

/// How closely a subject describes a process: of two rules that fit, the greater decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    kind: Kind,
    /// Of a unit: how far down the tree of control groups the folder is that fits.
    depth: usize,
    /// Characters of the pattern that are not `*`.
    literal: usize,
    exact: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Facing,
    Cgroup,
    Unit,
    ProgramPattern,
    Program,
    Pid,
}

/// A rule that is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// Only one word.
    #[error("a rule is a treatment and a subject, such as `may-pause unit:batch.service`")]
    Incomplete,
    /// The first word.
    #[error("a rule begins with always-live, may-pause, sink or pause-limit")]
    Treatment,
    /// The second.
    #[error(
        "a subject is unit:, cgroup:, exe: or name: and a pattern, pid: and a number, or facing:clients"
    )]
    Subject,
    /// What follows `up-to`.
    #[error("after up-to comes a time from 1ms to 1h, such as 20s")]
    Limit,
    /// A limit that is none.
    #[error("write how long: `pause-limit SUBJECT up-to 20s`")]
    NoLimit,
    /// A limit for somebody who never pauses.
    #[error("up-to goes with may-pause and pause-limit: what stays live never pauses")]
    NeverPauses,
    /// Who faces clients is told by what the others do.
    #[error("facing:clients goes with always-live or pause-limit")]
    Facing,
}

/// What rules look at.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traits<'a> {
    /// Its id.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub name: &'a str,
    /// The path of its program.
    pub exe: &'a str,
    /// The path of its control group.
    pub cgroup: &'a str,
    /// It belongs to a service or scope of which a process is in contact with the outside.
    pub facing: bool,
}

impl Subject {
    /// Whether it is about this process, and how closely.
    pub fn fits(&self, process: &Traits<'_>) -> Option<Specificity> {
        let of = |kind, pattern: &str, depth| Specificity {
            kind,
            depth,
            literal: pattern.chars().filter(|c| *c != '*').count(),
            exact: !pattern.contains('*'),
        };
        let program = |pattern: &str, text| {
            let kind = match pattern.contains('*') {
                true => Kind::ProgramPattern,
                false => Kind::Program,
            };
            matches(pattern, text).then(|| of(kind, pattern, 0))
        };
        match self {
            Subject::Exe(pattern) => program(pattern, process.exe),
            Subject::Name(pattern) => program(pattern, process.name),
            Subject::Cgroup(pattern) => {
                matches(pattern, process.cgroup).then(|| of(Kind::Cgroup, pattern, 0))
            }
            // A unit is a folder of the control groups' tree.
            Subject::Unit(pattern) => {
                let folders = process.cgroup.split('/').enumerate();
                let fitting = folders.filter(|(_, folder)| matches(pattern, folder));
                let (depth, _) = fitting.last()?;
                Some(of(Kind::Unit, pattern, depth))
            }
            Subject::Pid(pid) => (*pid == process.pid).then(|| of(Kind::Pid, "", 0)),
            Subject::FacingClients => process.facing.then(|| of(Kind::Facing, "", 0)),
        }
    }
}

/// The rules of a file, each with the number of its line: `#` begins a comment.
pub fn rules(text: &str) -> impl Iterator<Item = (usize, Result<Rule, RuleError>)> {
    (1..).zip(text.lines()).filter_map(|(number, line)| {
        let line = line.split('#').next().unwrap_or("").trim();
        (!line.is_empty()).then(|| (number, line.parse()))
    })
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (treatment, rest) = text
            .trim()
            .split_once(char::is_whitespace)
            .ok_or(RuleError::Incomplete)?;
        let treatment = match treatment {
            "always-live" => Some(Treatment::AlwaysLive),
            "may-pause" => Some(Treatment::MayPause),
            "sink" => Some(Treatment::Sink),
            "pause-limit" => None,
            _ => return Err(RuleError::Treatment),
        };
        let rest = rest.trim();
        let (subject, limit) = match rest.rsplit_once("up-to") {
            // The word may be a part of a pattern.
            Some((subject, time)) if stands_alone(subject, time) => {
                let time = humantime::parse_duration(time.trim()).map_err(|_| RuleError::Limit)?;
                let limit = PauseLimit::new(time).ok_or(RuleError::Limit)?;
                (subject.trim_end(), Some(limit))
            }
            _ => (rest, None),
        };
        let rule = Rule {
            treatment,
            subject: subject.parse()?,
            limit,
        };
        match (rule.treatment, &rule.subject, rule.limit) {
            (None, _, None) => Err(RuleError::NoLimit),
            (Some(Treatment::AlwaysLive | Treatment::Sink), _, Some(_)) => {
                Err(RuleError::NeverPauses)
            }
            (Some(Treatment::MayPause | Treatment::Sink), Subject::FacingClients, _) => {
                Err(RuleError::Facing)
            }
            _ => Ok(rule),
        }
    }
}

/// Whether a word is between blanks, or at the end after one.
fn stands_alone(before: &str, after: &str) -> bool {
    before.ends_with(char::is_whitespace)
        && (after.is_empty() || after.starts_with(char::is_whitespace))
}

impl FromStr for Subject {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (kind, pattern) = text.split_once(':').ok_or(RuleError::Subject)?;
        let own = || pattern.to_owned();
        match kind {
            "unit" => Ok(Subject::Unit(own())),
            "cgroup" => Ok(Subject::Cgroup(own())),
            "exe" => Ok(Subject::Exe(own())),
            "name" => Ok(Subject::Name(own())),
            "pid" => pattern
                .parse()
                .map(Subject::Pid)
                .map_err(|_| RuleError::Subject),
            "facing" if pattern == "clients" => Ok(Subject::FacingClients),
            _ => Err(RuleError::Subject),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let treatment = match self.treatment {
            Some(Treatment::AlwaysLive) => "always-live",
            Some(Treatment::MayPause) => "may-pause",
            Some(Treatment::Sink) => "sink",
            None => "pause-limit",
        };
        write!(f, "{treatment} ")?;
        match &self.subject {
            Subject::Unit(pattern) => write!(f, "unit:{pattern}"),
            Subject::Cgroup(pattern) => write!(f, "cgroup:{pattern}"),
            Subject::Exe(pattern) => write!(f, "exe:{pattern}"),
            Subject::Name(pattern) => write!(f, "name:{pattern}"),
            Subject::Pid(pid) => write!(f, "pid:{pid}"),
            Subject::FacingClients => write!(f, "facing:clients"),
        }?;
        match self.limit {
            Some(limit) => write!(f, " up-to {limit}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for PauseLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.duration()))
    }
}

/// `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or("");
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_as_it_is_written() {
        for text in [
            "always-live unit:postgresql.service",
            "may-pause cgroup:/batch.slice*",
            "may-pause cgroup:/batch.slice* up-to 20s",
            "pause-limit unit:report.service up-to 1m 30s",
            "always-live facing:clients",
            "sink exe:/usr/sbin/collectd",
            "sink name:a b",
            "sink name:up-tower",
            "sink pid:1",
        ] {
            assert_eq!(
                text.parse::<Rule>().map(|rule| rule.to_string()),
                Ok(text.into())
            );
        }
        let spaced = " may-pause\tname:a b   up-to\t1500ms ".parse::<Rule>();
        let spaced = spaced.map(|rule| rule.to_string());
        assert_eq!(spaced, Ok("may-pause name:a b up-to 1s 500ms".into()));
    }

    #[test]
    fn what_is_no_rule_is_told() {
        for (text, error) in [
            ("sink", RuleError::Incomplete),
            ("live exe:/a", RuleError::Treatment),
            ("sink /a", RuleError::Subject),
            ("sink pid:one", RuleError::Subject),
            ("always-live facing:north", RuleError::Subject),
            ("may-pause pid:1 up-to", RuleError::Limit),
            ("may-pause pid:1 up-to soon", RuleError::Limit),
            ("may-pause pid:1 up-to 0s", RuleError::Limit),
            ("may-pause pid:1 up-to 61m", RuleError::Limit),
            ("pause-limit pid:1", RuleError::NoLimit),
            ("sink pid:1 up-to 1s", RuleError::NeverPauses),
            ("may-pause facing:clients", RuleError::Facing),
        ] {
            assert_eq!(text.parse::<Rule>(), Err(error), "{text}");
        }
    }

    #[test]
    fn a_file_has_a_rule_a_line() {
        let found: Vec<_> = rules("# ours\n\nsink pid:1 # the first\nsink\n").collect();
        assert_eq!(
            found,
            [(3, "sink pid:1".parse()), (4, Err(RuleError::Incomplete))]
        );
    }

    #[test]
    fn the_closer_a_subject_describes_a_process_the_more_it_counts() {
        let process = Traits {
            pid: 7,
            name: "postgres",
            exe: "/usr/bin/postgres",
            cgroup: "/system.slice/system-postgresql.slice/postgresql@15.service",
            facing: true,
        };
        let subjects = [
            "facing:clients",
            "cgroup:*",
            "cgroup:/system.slice*",
            "unit:system-postgresql.slice",
            "unit:*.service",
            "unit:postgresql@*",
            "unit:postgresql@15.service",
            "exe:*postgres",
            "exe:/usr/*/postgres",
            "name:postgres",
            "exe:/usr/bin/postgres",
            "pid:7",
        ];
        let ranks = subjects.map(|text| text.parse().ok().and_then(|s: Subject| s.fits(&process)));
        assert!(ranks.iter().all(Option::is_some));
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        let stranger = Traits::default();
        let fits = |text: &&str| {
            text.parse()
                .is_ok_and(|s: Subject| s.fits(&stranger).is_some())
        };
        assert_eq!(subjects.into_iter().filter(|text| fits(text)).count(), 1);
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, text, fit) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("*b*", "abc", true),
            ("a*b*c", "axbyc", true),
            ("a*b*c", "acb", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, text), fit, "{pattern} {text}");
        }
    }
}

//! Rules of the administrator: `TREATMENT SUBJECT`, in a file of the guest or from the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What is settled beforehand about some processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What is to be done.
    pub treatment: Treatment,
    /// To whom.
    pub subject: Subject,
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
}

/// A rule that is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// Only one word.
    #[error("a rule is a treatment and a subject, such as `may-pause unit:batch.service`")]
    Incomplete,
    /// The first word.
    #[error("a rule begins with always-live, may-pause or sink")]
    Treatment,
    /// The second.
    #[error("a subject is unit:, cgroup:, exe: or name: and a pattern, or pid: and a number")]
    Subject,
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
}

impl Subject {
    /// Whether it is about this process.
    pub fn fits(&self, process: &Traits<'_>) -> bool {
        match self {
            Subject::Exe(pattern) => matches(pattern, process.exe),
            Subject::Name(pattern) => matches(pattern, process.name),
            Subject::Cgroup(pattern) => matches(pattern, process.cgroup),
            // A unit is a folder of the control groups' tree.
            Subject::Unit(pattern) => {
                let mut folders = process.cgroup.split('/');
                folders.any(|folder| matches(pattern, folder))
            }
            Subject::Pid(pid) => *pid == process.pid,
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (treatment, subject) = text
            .trim()
            .split_once(char::is_whitespace)
            .ok_or(RuleError::Incomplete)?;
        let treatment = match treatment {
            "always-live" => Treatment::AlwaysLive,
            "may-pause" => Treatment::MayPause,
            "sink" => Treatment::Sink,
            _ => return Err(RuleError::Treatment),
        };
        let (kind, pattern) = subject.trim().split_once(':').ok_or(RuleError::Subject)?;
        let own = || pattern.to_owned();
        let subject = match kind {
            "unit" => Subject::Unit(own()),
            "cgroup" => Subject::Cgroup(own()),
            "exe" => Subject::Exe(own()),
            "name" => Subject::Name(own()),
            "pid" => Subject::Pid(pattern.parse().map_err(|_| RuleError::Subject)?),
            _ => return Err(RuleError::Subject),
        };
        Ok(Rule { treatment, subject })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let treatment = match self.treatment {
            Treatment::AlwaysLive => "always-live",
            Treatment::MayPause => "may-pause",
            Treatment::Sink => "sink",
        };
        write!(f, "{treatment} ")?;
        match &self.subject {
            Subject::Unit(pattern) => write!(f, "unit:{pattern}"),
            Subject::Cgroup(pattern) => write!(f, "cgroup:{pattern}"),
            Subject::Exe(pattern) => write!(f, "exe:{pattern}"),
            Subject::Name(pattern) => write!(f, "name:{pattern}"),
            Subject::Pid(pid) => write!(f, "pid:{pid}"),
        }
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
            "sink exe:/usr/sbin/collectd",
            "sink name:a b",
            "sink pid:1",
        ] {
            assert_eq!(
                text.parse::<Rule>().map(|rule| rule.to_string()),
                Ok(text.into())
            );
        }
    }

    #[test]
    fn what_is_no_rule_is_told() {
        assert_eq!("sink".parse::<Rule>(), Err(RuleError::Incomplete));
        assert_eq!("live exe:/a".parse::<Rule>(), Err(RuleError::Treatment));
        assert_eq!("sink /a".parse::<Rule>(), Err(RuleError::Subject));
        assert_eq!("sink pid:one".parse::<Rule>(), Err(RuleError::Subject));
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

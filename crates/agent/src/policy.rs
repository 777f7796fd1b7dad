//! What the administrator settles beforehand.
//!
//! A rule a line (see [`Rule`]), `#` begins a comment. The first rule that fits decides: those of
//! the host come first, then the files of the drop-in directory in the order of their names, then
//! the hubs that are sinks by default.

use std::fs;
use std::path::Path;

use depgraph::Mark;
use guest_proto::{Rule, Traits, Treatment};

/// Where an administrator puts rules of his own.
pub(crate) const FOLDER: &str = "/etc/unmoor/agent.d";
const DEFAULT_SINKS: &str = include_str!("../policy/10-sinks.conf");

/// Rules in their order.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    rules: Vec<Rule>,
}

impl Policy {
    /// The host's rules, the guest's and the default ones. Also what is wrong with the files.
    pub(crate) fn read(of_host: Vec<Rule>, folder: &Path) -> (Self, Vec<String>) {
        let mut rules = of_host;
        let mut complaints = Vec::new();
        let mut files: Vec<_> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|end| end == "conf"))
            .collect();
        files.sort();
        for path in files {
            let text = fs::read_to_string(&path).unwrap_or_default();
            parse(&text, &mut rules, |line, why| {
                complaints.push(format!("{}:{line}: {why}", path.display()));
            });
        }
        parse(DEFAULT_SINKS, &mut rules, |_, _| {});
        (Policy { rules }, complaints)
    }

    /// The rule that decides on a process.
    pub(crate) fn of(&self, process: &Traits<'_>) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.subject.fits(process))
    }
}

/// How the graph calls it.
pub(crate) fn mark(treatment: Treatment) -> Mark {
    match treatment {
        Treatment::AlwaysLive => Mark::AlwaysLive,
        Treatment::MayPause => Mark::MayPause,
        Treatment::Sink => Mark::Sink,
    }
}

fn parse(text: &str, rules: &mut Vec<Rule>, mut complain: impl FnMut(usize, String)) {
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        match line.parse() {
            Ok(rule) => rules.push(rule),
            Err(error) => complain(number, error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(policy: &Policy, process: &Traits<'_>) -> Option<Treatment> {
        policy.of(process).map(|rule| rule.treatment)
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let mut policy = Policy::default();
        parse(
            "# ours\nmay-pause unit:batch-*.service # nightly\n\nlive exe:/a\n\
             always-live cgroup:/system.slice*\n",
            &mut policy.rules,
            |line, _| assert_eq!(line, 4),
        );
        let batch = Traits {
            cgroup: "/system.slice/batch-7.service",
            ..Traits::default()
        };
        let other = Traits {
            cgroup: "/system.slice/nginx.service",
            ..Traits::default()
        };
        assert_eq!(of(&policy, &batch), Some(Treatment::MayPause));
        assert_eq!(of(&policy, &other), Some(Treatment::AlwaysLive));
        assert_eq!(of(&policy, &Traits::default()), None);
    }

    #[test]
    fn hubs_are_sinks_by_default() {
        let (policy, complaints) = Policy::read(Vec::new(), Path::new("/nonexistent"));
        assert!(complaints.is_empty());
        for (pid, exe) in [
            (1, "/bin/busybox"),
            (300, "/lib/systemd/systemd-journald"),
            (301, "/usr/bin/dbus-daemon"),
        ] {
            let process = Traits {
                pid,
                exe,
                ..Traits::default()
            };
            assert_eq!(of(&policy, &process), Some(Treatment::Sink), "{exe}");
        }
        let udevd = Traits {
            exe: "/usr/bin/udevadm",
            cgroup: "/system.slice/systemd-udevd.service/udev",
            ..Traits::default()
        };
        assert_eq!(of(&policy, &udevd), Some(Treatment::Sink));
    }

    #[test]
    fn the_host_overrides_the_defaults() -> Result<(), guest_proto::RuleError> {
        let rule = "always-live exe:*/dbus-daemon".parse()?;
        let (policy, _) = Policy::read(vec![rule], Path::new("/nonexistent"));
        let bus = Traits {
            exe: "/usr/bin/dbus-daemon",
            ..Traits::default()
        };
        assert_eq!(of(&policy, &bus), Some(Treatment::AlwaysLive));
        Ok(())
    }
}

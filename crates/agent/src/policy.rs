//! What the administrator settles beforehand.
//!
//! A rule a line (see [`Rule`]), `#` begins a comment. The rule that describes a process most
//! closely decides; between equals those of the host come first, then the files of the drop-in
//! directory in the order of their names, then the hubs that are sinks by default. What a process
//! is and how long it may pause are decided apart: a rule that says nothing of one of the two
//! leaves it to the others.

use std::fs;
use std::path::Path;

use depgraph::Mark;
use guest_proto::{Decided, PauseLimit, Rule, Subject, Traits, Treatment, rules, shortened};

/// Where an administrator puts rules of his own.
pub(crate) const FOLDER: &str = "/etc/unmoor/agent.d";
const DEFAULT_SINKS: &str = include_str!("../policy/10-sinks.conf");
/// Longest rule, and longest name of a file, that is told.
const TOLD_MAX: usize = 120;

/// Rules in their order.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    rules: Vec<Standing>,
}

/// A rule, and where it stands.
#[derive(Debug)]
struct Standing {
    rule: Rule,
    from: String,
}

/// What the rules say of a process.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What it is, and by which rule.
    pub(crate) treatment: Option<(Treatment, Decided)>,
    /// Whether that is so for what others of its unit do.
    pub(crate) by_facing: bool,
    /// How long it may pause, and by which rule.
    pub(crate) limit: Option<(PauseLimit, Decided)>,
}

impl Policy {
    /// The host's rules, the guest's and the default ones. Also what is wrong with the files.
    pub(crate) fn read(of_host: Vec<Rule>, folder: &Path) -> (Self, Vec<String>) {
        let mut policy = Policy::default();
        for rule in of_host {
            let from = "host".to_owned();
            policy.rules.push(Standing { rule, from });
        }
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
            match fs::read_to_string(&path) {
                Ok(text) => policy.take(&text, &path.to_string_lossy(), &mut complaints),
                Err(error) => complaints.push(format!("{}: {error}", path.display())),
            }
        }
        policy.take(DEFAULT_SINKS, "default", &mut complaints);
        (policy, complaints)
    }

    /// What applies to a process.
    pub(crate) fn of(&self, process: &Traits<'_>) -> Verdict {
        let treatment = self.closest(process, |rule| rule.treatment);
        let limit = self.closest(process, |rule| rule.limit);
        Verdict {
            by_facing: treatment
                .is_some_and(|(_, standing)| standing.rule.subject == Subject::FacingClients),
            treatment: treatment.map(|(treatment, standing)| (treatment, standing.decided())),
            limit: limit.map(|(limit, standing)| (limit, standing.decided())),
        }
    }

    /// Whether it matters who is in contact with the outside.
    pub(crate) fn asks_who_faces_clients(&self) -> bool {
        let mut rules = self.rules.iter();
        rules.any(|standing| standing.rule.subject == Subject::FacingClients)
    }

    /// Of the rules that say it, the one that fits best; the first among equals.
    fn closest<T>(
        &self,
        process: &Traits<'_>,
        says: impl Fn(&Rule) -> Option<T>,
    ) -> Option<(T, &Standing)> {
        let fitting = self.rules.iter().rev().filter_map(|standing| {
            let said = says(&standing.rule)?;
            Some((standing.rule.subject.fits(process)?, said, standing))
        });
        // Of equals, the last: the first in the rules' own order.
        let (_, said, standing) = fitting.max_by_key(|(fit, ..)| *fit)?;
        Some((said, standing))
    }

    fn take(&mut self, text: &str, name: &str, complaints: &mut Vec<String>) {
        for (line, rule) in rules(text) {
            match rule {
                Ok(rule) => self.rules.push(Standing {
                    rule,
                    from: format!("{name}:{line}"),
                }),
                Err(error) => complaints.push(format!("{name}:{line}: {error}")),
            }
        }
    }
}

impl Standing {
    fn decided(&self) -> Decided {
        Decided {
            rule: shortened(&self.rule.to_string(), TOLD_MAX),
            from: shortened(&self.from, TOLD_MAX),
        }
    }
}

/// The path of the innermost service or scope that a control group belongs to.
pub(crate) fn unit(cgroup: &str) -> Option<&str> {
    let is_unit = |folder: &str| folder.ends_with(".service") || folder.ends_with(".scope");
    let mut path = cgroup;
    loop {
        let (above, folder) = path.rsplit_once('/')?;
        if is_unit(folder) {
            return Some(path);
        }
        path = above;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(text: &str) -> Policy {
        let mut policy = Policy::default();
        let mut complaints = Vec::new();
        policy.take(text, "test", &mut complaints);
        assert_eq!(complaints, [""; 0]);
        policy
    }

    fn of(policy: &Policy, process: &Traits<'_>) -> Option<Treatment> {
        policy.of(process).treatment.map(|(treatment, _)| treatment)
    }

    #[test]
    fn the_rule_that_describes_a_process_most_closely_decides() {
        let policy = policy(
            "always-live cgroup:/system.slice*\n\
             may-pause unit:batch-*.service # nightly\n\
             always-live exe:/usr/bin/monitor",
        );
        let job = |exe| Traits {
            exe,
            cgroup: "/system.slice/batch-7.service",
            ..Traits::default()
        };
        assert_eq!(of(&policy, &job("/bin/sort")), Some(Treatment::MayPause));
        let monitor = policy.of(&job("/usr/bin/monitor"));
        let (treatment, decided) = monitor.treatment.unwrap_or_else(|| unreachable!());
        assert_eq!(treatment, Treatment::AlwaysLive);
        assert_eq!(decided.rule, "always-live exe:/usr/bin/monitor");
        assert_eq!(decided.from, "test:3");
        let other = Traits {
            cgroup: "/system.slice/nginx.service",
            ..Traits::default()
        };
        assert_eq!(of(&policy, &other), Some(Treatment::AlwaysLive));
        assert_eq!(of(&policy, &Traits::default()), None);
    }

    #[test]
    fn a_limit_and_a_treatment_come_from_different_rules() {
        let policy = policy(
            "may-pause cgroup:/batch* up-to 20s\n\
             pause-limit name:report up-to 3s\n\
             always-live pid:9",
        );
        let verdict = |pid| {
            policy.of(&Traits {
                pid,
                name: if pid == 1 { "sort" } else { "report" },
                cgroup: "/batch/x",
                ..Traits::default()
            })
        };
        let seconds = |pid| {
            verdict(pid)
                .limit
                .map(|(limit, _)| limit.duration().as_secs())
        };
        let treatment = |pid| verdict(pid).treatment.map(|(treatment, _)| treatment);
        assert_eq!([1, 2, 9].map(seconds), [Some(20), Some(3), Some(3)]);
        assert_eq!(treatment(1), Some(Treatment::MayPause));
        assert_eq!(treatment(2), Some(Treatment::MayPause));
        assert_eq!(treatment(9), Some(Treatment::AlwaysLive));
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_line() -> Result<(), std::io::Error> {
        let folder = std::env::temp_dir().join(format!("unmoor-policy-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("20.conf"), "sink pid:7\n\nlive exe:/a\n")?;
        fs::write(folder.join("notes.txt"), "no rules")?;
        let (policy, complaints) = Policy::read(Vec::new(), &folder);
        fs::remove_dir_all(&folder)?;
        assert_eq!(complaints.len(), 1);
        assert!(
            complaints[0].contains("20.conf:3: a rule begins with"),
            "{complaints:?}"
        );
        let seven = Traits {
            pid: 7,
            ..Traits::default()
        };
        assert_eq!(of(&policy, &seven), Some(Treatment::Sink));
        Ok(())
    }

    #[test]
    fn a_unit_is_the_innermost_service_or_scope() {
        assert_eq!(
            unit("/system.slice/a.service"),
            Some("/system.slice/a.service")
        );
        assert_eq!(
            unit("/user@0.service/app.slice/b.scope/deep"),
            Some("/user@0.service/app.slice/b.scope")
        );
        assert_eq!(unit("/system.slice"), None);
        assert_eq!(unit("/"), None);
        assert_eq!(unit(""), None);
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

    /// Rules that fit processes of these traits in every way, and some that do not.
    fn any_rule() -> impl Strategy<Value = String> {
        let subject = prop::sample::select(vec![
            "pid:1",
            "pid:2",
            "name:a",
            "name:*",
            "name:b",
            "exe:/a",
            "exe:/*",
            "exe:*a",
            "unit:x.service",
            "unit:*.service",
            "unit:x*",
            "unit:top.slice",
            "cgroup:/top.slice*",
            "cgroup:*",
            "facing:clients",
        ]);
        let form = prop::sample::select(vec![
            "always-live @",
            "sink @",
            "may-pause @",
            "may-pause @ up-to 5s",
            "pause-limit @ up-to 7s",
        ]);
        (form, subject)
            .prop_map(|(form, subject)| form.replace('@', subject))
            .prop_filter("no rule", |text| text.parse::<Rule>().is_ok())
    }

    proptest! {
        #[test]
        fn the_closest_decides_and_the_first_among_equals(
            texts in prop::collection::vec(any_rule(), 0..12),
            pid in 1u32..4,
            facing: bool,
        ) {
            let policy = policy(&texts.join("\n"));
            let process = Traits {
                pid,
                name: "a",
                exe: "/a",
                cgroup: "/top.slice/x.service",
                facing,
            };
            let verdict = policy.of(&process);
            let fitting = |says: fn(&Rule) -> bool| {
                let rules = texts.iter().filter_map(|text| text.parse::<Rule>().ok());
                let fits = rules.filter(says).filter_map(|rule| {
                    Some((rule.subject.fits(&process)?, rule))
                });
                fits.collect::<Vec<_>>()
            };
            for (chosen, all) in [
                (verdict.treatment.map(|(_, by)| by), fitting(|rule| rule.treatment.is_some())),
                (verdict.limit.map(|(_, by)| by), fitting(|rule| rule.limit.is_some())),
            ] {
                prop_assert_eq!(chosen.is_none(), all.is_empty());
                let Some(chosen) = chosen else { continue };
                let best = all.iter().map(|(fit, _)| *fit).max();
                let first = all.iter().find(|(fit, _)| Some(*fit) == best);
                prop_assert_eq!(first.map(|(_, rule)| rule.to_string()), Some(chosen.rule));
            }
        }

        /// A rule that describes nobody more closely than another changes nothing by standing
        /// after it.
        #[test]
        fn a_repeated_rule_changes_nothing(
            texts in prop::collection::vec(any_rule(), 1..12), again in 0usize..12
        ) {
            let process = Traits {
                pid: 1,
                name: "a",
                exe: "/a",
                cgroup: "/top.slice/x.service",
                facing: true,
            };
            let once = policy(&texts.join("\n")).of(&process);
            let mut more = texts.clone();
            more.push(texts[again % texts.len()].clone());
            prop_assert_eq!(policy(&more.join("\n")).of(&process), once);
        }
    }
}

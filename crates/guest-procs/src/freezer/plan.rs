//! How each process is to be stopped: decided before anything is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use depgraph::ProcessId;

use super::Placed;

/// What is known of a control group.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    /// Its members and those of the groups below it, where they could be read.
    pub(super) members: Option<BTreeSet<u32>>,
    /// It is the topmost: it cannot freeze.
    pub(super) is_root: bool,
    /// Members may be moved to a group below it.
    pub(super) may_have_leaf: bool,
}

/// Processes that are stopped together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// With their whole group.
    Whole(PathBuf, Vec<ProcessId>),
    /// In a group of their own below theirs.
    Leaf(PathBuf, Vec<ProcessId>),
    /// By themselves.
    Traced(ProcessId),
}

/// Every process is in exactly one step, and no other process is in any.
pub(super) fn plan(processes: &[Placed], groups: &BTreeMap<PathBuf, Group>) -> Vec<Step> {
    let wanted: BTreeSet<u32> = processes.iter().map(|(process, _)| process.pid).collect();
    let mut whole: Vec<&Path> = Vec::new();
    // In this order a group comes after those above it.
    for (path, group) in groups {
        let all_wanted = group
            .members
            .as_ref()
            .is_some_and(|members| !members.is_empty() && members.is_subset(&wanted));
        let covered = whole.iter().any(|above| path.starts_with(above));
        if all_wanted && !group.is_root && !covered {
            whole.push(path);
        }
    }
    let mut steps = BTreeMap::<PathBuf, Step>::new();
    let mut traced = Vec::new();
    for (process, path) in processes {
        let group = path
            .as_ref()
            .and_then(|path| Some((path, groups.get(path)?)));
        let Some((path, group)) = group else {
            traced.push(Step::Traced(*process));
            continue;
        };
        let step = if let Some(above) = whole.iter().find(|above| path.starts_with(above)) {
            let step = || Step::Whole(above.to_path_buf(), Vec::new());
            steps.entry(above.to_path_buf()).or_insert_with(step)
        } else if group.may_have_leaf && !group.is_root {
            let step = || Step::Leaf(path.clone(), Vec::new());
            steps.entry(path.clone()).or_insert_with(step)
        } else {
            traced.push(Step::Traced(*process));
            continue;
        };
        if let Step::Whole(_, members) | Step::Leaf(_, members) = step {
            members.push(*process);
        }
    }
    steps.into_values().chain(traced).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn process(pid: u32) -> ProcessId {
        ProcessId { pid, start: 7 }
    }

    /// Groups with their own members; those below count with those above.
    fn groups(own: &[(&str, &[u32])]) -> BTreeMap<PathBuf, Group> {
        let group = |path: &str| {
            let below = own
                .iter()
                .filter(|(other, _)| Path::new(other).starts_with(path));
            Group {
                members: Some(below.flat_map(|(_, pids)| pids.iter().copied()).collect()),
                is_root: path == "/",
                may_have_leaf: path != "/" && !path.ends_with("no-leaf"),
            }
        };
        own.iter()
            .map(|(path, _)| (path.into(), group(path)))
            .collect()
    }

    const OWN: &[(&str, &[u32])] = &[
        ("/", &[1, 2]),
        ("/a", &[3, 4]),
        ("/a/b", &[5]),
        ("/a-b", &[6]),
        ("/no-leaf", &[7, 8]),
        ("/empty", &[]),
    ];

    fn planned(pids: &[u32]) -> Vec<Step> {
        let processes: Vec<_> = pids
            .iter()
            .map(|pid| {
                let own = OWN.iter().find(|(_, pids)| pids.contains(pid));
                (process(*pid), own.map(|(path, _)| path.into()))
            })
            .collect();
        plan(&processes, &groups(OWN))
    }

    fn whole(path: &str, pids: &[u32]) -> Step {
        Step::Whole(path.into(), pids.iter().copied().map(process).collect())
    }

    fn leaf(path: &str, pids: &[u32]) -> Step {
        Step::Leaf(path.into(), pids.iter().copied().map(process).collect())
    }

    #[test]
    fn a_group_with_all_below_it() {
        assert_eq!(
            planned(&[3, 4, 5, 6]),
            [whole("/a", &[3, 4, 5]), whole("/a-b", &[6])]
        );
        assert_eq!(planned(&[3, 5]), [leaf("/a", &[3]), whole("/a/b", &[5])]);
    }

    #[test]
    fn what_no_group_can_freeze_is_traced() {
        assert_eq!(planned(&[2]), [Step::Traced(process(2))]);
        assert_eq!(planned(&[7]), [Step::Traced(process(7))]);
        assert_eq!(planned(&[99]), [Step::Traced(process(99))]);
        assert_eq!(planned(&[7, 8]), [whole("/no-leaf", &[7, 8])]);
    }

    #[test]
    fn a_group_that_cannot_be_read_is_not_frozen_whole() {
        let unknown = Group {
            may_have_leaf: true,
            ..Group::default()
        };
        let steps = plan(
            &[(process(5), Some("/x".into()))],
            &[("/x".into(), unknown)].into(),
        );
        assert_eq!(steps, [leaf("/x", &[5])]);
    }

    proptest! {
        #[test]
        fn each_is_stopped_once_and_nobody_else(pids: BTreeSet<u8>) {
            let pids: Vec<u32> = pids.into_iter().map(|pid| u32::from(pid % 12)).collect();
            let pids: BTreeSet<u32> = pids.into_iter().collect();
            let mut stopped = Vec::new();
            for step in planned(&pids.iter().copied().collect::<Vec<_>>()) {
                match step {
                    Step::Whole(path, members) => {
                        let all = groups(OWN)[&path].members.clone().unwrap();
                        let named: BTreeSet<u32> = members.iter().map(|member| member.pid).collect();
                        prop_assert_eq!(all, named);
                        stopped.extend(members);
                    }
                    Step::Leaf(_, members) => stopped.extend(members),
                    Step::Traced(process) => stopped.push(process),
                }
            }
            let mut stopped: Vec<u32> = stopped.iter().map(|process| process.pid).collect();
            stopped.sort_unstable();
            prop_assert_eq!(stopped, pids.into_iter().collect::<Vec<_>>());
        }
    }
}

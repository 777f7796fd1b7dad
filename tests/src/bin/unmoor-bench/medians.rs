//! Runs of the same, and their medians.

use unmoor_tests::bench::{Mode, Trial};

/// The middle one; of an even number, the lower of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

/// All runs of one mode on one workload.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    pub(crate) workload: &'a str,
    pub(crate) mode: &'a str,
    pub(crate) trials: Vec<&'a Trial>,
}

impl<'a> Group<'a> {
    /// In the order in which they first occur.
    pub(crate) fn all(trials: &'a [Trial]) -> Vec<Self> {
        let mut groups: Vec<Group<'a>> = Vec::new();
        for trial in trials {
            let same = |group: &&mut Group<'_>| {
                group.workload == trial.workload && group.mode == trial.mode
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.trials.push(trial),
                None => groups.push(Group {
                    workload: &trial.workload,
                    mode: &trial.mode,
                    trials: vec![trial],
                }),
            }
        }
        groups
    }

    /// The runs of `mode` on a workload.
    pub(crate) fn find<'g>(
        groups: &'g [Group<'a>],
        workload: &str,
        mode: Mode,
    ) -> Option<&'g Self> {
        let title = mode.title();
        groups
            .iter()
            .find(|group| group.workload == workload && group.mode == title)
    }

    pub(crate) fn converged(&self) -> usize {
        self.trials
            .iter()
            .filter(|trial| trial.moved.converged)
            .count()
    }

    /// The median of a figure over the runs that have it.
    pub(crate) fn median(&self, figure: impl Fn(&Trial) -> Option<f64>) -> Option<f64> {
        median(
            self.trials
                .iter()
                .filter_map(|trial| figure(trial))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![2.0, 1.0]), Some(1.0));
        assert_eq!(median(vec![]), None);
    }
}

//! Samples, in bounded memory however long it takes.

use super::Sample;

/// Most samples that are kept: more than a chart has room for.
const KEPT_MAX: usize = 2048;
/// Least time between two samples once there were too many, in milliseconds.
const FIRST_GAP: u64 = 200;

/// Keeps samples evenly spaced, the first and the newest always.
#[derive(Debug, Default)]
pub(super) struct Samples {
    kept: Vec<Sample>,
    gap_ms: u64,
}

impl Samples {
    pub(super) fn push(&mut self, sample: Sample) {
        if let [.., before, last] = self.kept.as_mut_slice()
            && sample.t_ms < before.t_ms + self.gap_ms
        {
            *last = sample;
            return;
        }
        self.kept.push(sample);
        if self.kept.len() > KEPT_MAX {
            self.gap_ms = (2 * self.gap_ms).max(FIRST_GAP);
            for sample in std::mem::take(&mut self.kept) {
                self.push(sample);
            }
        }
    }

    pub(super) fn take(&mut self) -> Vec<Sample> {
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_samples_is_thinned_and_keeps_its_ends() {
        let mut samples = Samples::default();
        for i in 0..864_000 {
            samples.push(Sample {
                t_ms: 100 * i,
                ..Sample::default()
            });
            assert!(samples.kept.len() <= KEPT_MAX);
        }
        let kept = samples.take();
        assert!(kept.len() > KEPT_MAX / 4, "{}", kept.len());
        assert_eq!(kept.first().map(|one| one.t_ms), Some(0));
        assert_eq!(kept.last().map(|one| one.t_ms), Some(86_399_900));
        let gaps = kept.windows(2).map(|two| two[1].t_ms - two[0].t_ms);
        let (least, most) = (gaps.clone().min(), gaps.max());
        assert!(most <= least.map(|gap| 2 * gap + 200), "{least:?} {most:?}");
    }
}

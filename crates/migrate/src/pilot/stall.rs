//! Whether what is moved live converges.

/// A pass that brings more than this part of what came before does not shrink.
const SHRINKS: f64 = 0.9;
/// Weight of the newest pass.
const NEWEST: f64 = 0.5;

/// Notices a stall within two passes.
///
/// The first pass brings all memory and says nothing; from the second on, each is compared with
/// the smoothed size of those before it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stall {
    smoothed: Option<f64>,
    not_shrinking: u32,
}

impl Stall {
    /// A pass has brought so many bytes, of which `fits` may be left for the switchover. Yields
    /// whether this and the one before it have not shrunk.
    pub fn pass(&mut self, bytes: u64, fits: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let bytes_seen = bytes as f64;
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(bytes_seen);
            return false;
        };
        if bytes > fits && bytes_seen > SHRINKS * smoothed {
            self.not_shrinking += 1;
        } else {
            self.not_shrinking = 0;
        }
        self.smoothed = Some(smoothed + NEWEST * (bytes_seen - smoothed));
        self.not_shrinking >= 2
    }

    /// Something has changed: what was seen says nothing any more.
    pub fn forget(&mut self) {
        *self = Stall::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_stall(passes: &[u64]) -> Option<usize> {
        let mut stall = Stall::default();
        passes.iter().position(|bytes| stall.pass(*bytes, 30))
    }

    #[test]
    fn a_steady_pass_is_noticed_at_once() {
        assert_eq!(first_stall(&[600, 600, 600]), Some(2));
        assert_eq!(first_stall(&[100, 600, 620, 590]), Some(2));
    }

    #[test]
    fn one_odd_pass_is_no_stall() {
        assert_eq!(first_stall(&[600, 400, 450, 200, 150, 60, 20]), None);
    }

    #[test]
    fn what_shrinks_or_fits_is_none() {
        assert_eq!(first_stall(&[600, 480, 384, 307, 245, 196, 157]), None);
        assert_eq!(first_stall(&[600, 25, 25, 25, 25]), None);
    }
}

//! Where things are in a chart: times across, amounts upwards.

use std::fmt::Write;

/// The part of a chart with the data in it, in pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plot {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Plot {
    pub(super) fn right(&self) -> f64 {
        self.left + self.width
    }

    pub(super) fn bottom(&self) -> f64 {
        self.top + self.height
    }
}

/// The stretch of time that all charts share: from the start of QEMU's migration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Span {
    /// Its length in milliseconds, never 0.
    pub(super) fn length(&self) -> u64 {
        self.to.saturating_sub(self.from).max(1)
    }

    /// Where a moment is, within the plot.
    pub(super) fn x(&self, plot: &Plot, t_ms: u64) -> f64 {
        let passed = t_ms.clamp(self.from, self.from + self.length()) - self.from;
        plot.left + plot.width * ratio(passed, self.length())
    }

    /// A moment, counted from the span's beginning.
    pub(super) fn clock(&self, t_ms: u64) -> String {
        seconds(t_ms.saturating_sub(self.from))
    }

    /// Lines and labels of the axis of time.
    pub(super) fn axis(&self, plot: &Plot, svg: &mut String) {
        let step = nice(number(self.length()) / 8.0).max(1.0);
        let mut at = 0.0;
        while at <= number(self.length()) {
            let x = plot.left + plot.width * at / number(self.length());
            let (top, bottom, label_y) = (plot.top, plot.bottom(), plot.bottom() + 17.0);
            let label = tick(at / 1000.0, step / 1000.0);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}"/><text class="tick" x="{x:.1}" y="{label_y:.1}" text-anchor="middle">{label} s</text>"#
            );
            at += step;
        }
    }
}

/// An axis of bytes a second, upwards from 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    most: f64,
    step: f64,
}

impl Rates {
    /// With room for `most`.
    pub(super) fn up_to(most: f64) -> Self {
        let step = nice(most.max(1e6) / 4.0);
        Rates {
            most: (most.max(1e6) / step).ceil() * step,
            step,
        }
    }

    /// How high a rate is, in pixels.
    pub(super) fn height(&self, plot: &Plot, rate: f64) -> f64 {
        plot.height * (rate / self.most).clamp(0.0, 1.0)
    }

    /// Lines and labels.
    pub(super) fn axis(&self, plot: &Plot, svg: &mut String) {
        let mut at = 0.0;
        while at <= self.most * 1.001 {
            let y = plot.bottom() - self.height(plot, at);
            let (left, right, label_x, label_y) =
                (plot.left, plot.right(), plot.left - 8.0, y + 4.0);
            let label = tick(at / 1e6, self.step / 1e6);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}"/><text class="tick" x="{label_x:.1}" y="{label_y:.1}" text-anchor="end">{label} MB/s</text>"#
            );
            at += self.step;
        }
    }
}

/// The next larger of 1, 2 and 5 times a power of ten.
pub(super) fn nice(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    let fits = factors
        .iter()
        .find(|factor| *factor * power >= least * 0.999);
    fits.unwrap_or(&10.0) * power
}

/// A number with the decimals that the distance to the next one needs.
fn tick(value: f64, step: f64) -> String {
    let decimals = if step >= 0.999 {
        0
    } else if step >= 0.0999 {
        1
    } else if step >= 0.00999 {
        2
    } else {
        3
    };
    format!("{value:.decimals$}")
}

/// `1.25 s`.
pub(super) fn seconds(ms: u64) -> String {
    let digits = if ms < 100_000 { 2 } else { 1 };
    format!("{:.digits$} s", number(ms) / 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "for pixels and three digits")]
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

/// One part of another; 0 of nothing.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        number(part) / number(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers() {
        assert!((nice(0.7) - 1.0).abs() < 1e-9);
        assert!((nice(1.0) - 1.0).abs() < 1e-9);
        assert!((nice(30_000_000.0) - 50_000_000.0).abs() < 1.0);
        assert_eq!(tick(1.5, 0.5), "1.5");
        assert_eq!(tick(100.0, 50.0), "100");
    }

    #[test]
    fn a_moment_outside_the_span_is_at_its_edge() {
        let plot = Plot {
            left: 10.0,
            top: 0.0,
            width: 100.0,
            height: 10.0,
        };
        let span = Span { from: 50, to: 50 };
        for t in [0, 50, u64::MAX] {
            let x = span.x(&plot, t);
            assert!((10.0..=110.0).contains(&x), "{x}");
        }
    }
}

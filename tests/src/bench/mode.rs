//! By whom, and how, a VM is moved.

use std::time::Duration;

use lab::stock;

/// By whom, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// QEMU itself.
    Stock(stock::Mode),
    /// QEMU's plain pre-copy, encrypted by QEMU.
    StockTls,
    /// unmoor with every page live.
    Live,
    /// unmoor, pausing what nobody outside depends on.
    StopCopy,
    /// unmoor, sending what nobody outside depends on after the switchover.
    PostCopy,
    /// Pausing, encrypted: those above are not.
    Tls,
    /// unmoor with every page live, encrypted.
    LiveTls,
    /// unmoor with every page live, compressed as it pays, differences and all.
    LivePacked,
    /// Pausing, encrypted and compressed, as it is by default: those above are not compressed.
    Packed,
}

impl Mode {
    /// All, with the names that the benchmark's command line takes.
    pub const ALL: [(&'static str, Mode); 14] = [
        ("precopy", Mode::Stock(stock::Mode::PreCopy)),
        ("autoconverge", Mode::Stock(stock::Mode::AutoConverge)),
        ("xbzrle", Mode::Stock(stock::Mode::Xbzrle)),
        ("multifd", Mode::Stock(stock::Mode::Multifd)),
        ("postcopy", Mode::Stock(stock::Mode::PostCopy)),
        ("live", Mode::Live),
        ("stop-copy", Mode::StopCopy),
        ("post-copy", Mode::PostCopy),
        (
            "postcopy-preempt",
            Mode::Stock(stock::Mode::PostCopyPreempt),
        ),
        ("precopy-tls", Mode::StockTls),
        ("tls", Mode::Tls),
        ("live-tls", Mode::LiveTls),
        ("live-packed", Mode::LivePacked),
        ("packed", Mode::Packed),
    ];
    /// Those that it compares unless told otherwise: so many of them, from the first on.
    pub const USUAL: usize = 8;

    /// Its name in tables.
    pub fn title(self) -> String {
        match self {
            Mode::Stock(mode) => format!("QEMU {}", mode.name()),
            Mode::StockTls => "QEMU pre-copy, TLS".into(),
            Mode::Live => "unmoor live".into(),
            Mode::StopCopy => "unmoor stop-copy".into(),
            Mode::PostCopy => "unmoor post-copy".into(),
            Mode::LivePacked => "unmoor live, compressed".into(),
            Mode::LiveTls => "unmoor live, TLS".into(),
            Mode::Tls => "unmoor, TLS".into(),
            Mode::Packed => "unmoor, TLS, compressed".into(),
        }
    }
}

/// What a move may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The downtime limit that the user sets, the same for all.
    pub downtime: Duration,
    /// After this time it does not converge and is cancelled.
    pub cap: Duration,
}

impl Limits {
    /// QEMU's own downtime limit.
    pub fn capped(seconds: u64) -> Self {
        Limits {
            downtime: Duration::from_millis(300),
            cap: Duration::from_secs(seconds),
        }
    }
}

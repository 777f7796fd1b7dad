//! Measured migrations, for the benchmark and the demo: a workload in a guest that starts from a
//! saved state, clients outside that see what the move does to it, and a move by unmoor or by QEMU
//! itself.

mod jobs;
mod mode;
mod moving;
mod scene;
mod trial;
mod turn;
mod warm;
mod workload;

pub use jobs::{JobOutcome, Progress};
pub use mode::{Limits, Mode};
pub use moving::{Moved, RelayUse};
pub use scene::{AgentUse, Scene};
pub use trial::{Trial, run, run_with};
pub use turn::Turned;
pub use workload::{ALL, Job, Workload};

/// The link's rate in bytes a second, as it is set.
pub const LINK_RATE: f64 = 125e6;

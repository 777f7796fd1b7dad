//! What came of an attempt to stop processes.

use std::fmt;

use depgraph::ProcessId;

/// How processes are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// With the control group that is theirs alone.
    WholeGroup,
    /// In a control group made for them below theirs.
    OwnGroup,
    /// By tracing.
    Tracing,
}

/// Why a process was not stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The first process, the agent, its guardian and other children, or a thread of the kernel.
    Never,
    /// It has ended, or its id is another's now.
    Gone,
    /// It is frozen already.
    Already,
    /// It did not stand by the deadline, and runs on.
    Deadline,
    /// This process came into its group, and was not to be stopped.
    Joined(u32),
    /// It went wrong.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Never => f.write_str("is never stopped"),
            Refusal::Gone => f.write_str("has ended"),
            Refusal::Already => f.write_str("is frozen already"),
            Refusal::Deadline => f.write_str("did not stop in time"),
            Refusal::Joined(pid) => write!(f, "shares its control group with process {pid}"),
            Refusal::Failed(error) => f.write_str(error),
        }
    }
}

/// Processes that stand, and go on together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// How.
    pub means: Means,
    /// Who, with children that were born while they were stopped.
    pub members: Vec<ProcessId>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Those that stand.
    pub frozen: Vec<Frozen>,
    /// Those that do not, and why.
    pub refused: Vec<(ProcessId, Refusal)>,
}

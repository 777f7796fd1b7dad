//! Exit codes: what scripts may rely on. The manual page lists the same.

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Success = 0,
    /// Failed before or during the migration; the VM runs where it ran before.
    Failed = 1,
    /// The command line is wrong (the argument parser uses this too).
    Usage = 2,
    /// This VM, or this pair of hosts, cannot migrate like this; nothing was changed.
    Refused = 3,
    /// Ended by a signal or by `--timeout`; the VM runs where it ran before.
    Cancelled = 4,
    /// The connection was lost after the commit and the outcome is not known: the VM is paused at
    /// the source.
    InDoubt = 5,
    /// The migration failed and the VM could not be resumed by itself: the message says what to
    /// do.
    NeedsHelp = 6,
    /// `unmoor plan`: by its forecast the migration would not keep to the limits, or not end.
    GoalsNotMet = 7,
}

impl Exit {
    /// All codes with their meaning, for the help text.
    pub const HELP: &'static str = "\
Exit status:
  0  done
  1  failed; the VM runs on where it ran before
  2  wrong usage
  3  refused: this VM or these hosts cannot migrate like this; nothing was changed
  4  cancelled by a signal or --timeout; the VM runs on where it ran before
  5  in doubt: the connection was lost after the commit; the VM is paused at the source
  6  failed, and the VM could not be resumed by itself; the message says what to do
  7  plan: the goals cannot be met";
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        std::process::ExitCode::from(exit as u8)
    }
}

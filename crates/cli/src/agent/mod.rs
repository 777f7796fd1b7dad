//! The agent in the guest: talking to it, and telling people what it says.

mod check;
mod client;
mod dot;
pub(crate) mod explain;
mod line;
mod probes;
mod table;
mod thawing;
mod words;

pub(crate) use check::Check;
pub use client::{AgentError, Client, Pages, Report};
pub(crate) use line::{Heard, Line};
pub(crate) use probes::LostProbe;
pub(crate) use thawing::{Thawing, could_not_thaw};
pub use words::Words;
pub(crate) use words::printable;

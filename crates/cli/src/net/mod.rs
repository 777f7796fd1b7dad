//! The connection between the two halves.

mod link;
mod trust;

pub(crate) use link::{ConnectError, Link, accept, connect, listen};
pub(crate) use trust::{Trust, TrustError};

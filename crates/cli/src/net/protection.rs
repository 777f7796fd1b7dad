//! How a connection is protected, as the user asks for it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::plain::Plain;
use crate::args::NetArgs;

/// What protects a connection. The guardian is told it, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Protection {
    /// TLS with certificates on both sides, from this folder if one is named.
    Tls(Option<PathBuf>),
    /// Nothing.
    Plain(Plain),
}

impl Protection {
    pub(crate) fn from_args(args: &NetArgs) -> Self {
        match (args.insecure, args.insecure_anywhere) {
            (_, true) => Protection::Plain(Plain::Anywhere),
            (true, false) => Protection::Plain(Plain::Private),
            (false, false) => Protection::Tls(args.tls_dir.clone()),
        }
    }
}

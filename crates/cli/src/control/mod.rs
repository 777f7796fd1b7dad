//! What runs on this host can be asked how it stands, and be told to change something.
//!
//! ```text
//! unmoor status|tune|resolve ──request──► a socket in the run folder ──► unmoor send|receive
//!                            ◄─answer────
//! ```
//!
//! One line of JSON each way. The folder belongs to its user alone.

mod client;
mod journal;
mod message;
mod place;
mod resolve;
mod server;
mod status;
mod tune;

pub(crate) use journal::{Kept, keep as keep_in_doubt};
pub(crate) use message::{Answer, Request, Role, Status};
pub(crate) use place::{make as make_folder, state_folder};
pub(crate) use server::{Control, clear_away};

pub(crate) use resolve::run as resolve;
pub(crate) use status::run as status;
pub(crate) use tune::run as tune;

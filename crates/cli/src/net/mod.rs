//! The connection between the two halves.
//!
//! ```text
//! protection   what the user asks for: TLS with which certificates, or plain text
//! credentials  the certificates' files
//! connect      from the source: a Link
//! door         at the destination: who knocks, and who becomes a Link
//! link         a connection, whichever it is: receive and send without waiting
//! channel      what is said over one Link, over several, or over one after another
//! tls          the encrypted kind
//! ```

mod channel;
mod connect;
mod credentials;
mod door;
mod identity;
mod link;
mod plain;
mod protection;
mod tls;

pub(crate) use channel::{Channel, Hurry, Side};
pub(crate) use connect::{ConnectError, Connector, host_of};
pub(crate) use credentials::certificates;
pub(crate) use door::{Door, refuse};
pub(crate) use identity::Identity;
pub(crate) use link::Link;
pub(crate) use protection::Protection;

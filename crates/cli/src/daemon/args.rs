//! The daemon's command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, ValueHint};

use super::name::Name;
use crate::args::{CompressArg, NetArgs, SOCKETS};
use crate::bandwidth::Bandwidth;
use crate::exit::Exit;

/// Carries the migrations of VMs that libvirt manages, between hosts on each of which it runs.
///
/// For each host named by --peer it makes sockets DIR/PEER/0.sock, 1.sock and so on. libvirt moves a VM
/// through one of them: `virsh migrate --live --p2p --desturi URI --migrateuri
/// unix:DIR/PEER/0.sock DOMAIN`. libvirt decides where the VM runs, as ever; the relay proves that its
/// memory is equal before it may.
#[derive(Debug, Clone, Parser)]
#[command(name = "unmoord", version, after_help = Exit::HELP, max_term_width = 100)]
pub struct DaemonArgs {
    /// Address to listen on for other hosts.
    #[arg(long, value_name = "HOST:PORT", default_value = "[::]:49140", value_hint = ValueHint::Hostname)]
    pub listen: String,

    /// The name that other hosts know this one by; its host name up to the first dot unless given.
    #[arg(long, value_name = "NAME")]
    pub name: Option<Name>,

    /// A host that VMs may move to, and where its unmoord listens; may be given several times.
    #[arg(long = "peer", value_name = "NAME=HOST:PORT")]
    pub peers: Vec<Peer>,

    /// Folder of the sockets that libvirt and QEMU use, the same on all hosts. QEMU's user has to be
    /// able to make sockets in the folder of this host's own name.
    #[arg(long, value_name = "DIR", default_value = SOCKETS, value_hint = ValueHint::DirPath)]
    pub sockets: PathBuf,

    /// Sockets for each peer: VMs that can move to it at once.
    #[arg(long, value_name = "COUNT", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=64))]
    pub slots: u8,

    /// Migrations at once, to and from here; others are refused.
    #[arg(long, value_name = "COUNT", default_value = "8", value_parser = clap::value_parser!(u8).range(1..=128))]
    pub sessions: u8,

    /// Most that each migration from here may send: a rate such as 1Gbit or 100MB (per second).
    #[arg(long, value_name = "RATE")]
    pub bandwidth: Option<Bandwidth>,

    /// How memory is compressed on its way: auto (as it pays, measured), none, lz4, zstd or
    /// zstd:LEVEL.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub compress: CompressArg,

    /// Lets in only sources whose certificate has this name; may be given several times. Unless
    /// given, everybody with a certificate from the same authority.
    #[arg(long, value_name = "NAME")]
    pub tls_allow: Vec<String>,

    /// Serves metrics for Prometheus at this address, under /metrics.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,

    #[command(flatten)]
    /// The connection.
    pub net: NetArgs,

    /// Prints one JSON event a line.
    #[arg(long)]
    pub json: bool,
}

/// A host that VMs may move to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: Name,
    /// Where it listens.
    pub address: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text
            .split_once('=')
            .filter(|(_, address)| address.contains(':'))
            .ok_or("write NAME=HOST:PORT")?;
        Ok(Peer {
            name: name.parse()?,
            address: address.to_owned(),
        })
    }
}

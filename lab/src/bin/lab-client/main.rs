//! Clients of the guest, run outside of it: each prints `warm` when the guest has answered for the
//! first time, and a JSON report when its standard input closes. A line `mark NAME` there begins a
//! window, for which the report has figures of its own.
//!
//! ```text
//! lab-client redis ADDRESS RATE         requests a second
//! lab-client echo ADDRESS INTERVAL      microseconds
//! lab-client peer ADDRESS INTERVAL      waits there for a call, then asks at intervals
//! ```

mod echo;
mod peer;
mod record;
mod redis;
mod timing;

use anyhow::{Result, bail};

/// Its nice value.
const PRIORITY: i32 = -10;

fn main() -> Result<()> {
    // A client is a machine of its own, which does not wait for the processors of the hosts. Where
    // that is not allowed, it is slower.
    let _ = rustix::process::setpriority_process(None, PRIORITY);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["redis", address, rate] => redis::run(address.parse()?, rate.parse()?),
        ["echo", address, interval] => echo::run(address.parse()?, interval.parse()?),
        ["peer", address, interval] => peer::run(address.parse()?, interval.parse()?),
        _ => bail!("usage: lab-client redis ADDRESS RATE | echo|peer ADDRESS INTERVAL"),
    }
}

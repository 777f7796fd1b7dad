//! Clients of the guest, run outside of it: each prints `warm` when the guest has answered for the
//! first time, and a JSON report when its standard input closes.
//!
//! ```text
//! lab-client redis ADDRESS RATE         requests a second
//! lab-client echo ADDRESS INTERVAL      microseconds
//! ```

mod echo;
mod redis;
mod timing;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["redis", address, rate] => redis::run(address.parse()?, rate.parse()?),
        ["echo", address, interval] => echo::run(address.parse()?, interval.parse()?),
        _ => bail!("usage: lab-client redis ADDRESS RATE | echo ADDRESS INTERVAL"),
    }
}

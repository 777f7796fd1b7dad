//! How much memory a VM uses and how fast it is written, as far as QEMU can tell.

use rustix::net::sockopt::socket_peercred;
use serde_json::json;

use crate::{Error, Vm};

impl Vm {
    /// Memory of QEMU's process that is resident, in bytes: about what the guest has ever touched.
    /// Nothing where that cannot be read, such as from another host's or container's process.
    pub fn resident_bytes(&self) -> Option<u64> {
        let qemu = socket_peercred(self.fd()).ok()?.pid.as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{qemu}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(kib.saturating_mul(1024))
    }

    /// Lets QEMU watch for so many seconds how fast the guest writes memory, by comparing some of
    /// its pages. The guest does not notice.
    pub fn watch_writes(&mut self, seconds: u64) -> Result<(), Error> {
        self.ask("calc-dirty-rate", &json!({"calc-time": seconds}))?;
        Ok(())
    }

    /// Bytes a second that are written, each page counted once; nothing while QEMU still watches.
    pub fn written_per_s(&mut self) -> Result<Option<u64>, Error> {
        let answer = self.ask("query-dirty-rate", &json!({}))?;
        let mib = answer["dirty-rate"].as_u64();
        Ok(mib.map(|mib| mib.saturating_mul(1 << 20)))
    }
}

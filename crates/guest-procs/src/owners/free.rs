//! Which page frames are free: `/proc/kpageflags`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;

use guest_proto::{PageSet, PageSetBuilder};

use super::RUNS_MAX;
use super::free_rules::{self, FreePages};
use super::pagemap::{PAGE, Pagemap};
use crate::about;

/// In a block of the buddy allocator, first of it or not.
const BUDDY: u64 = 1 << 10;

/// The frames that nobody uses at this moment; a hint, since that changes at once. Those that wait
/// on a CPU's own list look used.
pub fn free_pages() -> io::Result<PageSet> {
    let iomem = fs::read_to_string("/proc/iomem").map_err(about("/proc/iomem"))?;
    let ram = ram(&iomem);
    if ram.is_empty() {
        let message = "/proc/iomem withholds where RAM is: CAP_SYS_ADMIN is needed";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let path = "/proc/kpageflags";
    let file = File::open(path).map_err(about(path))?;
    let mut pagemap = Pagemap::default();
    let mut frames = PageSetBuilder::new(RUNS_MAX);
    for range in ram {
        pagemap
            .words(&file, range, |frame, flags| {
                if flags & BUDDY != 0 {
                    frames.push(frame);
                }
            })
            .map_err(about(path))?;
    }
    Ok(frames.build())
}

/// Frames of RAM, without the hole for PCI devices between them.
fn ram(iomem: &str) -> Vec<Range<u64>> {
    let range = |line: &str| {
        let (addresses, name) = line.split_once(" : ")?;
        let (first, last) = addresses.split_once('-')?;
        let first = u64::from_str_radix(first, 16).ok()?;
        let end = u64::from_str_radix(last, 16).ok()?.checked_add(1)?;
        (name == "System RAM" && end > PAGE).then_some(first.div_ceil(PAGE)..end / PAGE)
    };
    iomem.lines().filter_map(range).collect()
}

/// Whether pages that are free may be left behind: whether nothing in the guest relies on what
/// they hold.
pub fn free_pages_safe() -> FreePages {
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let config = fs::read_to_string(format!("/boot/config-{}", release.trim())).ok();
    free_rules::judge(&cmdline, config.as_deref(), || kernel_log().ok())
}

/// What is left of the kernel's log.
fn kernel_log() -> io::Result<String> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")?;
    let mut log = String::new();
    // One read, one message.
    let mut message = [0; 8192];
    loop {
        match file.read(&mut message) {
            Ok(0) => return Ok(log),
            Ok(count) => log.push_str(&String::from_utf8_lossy(&message[..count])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(log),
            // A message was overwritten before it could be read: the next is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hole_is_left_out() {
        let iomem = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-7ffdffff : System RAM
  01000000-01e00dc0 : Kernel code
80000000-febfffff : PCI Bus 0000:00
100000000-17fffffff : System RAM
";
        assert_eq!(ram(iomem), [1..0x9f, 0x100..0x7ffe0, 0x100000..0x180000]);
        assert_eq!(ram("00000000-00000000 : System RAM\n"), []);
        assert_eq!(ram("nonsense\nx-y : System RAM\n"), []);
    }
}

//! `PAGEMAP_SCAN` (kernel 6.7 and newer): passes over what is not there in one go.
#![expect(unsafe_code, reason = "an ioctl that neither std nor rustix knows")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use super::pagemap;

/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_ZERO_PAGE: u64 = 1 << 5;
/// Regions that are asked for at once.
const REGIONS: usize = 512;
/// A gap that is cheaper to read than to leave out.
const GAP: u64 = 64 * pagemap::PAGE;

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Default)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// Whether this kernel can.
pub(crate) fn supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| {
        pagemap::open(std::process::id())
            .and_then(|pagemap| scan(&pagemap, 0..0, &mut [Region::default()]))
            .is_ok()
    })
}

/// Addresses within `ranges` with anonymous pages in memory; small gaps are not left out.
pub(crate) fn anonymous(pagemap: &File, ranges: &[Range<u64>]) -> io::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut regions = [Region::default(); REGIONS];
    for range in ranges {
        let mut at = range.start;
        while at < range.end {
            let (count, end) = scan(pagemap, at..range.end, &mut regions)?;
            for region in regions.iter().take(count) {
                match found.last_mut() {
                    Some(last) if region.start.saturating_sub(last.end) <= GAP => {
                        last.end = region.end;
                    }
                    _ => found.push(region.start..region.end),
                }
            }
            if end <= at {
                break;
            }
            at = end;
        }
    }
    Ok(found)
}

/// One call: how many regions there are, and up to where the walk came.
fn scan(pagemap: &File, range: Range<u64>, regions: &mut [Region]) -> io::Result<(usize, u64)> {
    let mut argument = Argument {
        size: size_of::<Argument>() as u64,
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: IS_FILE | IS_ZERO_PAGE,
        category_mask: IS_FILE | IS_ZERO_PAGE | IS_PRESENT,
        return_mask: IS_PRESENT,
        ..Argument::default()
    };
    // SAFETY: the argument and the regions that it points to are writable and outlive the call;
    // the kernel is told how large both are.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    match usize::try_from(count) {
        Ok(count) => Ok((count, argument.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only where the kernel that runs the tests can.
    #[test]
    fn finds_what_is_there() {
        if !supported() {
            return;
        }
        let pages = 4096u64;
        let mut memory = vec![0u8; usize::try_from(pages * pagemap::PAGE).unwrap()];
        let base = (memory.as_ptr() as u64).next_multiple_of(pagemap::PAGE);
        let written =
            usize::try_from(base - memory.as_ptr() as u64 + 2000 * pagemap::PAGE).unwrap();
        std::hint::black_box(&mut memory)[written] = 1;
        let file = pagemap::open(std::process::id()).unwrap();
        let all = base..base + (pages - 1) * pagemap::PAGE;
        let found = anonymous(&file, &[all]).unwrap();
        let address = base + 2000 * pagemap::PAGE;
        assert!(
            found.iter().any(|range| range.contains(&address)),
            "{found:x?}"
        );
        // A huge page at most.
        let bytes: u64 = found.iter().map(|range| range.end - range.start).sum();
        assert!(bytes <= 4 << 20, "{found:x?}");
    }
}

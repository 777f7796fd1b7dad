//! `/proc/PID/maps`, `smaps` and `status`: text only.

use std::ops::Range;

/// Mappings that can hold anonymous pages; those that adjoin as one.
pub(crate) fn private(maps: &str) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    for range in maps.lines().filter_map(mapping).flatten() {
        add(&mut ranges, range);
    }
    ranges
}

/// The same from `smaps`, but only those that do hold some.
pub(crate) fn private_and_used(smaps: &str) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(next) = mapping(line) {
            current = next;
        } else if kib(line, "Anonymous:").is_some_and(|kib| kib > 0)
            && let Some(range) = current.take()
        {
            add(&mut ranges, range);
        }
    }
    ranges
}

/// The value of a line `KEY n kB`.
pub(crate) fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// A line that describes a mapping, and its addresses if it can hold anonymous pages.
fn mapping(line: &str) -> Option<Option<Range<u64>>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hexadecimal = |digits| u64::from_str_radix(digits, 16).ok();
    let range = hexadecimal(start)?..hexadecimal(end)?;
    let permissions = fields.next()?;
    let name = fields.nth(3).unwrap_or("");
    let of_kernel = ["[vvar", "[vdso]", "[vsyscall]", "[uprobes]"];
    let fits = permissions.ends_with('p')
        && range.start < range.end
        && !of_kernel.iter().any(|prefix| name.starts_with(prefix));
    Some(fits.then_some(range))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAPS: &str = "\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/with space
00452000-00453000 rw-p 00000000 00:00 0
7f0000000000-7f0000100000 rw-s 00000000 00:01 9   /dev/zero (deleted)
7f0000100000-7f0000200000 ---p 00000000 00:00 0
7ffff7fc1000-7ffff7fc5000 r--p 00000000 00:00 0   [vvar]
7ffff7fc5000-7ffff7fc7000 r--p 00000000 00:00 0   [vvar_vclock]
7ffff7fc7000-7ffff7fc9000 r-xp 00000000 00:00 0   [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0   [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";

    #[test]
    fn shared_and_the_kernels_own_are_left_out() {
        assert_eq!(
            private(MAPS),
            [
                0x400000..0x453000,
                0x7f00_0010_0000..0x7f00_0020_0000,
                0x7fff_fffd_e000..0x7fff_ffff_f000
            ]
        );
    }

    #[test]
    fn what_holds_nothing_anonymous_is_left_out() {
        let smaps = "\
00400000-00452000 r-xp 00000000 08:02 17 /bin/a
Rss:                 328 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00652000-00653000 rw-p 00052000 08:02 17 /bin/a
Rss:                   4 kB
Anonymous:             4 kB
00653000-00654000 rw-s 00052000 08:02 17 /bin/a
Anonymous:             4 kB
";
        let found = private_and_used(smaps);
        assert_eq!(found.first(), Some(&(0x652000..0x653000)));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn values_have_a_key() {
        let status = "Name:\ta\nRssAnon:\t    5412 kB\nRssFile:\t 3 kB\n";
        assert_eq!(kib(status, "RssAnon:"), Some(5412));
        assert_eq!(kib(status, "RssShmem:"), None);
    }

    proptest! {
        #[test]
        fn anything_can_be_parsed(text: String) {
            for range in private(&text).into_iter().chain(private_and_used(&text)) {
                prop_assert!(range.start < range.end);
            }
        }
    }
}

//! Whether a kernel relies on what free pages hold.
//!
//! It does in three cases: pages are zeroed when they are *freed* (`init_on_free`), and whoever
//! wants a zeroed page gets them as they are; they are poisoned (`page_poison`), and checked for
//! it when they are handed out; or `debug_pagealloc` does something of that kind. Zeroing when
//! they are handed out (`init_on_alloc`, which Debian and Ubuntu set) overwrites whatever was
//! there, and so says nothing.
//!
//! Poisoning and debugging are off unless the command line, or a kernel built for debugging, says
//! otherwise. What `init_on_free` is without a word on the command line was chosen when the kernel
//! was built: that must be known, from its configuration or from what it said at boot.

use std::fmt;

/// Whether free pages may be left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreePages {
    /// Nothing relies on what they hold.
    Safe,
    /// Something does, or that is not known.
    Unsafe(String),
}

impl fmt::Display for FreePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreePages::Safe => f.write_str("safe"),
            FreePages::Unsafe(reason) => write!(f, "unsafe: {reason}"),
        }
    }
}

/// What three sources together say; the log is read only if the others do not suffice.
pub(crate) fn judge(
    cmdline: &str,
    config: Option<&str>,
    log: impl FnOnce() -> Option<String>,
) -> FreePages {
    let configured = |option: &str| {
        let line = format!("{option}=y");
        config.is_some_and(|config| config.lines().any(|known| known == line))
    };
    let unsafe_if = |reason: &str| FreePages::Unsafe(reason.to_owned());
    for (parameter, default) in [
        ("page_poison", None),
        (
            "debug_pagealloc",
            Some("CONFIG_DEBUG_PAGEALLOC_ENABLE_DEFAULT"),
        ),
    ] {
        let on = switch(cmdline, parameter).unwrap_or_else(|| default.is_some_and(configured));
        if on {
            return FreePages::Unsafe(format!("{parameter} is on"));
        }
    }
    match switch(cmdline, "init_on_free") {
        Some(true) => return unsafe_if("init_on_free is on"),
        Some(false) => return FreePages::Safe,
        None => {}
    }
    if config.is_some() {
        return if configured("CONFIG_INIT_ON_FREE_DEFAULT_ON") {
            unsafe_if("init_on_free is on in this kernel")
        } else {
            FreePages::Safe
        };
    }
    match log().as_deref().and_then(heap_free) {
        Some(false) => FreePages::Safe,
        Some(true) => unsafe_if("init_on_free is on in this kernel"),
        None => unsafe_if("whether init_on_free is on is not known"),
    }
}

/// A switch on the command line, read as the kernel reads it: the last one counts, its first
/// letters decide, and what makes no sense does not count.
fn switch(cmdline: &str, name: &str) -> Option<bool> {
    let words = cmdline.split_ascii_whitespace();
    // What follows is for the first process.
    let words = words.take_while(|word| *word != "--");
    let values = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    values
        .filter_map(|value| match value.trim_matches('"').as_bytes() {
            [b'y' | b'Y' | b't' | b'T' | b'1', ..] | [b'o' | b'O', b'n' | b'N', ..] => Some(true),
            [b'n' | b'N' | b'f' | b'F' | b'0', ..] | [b'o' | b'O', b'f' | b'F', ..] => Some(false),
            _ => None,
        })
        .last()
}

/// `mem auto-init: stack:off, heap alloc:on, heap free:off`
fn heap_free(log: &str) -> Option<bool> {
    let line = log.lines().find(|line| line.contains(";mem auto-init: "))?;
    if line.contains("heap free:off") {
        return Some(false);
    }
    line.contains("heap free:on").then_some(true)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEBIAN: &str = "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y\n\
        # CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n# CONFIG_PAGE_POISONING is not set\n";
    const LOG: &str = "6,9,0,-;mem auto-init: stack:off, heap alloc:on, heap free:off\n";

    fn safe(cmdline: &str, config: Option<&str>, log: Option<&str>) -> bool {
        judge(cmdline, config, || log.map(str::to_owned)) == FreePages::Safe
    }

    #[test]
    fn debian_is_safe_as_it_comes() {
        assert!(safe("quiet", Some(DEBIAN), None));
        assert!(safe("quiet", None, Some(LOG)));
        assert!(safe("init_on_free=0", None, None));
    }

    #[test]
    fn what_is_not_known_is_unsafe() {
        assert!(!safe("quiet", None, None));
        assert!(!safe("init_on_alloc=1", None, None));
        assert!(!safe(
            "",
            None,
            Some("6,9,0,-;mem auto-init: heap free:perhaps\n")
        ));
        // Not from the kernel's own line.
        assert!(!safe("", None, Some("6,9,0,-;I say heap free:off\n")));
    }

    #[test]
    fn the_command_line_comes_first() {
        for cmdline in [
            "init_on_free=1",
            "a init_on_free=on b",
            "init_on_free=0 init_on_free=yes",
            "page_poison=on",
            "debug_pagealloc=1 init_on_free=0",
        ] {
            assert!(!safe(cmdline, Some(DEBIAN), Some(LOG)), "{cmdline}");
        }
        let kernel = "CONFIG_INIT_ON_FREE_DEFAULT_ON=y\n";
        assert!(!safe("", Some(kernel), Some(LOG)));
        assert!(safe("init_on_free=off", Some(kernel), Some(LOG)));
        assert!(safe("-- init_on_free=1", Some(DEBIAN), None));
        let debugging = "CONFIG_DEBUG_PAGEALLOC_ENABLE_DEFAULT=y\n";
        assert!(!safe("", Some(debugging), None));
        assert!(safe("debug_pagealloc=off", Some(debugging), None));
    }

    #[test]
    fn a_kernel_that_says_so_zeroes() {
        let log = LOG.replace("free:off", "free:on");
        assert!(!safe("", None, Some(&log)));
    }

    proptest! {
        #[test]
        fn anything_can_be_read(cmdline: String, config: Option<String>, log: Option<String>) {
            judge(&cmdline, config.as_deref(), || log);
        }
    }
}

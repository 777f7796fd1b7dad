//! A source half, or somebody in its place, and the QEMU here.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| migrate::fuzz_entry::destination(data));

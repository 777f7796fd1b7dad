//! A destination half, or somebody in its place.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| migrate::fuzz_entry::source(data));

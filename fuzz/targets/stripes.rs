//! A stream in chunks over several connections.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::fuzz_entry::assemble(data));

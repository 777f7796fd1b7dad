//! Compressed batches, and pages told by others.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pack::fuzz_entry::unpack(data));

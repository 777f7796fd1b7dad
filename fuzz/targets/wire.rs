//! What a peer sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wire::fuzz_entry::decode(data));

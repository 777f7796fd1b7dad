//! QEMU's stream, as the source half reads it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qemu_stream::fuzz_entry::stream(data));

//! QEMU's return path, as the destination half reads it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qemu_stream::fuzz_entry::return_path(data));

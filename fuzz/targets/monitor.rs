//! QEMU's monitor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypervisor::fuzz_entry::monitor(data));

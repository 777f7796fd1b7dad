//! What a guest sends to the host, and a host to the agent.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    guest_proto::fuzz_entry::answers(data);
    guest_proto::fuzz_entry::requests(data);
});

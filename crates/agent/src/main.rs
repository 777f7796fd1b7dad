//! Unmoor's agent in the guest.
fn main() {}

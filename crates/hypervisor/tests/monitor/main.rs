//! Against a scripted monitor: a mock of QEMU's answers, to reach states and failures that a real
//! QEMU does not offer on demand. The real one is exercised by the end-to-end tests.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod check;
mod conversation;
mod recovery;
mod script;
mod settings;

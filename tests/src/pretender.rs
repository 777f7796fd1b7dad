//! In place of QEMU and an agent in a guest: whatever a test wants to be said.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

use anyhow::Result;
use guest_proto::{Answer, Decoder, ToAgent, ToHost, encode};

/// Answers each request of one host with what `answer` makes of it, on the socket `agent` in the
/// folder.
pub fn pretend(
    answer: impl Fn(&ToAgent) -> Vec<u8> + Send + 'static,
) -> Result<(tempfile::TempDir, JoinHandle<()>)> {
    let folder = tempfile::tempdir()?;
    let listener = UnixListener::bind(folder.path().join("agent"))?;
    let agent = thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        let mut decoder = Decoder::new();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            decoder.push(&buffer[..count]);
            while let Some(request) = decoder.take::<ToAgent>() {
                // The host may give up in the middle.
                if stream.write_all(&answer(&request)).is_err() {
                    return;
                }
            }
        }
    });
    Ok((folder, agent))
}

/// An answer, or a part of it, as it goes to the host.
pub fn message(to: &ToAgent, last: bool, answer: Answer) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message = ToHost {
        session: to.session,
        id: to.id,
        last,
        answer,
    };
    // One that does not fit is not sent: the test fails for want of an answer.
    let _ = encode(&message, &mut bytes);
    bytes
}

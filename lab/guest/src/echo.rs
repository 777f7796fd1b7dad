//! Answers UDP and TCP with what it gets.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;

use crate::Outcome;

pub(crate) fn run(port: &str) -> Outcome {
    let port: u16 = port.parse()?;
    let udp = UdpSocket::bind(("0.0.0.0", port))?;
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            if let Ok((count, from)) = udp.recv_from(&mut buffer) {
                // An answer that cannot be sent is a lost packet: the client counts those.
                let _ = udp.send_to(&buffer[..count], from);
            }
        }
    });
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming().flatten() {
        thread::spawn(move || serve(stream));
    }
    Ok(())
}

fn serve(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = [0; 2048];
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

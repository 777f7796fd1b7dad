//! TLS over a socket that never waits.
//!
//! What is read comes in one call for many records and is decrypted from our buffer; what is
//! written is encrypted only when the socket has taken everything before, so that hardly anything
//! is queued here.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig, Connection, Error, ServerConfig};

use super::Identity;

/// Bytes read from the socket at once. What they hold fits what a reader has room for.
const READ_SIZE: usize = 192 << 10;
/// Bytes encrypted at once.
const WRITE_SIZE: usize = 128 << 10;
/// Room for those, and for what the protocol has to say by itself.
const BUFFER_LIMIT: usize = WRITE_SIZE + (64 << 10);

/// An encrypted connection's state.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    incoming: Vec<u8>,
}

impl Session {
    pub(super) fn client(config: Arc<ClientConfig>, peer: ServerName<'static>) -> io::Result<Self> {
        let client = rustls::ClientConnection::new(config, peer).map_err(io::Error::other)?;
        Ok(Self::new(client.into()))
    }

    pub(super) fn server(config: Arc<ServerConfig>) -> io::Result<Self> {
        let server = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(Self::new(server.into()))
    }

    fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(BUFFER_LIMIT));
        Session {
            connection,
            incoming: Vec::new(),
        }
    }

    /// Goes on with the handshake as far as the peer lets it; tells whether it is over.
    pub(super) fn shake_hands(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        loop {
            self.flush(stream)?;
            if !self.connection.is_handshaking() {
                return Ok(true);
            }
            match self.connection.read_tls(stream) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if would_block(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
            self.process(stream)?;
        }
    }

    pub(super) fn has_shaken_hands(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Whether something waits for the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Writes what waits; it may not all go.
    pub(super) fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(stream) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if would_block(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Version and cipher, for people.
    pub(super) fn describe(&self) -> String {
        let version = self.connection.protocol_version();
        let suite = self.connection.negotiated_cipher_suite();
        let version = version.and_then(|version| version.as_str().map(str::to_owned));
        let suite = suite.and_then(|suite| suite.suite().as_str().map(str::to_owned));
        format!(
            "{} {}",
            version.unwrap_or_default().replace("TLSv1_3", "TLS 1.3"),
            suite.unwrap_or_default().trim_start_matches("TLS13_")
        )
    }

    /// Whose certificate the peer has shown.
    pub(super) fn peer(&self) -> Identity {
        let chain = self.connection.peer_certificates().unwrap_or_default();
        chain
            .first()
            .map(|certificate| Identity::of(certificate))
            .unwrap_or_default()
    }

    /// The two together, as a stream.
    pub(super) fn over<'a>(&'a mut self, stream: &'a mut TcpStream) -> Encrypted<'a> {
        Encrypted {
            session: self,
            stream,
        }
    }

    fn process(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        match self.connection.process_new_packets() {
            Ok(_) => Ok(()),
            Err(error) => {
                // The peer is told why, if its socket takes it.
                let _ = self.flush(stream);
                Err(io::Error::new(ErrorKind::InvalidData, Refusal(error)))
            }
        }
    }
}

/// An encrypted connection as a stream of bytes that never waits.
pub(super) struct Encrypted<'a> {
    session: &'a mut Session,
    stream: &'a mut TcpStream,
}

impl Read for Encrypted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let session = &mut *self.session;
        let mut filled = drain(&mut session.connection, buf)?;
        if filled == 0 {
            session.incoming.resize(READ_SIZE, 0);
            let count = self.stream.read(&mut session.incoming)?;
            if count == 0 {
                return Ok(0);
            }
            let incoming = std::mem::take(&mut session.incoming);
            let mut rest = &incoming[..count];
            while !rest.is_empty() {
                session.connection.read_tls(&mut rest)?;
                session.process(self.stream)?;
                filled += drain(&mut session.connection, &mut buf[filled..])?;
            }
            session.incoming = incoming;
        }
        match filled {
            // Only part of a record, or the protocol's own business.
            0 => Err(ErrorKind::WouldBlock.into()),
            filled => Ok(filled),
        }
    }
}

/// What has been decrypted.
fn drain(connection: &mut Connection, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match connection.reader().read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if would_block(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

impl Write for Encrypted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.session.flush(self.stream)?;
        if self.session.wants_write() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = buf.len().min(WRITE_SIZE);
        let taken = self.session.connection.writer().write(&buf[..count])?;
        self.session.flush(self.stream)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.session.flush(self.stream)
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Why the encryption did not come about, and what to do.
#[derive(Debug)]
struct Refusal(Error);

impl std::error::Error for Refusal {}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&match &self.0 {
            Error::InvalidCertificate(error) => of_certificate(error),
            Error::NoCertificatesPresented => {
                "the other side shows no certificate: name its folder there with --tls-dir".into()
            }
            Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
                "the other side does not speak TLS: one of the two was started with --insecure, or something else is there".into()
            }
            Error::PeerIncompatible(_) => {
                "the other side does not speak TLS 1.3, and nothing older is accepted".into()
            }
            Error::AlertReceived(alert) => of_alert(*alert),
            error => error.to_string(),
        })
    }
}

fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: issue a new one with `unmoor cert issue`".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: set the clocks of the two hosts".into()
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is not from the authority that this side trusts: both hosts need the same ca-cert.pem, and certificates issued by it".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another host: name that with --tls-hostname, or issue one that has this name or address in it".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for this side of a connection: a server wants server-cert.pem, a client client-cert.pem".into()
        }
        error => format!("its certificate is not accepted: {error}"),
    }
}

fn of_alert(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "our certificate is not from the authority that it trusts: both hosts need the same ca-cert.pem, and certificates issued by it"
        }
        AlertDescription::CertificateExpired => {
            "our certificate has expired: issue a new one with `unmoor cert issue`"
        }
        AlertDescription::CertificateRequired => "it wants a certificate of this side",
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "it does not accept our certificate"
        }
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        _ => return format!("the other side refuses: {alert:?}"),
    };
    format!("the other side refuses: {why}")
}

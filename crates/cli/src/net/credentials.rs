//! Certificates and keys: the files that QEMU and libvirt use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Where certificates are looked for unless a folder is named: with QEMU's names for the files.
const FOLDERS: [&str; 3] = [
    "/etc/pki/unmoor",
    "/etc/pki/qemu",
    "/etc/pki/libvirt-migrate",
];
/// libvirt's own: authority, and the folder of the others.
const LIBVIRT: (&str, &str) = ("/etc/pki/CA/cacert.pem", "/etc/pki/libvirt");

/// Which side of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

/// What is wrong with the certificates. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error(
        "there are no certificates: neither /etc/pki/unmoor, /etc/pki/qemu nor /etc/pki/libvirt has any; make some with `unmoor cert init` and `unmoor cert issue` and name their folder with --tls-dir, or give --insecure to send guest memory in plain text over a network that only you use"
    )]
    None,
    #[error(
        "{0} has no ca-cert.pem: name the folder that `unmoor cert issue` has made for this host"
    )]
    NoAuthority(PathBuf),
    #[error(
        "{folder} has neither server-cert.pem nor client-cert.pem: make them with `unmoor cert issue`"
    )]
    NoCertificate { folder: PathBuf },
    #[error("{path} cannot be read: {error}")]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{path} is not in PEM format, or has no {what} in it")]
    NotPem { path: PathBuf, what: &'static str },
    #[error("{certificate} and {key} cannot be used together: {error}")]
    NotAPair {
        certificate: PathBuf,
        key: PathBuf,
        error: rustls::Error,
    },
    #[error("{path} is no certificate of an authority: {error}")]
    BadAuthority { path: PathBuf, error: String },
}

/// The three files of one side.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

/// What a server needs: it demands a certificate of its clients.
pub(super) fn server(folder: Option<&Path>) -> Result<Arc<ServerConfig>, CredentialError> {
    let files = Files::find(folder, Side::Server)?;
    let (chain, key) = (files.chain()?, files.key()?);
    let provider = Arc::new(ring::default_provider());
    let authority = Arc::new(files.authority()?);
    let verifier = WebPkiClientVerifier::builder_with_provider(authority, Arc::clone(&provider))
        .build()
        .map_err(|error| CredentialError::BadAuthority {
            path: files.authority.clone(),
            error: error.to_string(),
        })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| files.not_a_pair(error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| files.not_a_pair(error))?;
    // Nobody comes back with a ticket.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// What a client needs.
pub(super) fn client(folder: Option<&Path>) -> Result<Arc<ClientConfig>, CredentialError> {
    let files = Files::find(folder, Side::Client)?;
    let (chain, key) = (files.chain()?, files.key()?);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| files.not_a_pair(error))?
        .with_root_certificates(files.authority()?)
        .with_client_auth_cert(chain, key)
        .map_err(|error| files.not_a_pair(error))?;
    Ok(Arc::new(config))
}

impl Files {
    fn find(folder: Option<&Path>, side: Side) -> Result<Self, CredentialError> {
        if let Some(folder) = folder {
            return Self::in_folder(folder, side);
        }
        let has_authority = |folder: &&&str| Path::new(folder).join("ca-cert.pem").exists();
        if let Some(folder) = FOLDERS.iter().find(has_authority) {
            return Self::in_folder(Path::new(folder), side);
        }
        let (authority, folder) = LIBVIRT;
        if Path::new(authority).exists() {
            return Self::of_libvirt(Path::new(authority), Path::new(folder), side);
        }
        Err(CredentialError::None)
    }

    /// By QEMU's names. One pair serves both sides where there is only one.
    fn in_folder(folder: &Path, side: Side) -> Result<Self, CredentialError> {
        let authority = folder.join("ca-cert.pem");
        if !authority.exists() {
            return Err(CredentialError::NoAuthority(folder.to_owned()));
        }
        let of = |name: &str| Files {
            authority: authority.clone(),
            certificate: folder.join(format!("{name}-cert.pem")),
            key: folder.join(format!("{name}-key.pem")),
        };
        Self::first([of("server"), of("client")], folder, side)
    }

    fn of_libvirt(authority: &Path, folder: &Path, side: Side) -> Result<Self, CredentialError> {
        let of = |name: &str| Files {
            authority: authority.to_owned(),
            certificate: folder.join(format!("{name}cert.pem")),
            key: folder.join(format!("private/{name}key.pem")),
        };
        Self::first([of("server"), of("client")], folder, side)
    }

    /// The side's own, or else the other's.
    fn first(
        [server, client]: [Files; 2],
        folder: &Path,
        side: Side,
    ) -> Result<Self, CredentialError> {
        let order = match side {
            Side::Server => [server, client],
            Side::Client => [client, server],
        };
        order
            .into_iter()
            .find(|files| files.certificate.exists())
            .ok_or_else(|| CredentialError::NoCertificate {
                folder: folder.to_owned(),
            })
    }

    fn authority(&self) -> Result<RootCertStore, CredentialError> {
        let mut store = RootCertStore::empty();
        for certificate in certificates(&self.authority)? {
            store
                .add(certificate)
                .map_err(|error| CredentialError::BadAuthority {
                    path: self.authority.clone(),
                    error: error.to_string(),
                })?;
        }
        Ok(store)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        certificates(&self.certificate)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, CredentialError> {
        PrivateKeyDer::from_pem_slice(&read(&self.key)?).map_err(|_| CredentialError::NotPem {
            path: self.key.clone(),
            what: "private key",
        })
    }

    fn not_a_pair(&self, error: rustls::Error) -> CredentialError {
        CredentialError::NotAPair {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            error,
        }
    }
}

/// The certificates of a file, one at least.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let not_pem = || CredentialError::NotPem {
        path: path.to_owned(),
        what: "certificate",
    };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(not_pem()),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CredentialError> {
    std::fs::read(path).map_err(|error| CredentialError::Unreadable {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, write};

    use super::*;

    fn touch(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, "").unwrap();
        }
    }

    #[test]
    fn qemus_names_and_libvirts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(matches!(
            Files::in_folder(path, Side::Server),
            Err(CredentialError::NoAuthority(_))
        ));
        touch(path, &["ca-cert.pem"]);
        assert!(matches!(
            Files::in_folder(path, Side::Client),
            Err(CredentialError::NoCertificate { .. })
        ));
        touch(path, &["server-cert.pem"]);
        let both = [Side::Server, Side::Client]
            .map(|side| Files::in_folder(path, side).unwrap().certificate);
        assert_eq!(
            both,
            [path.join("server-cert.pem"), path.join("server-cert.pem")]
        );
        touch(
            path,
            &["client-cert.pem", "CA/cacert.pem", "pki/clientcert.pem"],
        );
        let client = Files::in_folder(path, Side::Client).unwrap();
        assert_eq!(client.key, path.join("client-key.pem"));
        let libvirt = Files::of_libvirt(&path.join("CA"), &path.join("pki"), Side::Server).unwrap();
        assert_eq!(libvirt.key, path.join("pki/private/clientkey.pem"));
    }

    #[test]
    fn files_that_are_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        touch(path, &["ca-cert.pem", "client-cert.pem", "client-key.pem"]);
        let error = client(Some(path)).unwrap_err().to_string();
        assert!(
            error.ends_with("client-cert.pem is not in PEM format, or has no certificate in it")
        );
    }
}

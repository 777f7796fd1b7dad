//! Making them.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// Clocks of two hosts may differ by so much.
const CLOCKS: Duration = Duration::hours(1);
const AUTHORITY: &str = "ca-cert.pem";
const AUTHORITY_KEY: &str = "ca-key.pem";

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub(super) enum CertError {
    #[error("{} is there already: give --force to overwrite it", .0.display())]
    Exists(PathBuf),
    #[error("{} has no authority: make one with `unmoor cert init --dir {}`", .0.display(), .0.display())]
    NoAuthority(PathBuf),
    #[error("`{0}` is neither a host name nor an address")]
    BadName(String),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Unusable { path: PathBuf, error: rcgen::Error },
    #[error(transparent)]
    Crypto(#[from] rcgen::Error),
}

/// Makes an authority.
pub(super) fn init(dir: &Path, days: u32, force: bool) -> Result<String, CertError> {
    let (certificate, key) = (dir.join(AUTHORITY), dir.join(AUTHORITY_KEY));
    not_there([&certificate, &key], force)?;
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("unmoor authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasts(&mut params, days);
    let signed = params.self_signed(&pair)?;
    folder(dir)?;
    put(&key, &pair.serialize_pem(), 0o600)?;
    put(&certificate, &signed.pem(), 0o644)?;
    let (dir, key) = (dir.display(), key.display());
    Ok(format!(
        "An authority for {days} days is in {dir}. Keep {key} here and secret.\n\
         Next: unmoor cert issue HOST --dir {dir}\n"
    ))
}

/// Makes a host's certificates.
pub(super) fn issue(
    hosts: &[String],
    dir: &Path,
    out: &Path,
    days: u32,
    force: bool,
) -> Result<String, CertError> {
    let (authority, key) = (dir.join(AUTHORITY), dir.join(AUTHORITY_KEY));
    if !authority.exists() || !key.exists() {
        return Err(CertError::NoAuthority(dir.to_owned()));
    }
    let authority_pem = read(&authority)?;
    let unusable = |path: &Path, error| CertError::Unusable {
        path: path.to_owned(),
        error,
    };
    let pair = KeyPair::from_pem(&read(&key)?).map_err(|error| unusable(&key, error))?;
    let issuer = Issuer::from_ca_cert_pem(&authority_pem, pair)
        .map_err(|error| unusable(&authority, error))?;
    if let Some(bad) = hosts.iter().find(|host| !is_name(host)) {
        return Err(CertError::BadName(bad.clone()));
    }
    let first = hosts.first().map_or("", String::as_str);
    let host = out.join(first);
    let kinds = [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ];
    let paths = |kind: &str| {
        let path = |what: &str| host.join(format!("{kind}-{what}.pem"));
        (path("cert"), path("key"))
    };
    for (kind, _) in &kinds {
        let (certificate, key) = paths(kind);
        not_there([&certificate, &key], force)?;
    }
    folder(&host)?;
    put(&host.join(AUTHORITY), &authority_pem, 0o644)?;
    for (kind, purpose) in kinds {
        let pair = KeyPair::generate()?;
        let mut params =
            CertificateParams::new(hosts).map_err(|_| CertError::BadName(hosts.join(", ")))?;
        params.distinguished_name = named(first);
        // TLS 1.3 needs the first alone; QEMU refuses certificates without the second.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, days);
        let signed = params.signed_by(&pair, &issuer)?;
        let (certificate, key) = paths(kind);
        put(&key, &pair.serialize_pem(), 0o600)?;
        put(&certificate, &signed.pem(), 0o644)?;
    }
    let host = host.display();
    Ok(format!(
        "Certificates of {first} for {days} days are in {host}.\n\
         Next: copy the folder to that host as /etc/pki/unmoor, or name it there with --tls-dir\n"
    ))
}

/// What goes into a path must not lead out of it.
fn is_name(host: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    !host.is_empty() && !host.starts_with(['.', '-']) && host.chars().all(is_part)
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

fn lasts(params: &mut CertificateParams, days: u32) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCKS;
    params.not_after = now + Duration::days(days.into());
}

fn not_there(paths: [&PathBuf; 2], force: bool) -> Result<(), CertError> {
    match paths.into_iter().find(|path| path.exists()) {
        Some(path) if !force => Err(CertError::Exists(path.clone())),
        _ => Ok(()),
    }
}

fn folder(path: &Path) -> Result<(), CertError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| CertError::File {
        path: path.to_owned(),
        error,
    })
}

/// Nobody else can read a key at any moment: it is made anew with its mode.
fn put(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let write = || {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(mode);
        options.open(path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| CertError::File {
        path: path.to_owned(),
        error,
    })
}

fn read(path: &Path) -> Result<String, CertError> {
    std::fs::read_to_string(path).map_err(|error| CertError::File {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nothing_is_overwritten_and_keys_are_secret() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("pki");
        let hosts = ["b.example".to_owned(), "10.0.0.2".to_owned()];
        let issued = |force| issue(&hosts, &dir, &dir, 30, force);
        assert!(matches!(issued(false), Err(CertError::NoAuthority(_))));
        init(&dir, 30, false).unwrap();
        assert!(matches!(init(&dir, 30, false), Err(CertError::Exists(_))));
        issued(false).unwrap();
        assert!(matches!(issued(false), Err(CertError::Exists(_))));
        issued(true).unwrap();
        for key in [
            "ca-key.pem",
            "b.example/server-key.pem",
            "b.example/client-key.pem",
        ] {
            let mode = dir.join(key).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_name_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        init(folder.path(), 1, false).unwrap();
        for bad in ["../b", "a/b", "", ".", "a b"] {
            let hosts = [bad.to_owned()];
            let issued = issue(&hosts, folder.path(), folder.path(), 1, false);
            assert!(matches!(issued, Err(CertError::BadName(_))), "{bad}");
        }
    }
}

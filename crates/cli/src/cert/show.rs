//! Showing them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::issue::CertError;
use crate::net::{Identity, certificates};

/// What there is to tell about certificates.
pub(super) fn show(paths: &[PathBuf], as_json: bool) -> Result<String, CertError> {
    let mut text = String::new();
    for path in paths {
        for file in files(path)? {
            let found = certificates(&file).map_err(|error| CertError::File {
                path: file.clone(),
                error: std::io::Error::other(error.to_string()),
            })?;
            for der in found {
                one(&file, &der, as_json, &mut text);
            }
        }
    }
    Ok(text)
}

/// The certificates of a folder, or the file itself.
fn files(path: &Path) -> Result<Vec<PathBuf>, CertError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |error| CertError::File {
        path: path.to_owned(),
        error,
    };
    let mut found = Vec::new();
    for entry in path.read_dir().map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = file.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.ends_with("cert.pem")) {
            found.push(file);
        }
    }
    found.sort();
    Ok(found)
}

fn one(file: &Path, der: &[u8], as_json: bool, text: &mut String) {
    let fingerprint = fingerprint(der);
    let file = file.display();
    // Writing to a String cannot fail.
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        let _ = writeln!(text, "{file}: no certificate, {fingerprint}");
        return;
    };
    let identity = Identity::of_parsed(&certificate);
    let validity = certificate.validity();
    let left = validity.not_after.timestamp() - OffsetDateTime::now_utc().unix_timestamp();
    let days = left.div_euclid(24 * 3600);
    let (from, until) = (
        validity.not_before.to_string(),
        validity.not_after.to_string(),
    );
    let (subject, issuer) = (
        certificate.subject().to_string(),
        certificate.issuer().to_string(),
    );
    if as_json {
        let value = json!({
            "file": file.to_string(),
            "subject": subject,
            "names": identity.names,
            "issuer": issuer,
            "is_authority": certificate.is_ca(),
            "not_before": from,
            "not_after": until,
            "days_left": days,
            "sha256": fingerprint,
        });
        let _ = writeln!(text, "{value}");
        return;
    }
    let names = match (certificate.is_ca(), identity.names.join(", ")) {
        (true, _) => "none, an authority".to_owned(),
        (false, names) if names.is_empty() => "none: a server needs some".to_owned(),
        (false, names) => names,
    };
    let left = match days {
        ..0 => "it has expired".to_owned(),
        days => format!("{days} days left"),
    };
    let _ = write!(
        text,
        "{file}\n  for      {subject}\n  names    {names}\n  from     {issuer}\n  \
         valid    {from} to {until}: {left}\n  SHA-256  {fingerprint}\n"
    );
}

fn fingerprint(der: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, der);
    let bytes: Vec<String> = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::super::issue::{init, issue};
    use super::*;

    #[test]
    fn a_host_s_folder() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        init(dir, 30, false).unwrap();
        let hosts = [
            "b.example".to_owned(),
            "10.0.0.2".to_owned(),
            "fd00::2".to_owned(),
        ];
        issue(&hosts, dir, dir, 30, false).unwrap();
        let text = show(&[dir.join("b.example")], false).unwrap();
        assert_eq!(text.matches("\n  for ").count(), 3, "{text}");
        assert!(
            text.contains("names    b.example, 10.0.0.2, fd00::2\n"),
            "{text}"
        );
        assert_eq!(text.matches(" days left\n").count(), 3, "{text}");
        let text = show(&[dir.join("b.example/server-cert.pem")], true).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["subject"], "CN=b.example");
        assert_eq!(value["issuer"], "CN=unmoor authority");
        assert_eq!(value["is_authority"], false);
        assert_eq!(value["sha256"].as_str().map(str::len), Some(95));
    }
}

//! Who a certificate is for.

use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The names in a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The subject's common name.
    pub(crate) common_name: Option<String>,
    /// Alternative names: of hosts, and addresses.
    pub(crate) names: Vec<String>,
}

impl Identity {
    /// Reads it; empty if that is no certificate.
    pub(crate) fn of(der: &[u8]) -> Self {
        match X509Certificate::from_der(der) {
            Ok((_, certificate)) => Self::of_parsed(&certificate),
            Err(_) => Identity::default(),
        }
    }

    pub(crate) fn of_parsed(certificate: &X509Certificate<'_>) -> Self {
        let mut common_names = certificate.subject().iter_common_name();
        let common_name = common_names.next().and_then(|name| name.as_str().ok());
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let names = alternative
            .iter()
            .flat_map(|names| &names.value.general_names);
        Identity {
            common_name: common_name.map(str::to_owned),
            names: names.filter_map(name).collect(),
        }
    }

    /// Whether one of its names is this.
    pub(crate) fn is(&self, name: &str) -> bool {
        let mut names = self.names.iter().chain(&self.common_name);
        names.any(|own| own.eq_ignore_ascii_case(name))
    }

    /// The name to call it by.
    pub(crate) fn name(&self) -> &str {
        let first = self.common_name.as_ref().or(self.names.first());
        first.map_or("somebody without a name", String::as_str)
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

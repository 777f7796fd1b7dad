//! A connection to a host's libvirt.

use virt::connect::Connect;
use virt::error::ErrorNumber;

use crate::{Domain, Error, description, events};

/// A host's libvirt.
#[derive(Debug)]
pub struct Host {
    uri: String,
    connect: Connect,
}

impl Host {
    /// Connects to it.
    pub fn open(uri: &str) -> Result<Self, Error> {
        events::start()?;
        Ok(Host {
            uri: uri.to_owned(),
            connect: Connect::open(Some(uri))?,
        })
    }

    /// What libvirt knows the machine by: two hosts have to differ in it.
    pub fn uuid(&self) -> Result<Option<String>, Error> {
        description::host_uuid(&self.connect.get_capabilities()?)
    }

    /// The VM of that name, or of that UUID.
    pub fn domain(&self, name: &str) -> Result<Domain, Error> {
        let found = virt::domain::Domain::lookup_by_name(&self.connect, name)
            .or_else(|_| virt::domain::Domain::lookup_by_uuid_string(&self.connect, name));
        match found {
            Ok(domain) => Ok(Domain::new(self.connect.clone(), domain)?),
            Err(error)
                if matches!(
                    error.code(),
                    ErrorNumber::NoDomain | ErrorNumber::InvalidArg
                ) =>
            {
                Err(Error::NoDomain {
                    uri: self.uri.clone(),
                    name: name.to_owned(),
                })
            }
            Err(error) => Err(error.into()),
        }
    }
}

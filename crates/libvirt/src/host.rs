//! A connection to a host's libvirt.

use virt::connect::Connect;
use virt::error::ErrorNumber;

use crate::{Domain, Error, description, events};

/// Seconds between two questions whether libvirt is there.
const KEEP_ALIVE_EVERY: i32 = 5;
/// So many without an answer are the end of a connection.
const KEEP_ALIVE_MISSED: u32 = 5;

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
        let connect = Connect::open(Some(uri))?;
        // Where it is not taken, a libvirt that hangs is waited for.
        let _ = connect.set_keep_alive(KEEP_ALIVE_EVERY, KEEP_ALIVE_MISSED);
        Ok(Host {
            uri: uri.to_owned(),
            connect,
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

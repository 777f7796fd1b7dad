//! A VM of libvirt's.

use virt::connect::Connect;
use virt::sys;

use crate::{Description, Error, Migration, Monitor, Move, Watch};

/// A VM of libvirt's.
#[derive(Debug)]
pub struct Domain {
    connect: Connect,
    domain: virt::domain::Domain,
    name: String,
}

/// From when on a VM has what it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// At once.
    Now,
    /// When it is started the next time; with libvirt's words why not now, if it runs.
    AtTheNextStart(Option<String>),
}

impl Domain {
    pub(crate) fn new(connect: Connect, domain: virt::domain::Domain) -> Result<Self, Error> {
        let name = domain.get_name()?;
        Ok(Domain {
            connect,
            domain,
            name,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a QEMU.
    pub fn is_active(&self) -> Result<bool, Error> {
        Ok(self.domain.is_active()?)
    }

    /// What it consists of; while it runs, with what libvirt has made up for this run.
    pub fn description(&self) -> Result<Description, Error> {
        Description::parse(&self.domain.get_xml_desc(0)?)
    }

    /// QEMU's monitor.
    pub fn monitor(&self) -> Result<Monitor, Error> {
        Monitor::open(&self.connect, &self.domain)
    }

    /// Waits for it to run.
    pub fn watch(&self) -> Result<Watch, Error> {
        Watch::begin(&self.connect, &self.domain)
    }

    /// Begins to move it.
    pub fn migrate(&self, how: Move) -> Result<Migration, Error> {
        Migration::begin(self.domain.clone(), how)
    }

    /// Adds a device, to the VM that runs if it can be, and to what is started the next time.
    pub fn add(&self, device: &str) -> Result<Added, Error> {
        let persistent = self.domain.is_persistent()?;
        let mut flags = 0;
        if persistent {
            flags |= sys::VIR_DOMAIN_AFFECT_CONFIG;
        }
        if !self.is_active()? {
            self.domain.attach_device_flags(device, flags)?;
            return Ok(Added::AtTheNextStart(None));
        }
        let live = sys::VIR_DOMAIN_AFFECT_LIVE;
        match self.domain.attach_device_flags(device, flags | live) {
            Ok(_) => Ok(Added::Now),
            Err(error) if !persistent => Err(error.into()),
            // A VM without a free port, say: it will have one when it starts again.
            Err(why) => {
                self.domain.attach_device_flags(device, flags)?;
                Ok(Added::AtTheNextStart(Some(why.message().to_owned())))
            }
        }
    }
}

//! QEMU's events, as libvirt passes them on.

use std::ffi::{CStr, c_char, c_longlong, c_uint, c_void};
use std::fmt;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use crate::Error;

/// What QEMU tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) seconds: i64,
    pub(crate) micros: u32,
    /// Its data, as JSON.
    pub(crate) details: Option<String>,
}

/// Called for every event, by libvirt's event loop.
type Handler = Box<dyn Fn(&Event) + Send + Sync>;

/// Listens until it is dropped.
pub(crate) struct Listener {
    connect: Connect,
    number: i32,
}

impl Listener {
    /// Calls `handler` for every event of the VM's QEMU whose name the regular expression `names` fits:
    /// libvirt's daemon looks for that, and sends no other.
    #[expect(unsafe_code, reason = "the bindings do not have it")]
    pub(crate) fn new(
        connect: &Connect,
        domain: &Domain,
        names: &CStr,
        handler: impl Fn(&Event) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let handler: Box<Handler> = Box::new(Box::new(handler));
        let opaque = Box::into_raw(handler);
        // SAFETY: both handles are open; libvirt copies `names`; `opaque` is a `Handler`, which is what `on_event` and `forget`
        // take it for, and libvirt calls `forget` once, when it will not call `on_event` any more.
        let number = unsafe {
            sys::virConnectDomainQemuMonitorEventRegister(
                connect.as_ptr(),
                domain.as_ptr(),
                names.as_ptr(),
                Some(on_event),
                opaque.cast(),
                Some(forget),
                sys::VIR_CONNECT_DOMAIN_QEMU_MONITOR_EVENT_REGISTER_REGEX,
            )
        };
        if number < 0 {
            let error = virt::error::Error::last_error();
            // SAFETY: libvirt has not taken it over, since it has refused; nobody else has it.
            drop(unsafe { Box::from_raw(opaque) });
            return Err(error.into());
        }
        Ok(Listener {
            connect: connect.clone(),
            number,
        })
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl Drop for Listener {
    #[expect(unsafe_code, reason = "the bindings do not have it")]
    fn drop(&mut self) {
        // SAFETY: the connection is open for as long as `self.connect` lives, and the number is the one
        // that libvirt gave for it.
        unsafe {
            sys::virConnectDomainQemuMonitorEventDeregister(self.connect.as_ptr(), self.number);
        }
    }
}

/// What libvirt calls for every event.
#[expect(unsafe_code, reason = "called by libvirt")]
// SAFETY: only libvirt calls it, with what `Listener::new` has given it.
unsafe extern "C" fn on_event(
    _connect: sys::virConnectPtr,
    _domain: sys::virDomainPtr,
    name: *const c_char,
    seconds: c_longlong,
    micros: c_uint,
    details: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: it was given to libvirt with this function, and is there until `forget` is called.
    let handler = unsafe { &*opaque.cast::<Handler>() };
    let text = |pointer: *const c_char| {
        // SAFETY: libvirt's strings end with a zero and live as long as this call; one that is not there
        // is null.
        (!pointer.is_null()).then(|| unsafe { CStr::from_ptr(pointer) })
    };
    let owned = |text: &CStr| text.to_string_lossy().into_owned();
    if let Some(name) = text(name) {
        handler(&Event {
            name: owned(name),
            seconds,
            micros,
            details: text(details).map(owned),
        });
    }
}

/// What libvirt calls when it has told the last event.
#[expect(unsafe_code, reason = "called by libvirt")]
// SAFETY: as `on_event`, and once.
unsafe extern "C" fn forget(opaque: *mut c_void) {
    // SAFETY: it comes from `Box::into_raw` in `Listener::new`, and libvirt calls this once.
    drop(unsafe { Box::from_raw(opaque.cast::<Handler>()) });
}

//! QEMU's monitor, as libvirt lets others use it, made a socket that speaks QMP.
//!
//! ```text
//! whoever speaks QMP ◄─► socket ──commands──► thread ──► virDomainQemuMonitorCommand
//!                          ▲ ◄───answers────────┘
//!                          └─────events──────── libvirt's event loop
//! ```

use std::ffi::{CStr, c_char, c_longlong, c_uint, c_void};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::sys;

use crate::Error;

/// Longest wait for whoever listens to take an answer or an event.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    connect: Connect,
    callback: i32,
    socket: Option<UnixStream>,
}

/// The end at which QEMU seems to be.
#[derive(Debug, Clone)]
struct Voice(Arc<Mutex<UnixStream>>);

impl Voice {
    fn say(&self, message: &Value) -> std::io::Result<()> {
        let line = format!("{message}\r\n");
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.write_all(line.as_bytes())
    }
}

impl Monitor {
    pub(crate) fn open(connect: &Connect, domain: &Domain) -> Result<Self, Error> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_write_timeout(Some(WRITE_LIMIT))?;
        let voice = Voice(Arc::new(Mutex::new(ours.try_clone()?)));
        let version = ask(domain, &json!({"execute": "query-version"}))?;
        voice.say(&json!({"QMP": {"version": version["return"], "capabilities": []}}))?;
        let callback = listen(connect, domain, voice.clone())?;
        // From here on it is taken back when it is dropped.
        let monitor = Monitor {
            connect: connect.clone(),
            callback,
            socket: Some(theirs),
        };
        let domain = domain.clone();
        std::thread::Builder::new()
            .name("monitor".into())
            .spawn(move || serve(ours, &voice, &domain))?;
        Ok(monitor)
    }

    /// The socket, the first time.
    pub fn take_socket(&mut self) -> Option<UnixStream> {
        self.socket.take()
    }
}

impl Drop for Monitor {
    #[expect(unsafe_code, reason = "the bindings do not have it")]
    fn drop(&mut self) {
        // SAFETY: the connection is open for as long as `self.connect` lives, and the number is the one
        // that libvirt gave for it.
        unsafe {
            sys::virConnectDomainQemuMonitorEventDeregister(self.connect.as_ptr(), self.callback);
        }
    }
}

/// Passes commands on until whoever gives them closes the socket.
fn serve(socket: UnixStream, voice: &Voice, domain: &Domain) {
    for line in BufReader::new(socket).split(b'\n') {
        let Ok(line) = line else {
            return;
        };
        let Some((command, id)) = command(&line) else {
            continue;
        };
        let answer = match command["execute"].as_str() {
            // libvirt has done that long ago.
            Some("qmp_capabilities") => json!({"return": {}}),
            _ => ask(domain, &command).unwrap_or_else(|error| refusal(&error.to_string())),
        };
        if voice.say(&with_id(answer, id)).is_err() {
            return;
        }
    }
}

fn ask(domain: &Domain, command: &Value) -> Result<Value, Error> {
    let answer = domain.qemu_monitor_command(&command.to_string(), 0)?;
    serde_json::from_str(&answer).map_err(|_| Error::Answer(answer))
}

/// A command without the number that it has for whoever gives it: libvirt gives it another.
fn command(line: &[u8]) -> Option<(Value, Value)> {
    let mut command: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let id = command.remove("id").unwrap_or_default();
    Some((Value::Object(command), id))
}

/// An answer with the number that was taken off the command.
fn with_id(mut answer: Value, id: Value) -> Value {
    if let Value::Object(answer) = &mut answer {
        answer.insert("id".into(), id);
    }
    answer
}

fn refusal(why: &str) -> Value {
    json!({"error": {"class": "GenericError", "desc": why}})
}

/// An event as QEMU would have told it.
fn event(name: &str, seconds: i64, micros: u32, details: Option<&str>) -> Value {
    let data = details.and_then(|text| serde_json::from_str(text).ok());
    json!({
        "event": name,
        "data": data.unwrap_or_else(|| json!({})),
        "timestamp": {"seconds": seconds, "microseconds": micros},
    })
}

/// Has QEMU's events told; yields the number by which that is taken back.
#[expect(unsafe_code, reason = "the bindings do not have it")]
fn listen(connect: &Connect, domain: &Domain, voice: Voice) -> Result<i32, Error> {
    let opaque = Box::into_raw(Box::new(voice));
    // SAFETY: both handles are open; `opaque` is a `Voice`, which is what `on_event` and `forget` take
    // it for, and libvirt calls `forget` once, when it will not call `on_event` any more.
    let callback = unsafe {
        sys::virConnectDomainQemuMonitorEventRegister(
            connect.as_ptr(),
            domain.as_ptr(),
            ptr::null(),
            Some(on_event),
            opaque.cast(),
            Some(forget),
            0,
        )
    };
    if callback < 0 {
        let error = virt::error::Error::last_error();
        // SAFETY: libvirt has not taken it over, since it has refused; nobody else has it.
        drop(unsafe { Box::from_raw(opaque) });
        return Err(error.into());
    }
    Ok(callback)
}

/// What libvirt calls for every event of QEMU's.
#[expect(unsafe_code, reason = "called by libvirt")]
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
    let voice = unsafe { &*opaque.cast::<Voice>() };
    // SAFETY: libvirt's strings end with a zero and live as long as this call.
    let (name, details) = unsafe { (text(name), text(details)) };
    if let Some(name) = name {
        // Nobody listens any more: the one who ends that is on the way.
        let _ = voice.say(&event(&name, seconds, micros, details.as_deref()));
    }
}

/// What libvirt calls when it has told the last event.
#[expect(unsafe_code, reason = "called by libvirt")]
unsafe extern "C" fn forget(opaque: *mut c_void) {
    // SAFETY: it comes from `Box::into_raw` in `listen`, and libvirt calls this once.
    drop(unsafe { Box::from_raw(opaque.cast::<Voice>()) });
}

/// A string of libvirt's; nothing if there is none.
///
/// # Safety
///
/// The pointer is null, or what it points to ends with a zero and lives as long as this call.
#[expect(unsafe_code, reason = "strings of libvirt's")]
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(pointer) };
    Some(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_loses_its_number_and_the_answer_has_it() {
        let (plain, id) = command(br#"{"execute":"query-status","id":7}"#).unwrap();
        assert_eq!(plain, json!({"execute": "query-status"}));
        let answer = with_id(json!({"return": {}, "id": "libvirt-12"}), id);
        assert_eq!(answer, json!({"return": {}, "id": 7}));
        assert!(command(b"").is_none() && command(b"[1]").is_none());
    }

    #[test]
    fn an_event_is_told_as_qemu_tells_it() {
        let told = event("STOP", 5, 6, None);
        assert_eq!(told["event"], "STOP");
        assert_eq!(told["timestamp"], json!({"seconds": 5, "microseconds": 6}));
        let told = event("MIGRATION", 5, 6, Some(r#"{"status":"active"}"#));
        assert_eq!(told["data"]["status"], "active");
    }
}

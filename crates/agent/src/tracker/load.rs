//! Loads the programs: those that this kernel takes.
//!
//! libbpf loads an object whole or not at all, and a failed attempt uses it up. So it is opened anew
//! for each attempt, without the program that failed in the last.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::mem::MaybeUninit;
use std::time::Instant;

use guest_proto::LossCause;
use libbpf_rs::btf::{Btf, ReferencesType, types};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, OpenObject, ProgramAttachType, ProgramMut, ProgramType};

use super::diagnosis::{Circumstances, diagnose, heard, is_too_old, listen};
use super::plan::{Kernel, Plan, Way};
use super::{Detaching, Links, lsm, skeleton};

/// The kernel's type information.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// Attempts. Each takes a tenth of a second, under emulation some seconds.
const TRIES_MAX: usize = 12;

/// Where an object lives; each attempt has its own, since it lives as long as the process.
type Places = [MaybeUninit<OpenObject>; TRIES_MAX];

/// What costs a pipe, a socket or a futex several percent even while nothing is recorded.
const HOT: [&str; 4] = [
    "file_permission",
    "socket_sendmsg",
    "socket_recvmsg",
    "sched_waking",
];

/// Programs that are loaded, and attached.
pub(super) struct Loaded {
    pub(super) skeleton: skeleton::TrackerSkel<'static>,
    pub(super) plan: Plan,
    /// What stays attached.
    pub(super) resident: Links,
    /// What is attached to see that it can be.
    pub(super) hot: Links,
    pub(super) tries: u16,
    pub(super) took_ms: u32,
}

/// Why nothing is loaded.
pub(super) type Refused = (LossCause, String);

/// Loads and attaches what this kernel takes.
pub(super) fn load() -> Result<Loaded, Refused> {
    let begin = Instant::now();
    let circumstances = Circumstances {
        release: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        lockdown: lsm::security_file("lockdown").unwrap_or_default(),
    };
    listen();
    let kernel = match Running::read() {
        Ok(kernel) => kernel,
        Err(error) if is_too_old(&circumstances.release) => return Err((LossCause::TooOld, error)),
        Err(error) if fs::exists(TYPES).unwrap_or(false) => return Err((LossCause::Other, error)),
        Err(error) => return Err((LossCause::NoTypeInformation, error)),
    };
    let places: &'static mut Places =
        Box::leak(Box::new([const { MaybeUninit::uninit() }; TRIES_MAX]));
    let mut plan: Option<Plan> = None;
    for (tries, place) in (1..).zip(places) {
        // What was said in the last attempt is of no interest any more.
        heard();
        let opened = skeleton::TrackerSkelBuilder::default().open(place);
        let mut open = opened.map_err(|error| other(&error))?;
        let plan = plan.get_or_insert_with(|| Plan::new(names(open.open_object()), &kernel));
        apply(plan, open.open_object_mut()).map_err(|error| other(&error))?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.agent_pid = std::process::id();
            constants.interrupt_bits = kernel.interrupt_bits();
            #[cfg(feature = "faults")]
            super::faults::inject(&mut constants.faults);
        }
        let mut skeleton = match open.load() {
            Ok(skeleton) => skeleton,
            Err(error) => {
                let found = diagnose(&heard(), &format!("{error:#}"), &circumstances);
                // One that is not loaded at all cannot be left out.
                let Some(program) = found.program.filter(|program| plan.is_on(program)) else {
                    return Err((found.cause, found.detail));
                };
                plan.failed(&program, found.cause, &found.detail, &kernel);
                continue;
            }
        };
        let (mut resident, mut hot) = (Links::new(), Links::new());
        let mut failures = attach(&mut skeleton, &mut resident, |name| !is_hot(name));
        failures.extend(attach(&mut skeleton, &mut hot, is_hot));
        if failures.is_empty() {
            return Ok(Loaded {
                skeleton,
                plan: plan.clone(),
                resident,
                hot,
                tries,
                took_ms: u32::try_from(begin.elapsed().as_millis()).unwrap_or(u32::MAX),
            });
        }
        // What concerns all of them ends the attempts.
        if let Some((cause, error)) = concerns_all(&resident, &hot, &failures) {
            return Err((cause, error));
        }
        // Detaching takes long: it goes on beside the next attempt.
        resident.append(&mut hot);
        drop(Detaching::begin(resident));
        for (name, error) in failures {
            plan.failed(&name.to_string_lossy(), LossCause::Attach, &error, &kernel);
        }
    }
    let lost = plan.iter().flat_map(Plan::lost);
    let lost: Vec<&str> = lost.map(|lost| lost.row.program).collect();
    Err((
        LossCause::TooMany,
        format!("after {TRIES_MAX} attempts: {}", lost.join(", ")),
    ))
}

/// Why none could be attached, if none could for want of the same.
fn concerns_all(resident: &Links, hot: &Links, failures: &[(OsString, String)]) -> Option<Refused> {
    let all = |error: &str| failures.iter().all(|(_, other)| other.contains(error));
    let (_, first) = failures.first()?;
    let none = resident.is_empty() && hot.is_empty();
    match () {
        () if none && all("os error 1)") => Some((LossCause::Privilege, first.clone())),
        () if all("os error 12)") => Some((LossCause::Memory, first.clone())),
        () => None,
    }
}

fn other(error: &libbpf_rs::Error) -> Refused {
    (LossCause::Other, format!("{error:#}"))
}

fn names(object: &OpenObject) -> Vec<(String, String)> {
    let text = |text: &OsStr| text.to_string_lossy().into_owned();
    object
        .progs()
        .map(|program| (text(program.name()), text(program.section())))
        .collect()
}

fn apply(plan: &Plan, object: &mut OpenObject) -> libbpf_rs::Result<()> {
    for mut program in object.progs_mut() {
        match plan.way(&program.name().to_string_lossy()) {
            Way::Off => program.set_autoload(false),
            Way::AsIs => {}
            Way::Wrapper(function) => {
                program.set_prog_type(ProgramType::Tracing);
                program.set_attach_type(ProgramAttachType::TraceFentry);
                program.set_attach_target(0, Some(function.clone()))?;
            }
        }
    }
    Ok(())
}

/// Attaches the probes of a kind that are not attached. Yields those that cannot be, and why.
pub(super) fn attach(
    skeleton: &mut skeleton::TrackerSkel<'static>,
    links: &mut Links,
    kind: impl Fn(&OsStr) -> bool,
) -> Vec<(OsString, String)> {
    let mut failures = Vec::new();
    for program in skeleton.object_mut().progs_mut() {
        let wanted = is_probe(program.section()) && program.autoload();
        if wanted && kind(program.name()) && !links.contains_key(program.name()) {
            let name = program.name().to_owned();
            match attach_one(&program) {
                Ok(link) => {
                    links.insert(name, link);
                }
                Err(error) => failures.push((name, format!("{error:#}"))),
            }
        }
    }
    failures
}

fn attach_one(program: &ProgramMut<'_>) -> libbpf_rs::Result<Link> {
    #[cfg(feature = "faults")]
    super::faults::attach(&program.name().to_string_lossy())?;
    // The library knows the way from the section's name, which a wrapper does not go by.
    match program.prog_type() {
        ProgramType::Tracing => program.attach_trace(),
        _ => program.attach(),
    }
}

/// Whether a program follows what processes do, unlike the iterators, which read the state they are in.
fn is_probe(section: &OsStr) -> bool {
    !section.to_string_lossy().starts_with("iter/")
}

/// Whether a probe is in the way of what programs do all the time: reading, writing, waking.
pub(super) fn is_hot(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let name = name.strip_prefix("unseen_").unwrap_or(&name);
    HOT.contains(&name)
}

/// The kernel that runs here.
struct Running {
    btf: Btf<'static>,
    lsm: bool,
}

impl Running {
    fn read() -> Result<Self, String> {
        let btf = Btf::from_vmlinux().map_err(|error| match fs::metadata(TYPES) {
            Ok(_) => format!("{TYPES}: {error:#}"),
            Err(missing) => format!("{TYPES}: {missing}"),
        })?;
        Ok(Running {
            btf,
            lsm: lsm::is_active(),
        })
    }
}

impl Running {
    fn interrupt_bits(&self) -> u32 {
        let own = self.btf.type_by_name::<types::Var<'_>>("__preempt_count");
        let own = own.map(|count| count.referenced_type().skip_mods_and_typedefs());
        let own = own.and_then(|count| types::Int::try_from(count).ok());
        // From 6.2 to 6.14 it is a field.
        let is_field = self.btf.type_by_name::<types::Struct<'_>>("pcpu_hot");
        interrupt_bits(own.map(|count| count.bits).or(is_field.map(|_| 32)))
    }
}

/// The bits of a preemption count of this size that are set while an interrupt is served. They are no
/// part of the type information; but when they moved, in 7.3, the count became larger. A count of another
/// size may have other bits: then every wake-up counts.
fn interrupt_bits(size: Option<u8>) -> u32 {
    const SERVING_SOFTIRQ: u32 = 0x100;
    match size {
        // Four bits for hard interrupts, four for those that cannot be masked.
        Some(32) => 0x00ff_0000 | SERVING_SOFTIRQ,
        // Above eight bits that count how often interrupts were switched off: four, and one.
        Some(64) => 0x1f00_0000 | SERVING_SOFTIRQ,
        _ => 0,
    }
}

impl Kernel for Running {
    fn has_function(&self, name: &str) -> bool {
        self.btf.type_by_name::<types::Func<'_>>(name).is_some()
    }

    fn has_event(&self, name: &str) -> bool {
        let name = format!("btf_trace_{name}");
        self.btf.type_by_name::<types::Typedef<'_>>(&name).is_some()
    }

    fn has_ring_messages(&self) -> bool {
        // The operations have an enumeration that may have no name: so by its functions.
        ["io_msg_ring", "io_msg_ring_prep"]
            .iter()
            .any(|name| self.has_function(name))
    }

    fn calls_lsm(&self) -> bool {
        self.lsm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_of_unknown_size_has_no_interrupts() {
        assert_eq!(interrupt_bits(Some(32)), 0x00ff_0100);
        assert_eq!(interrupt_bits(Some(64)), 0x1f00_0100);
        assert_eq!(interrupt_bits(Some(16)), 0);
        assert_eq!(interrupt_bits(None), 0);
    }
}

//! Exercises every way in which processes influence one another, for tests of a tracker.
//!
//! ```text
//! lab-guest mechanisms --list            name, expectation, kind of object, direction of b
//! lab-guest mechanisms FOLDER OUTSIDE    OUTSIDE: an address out of the guest, such as
//!                                        10.77.0.100:9
//! ```
//!
//! Each mechanism has two groups of processes. The tainted group, 1, has contact with the outside
//! before it exercises the mechanism; the clean group, 2, has none. In either group, `a` is the
//! active side and `b` the other; their processes are named `NAME/1a`, `NAME/1b`, and so on.
//!
//! Everything is started at once and reported by files in the folder, which must be fresh:
//!
//! ```text
//! ready                    all processes wait: now create `go`
//! done.NAME.1a             the process has done its part, and waits for ever
//! skipped.NAME.1a          the system lacks what it takes; the file says what
//! failed.NAME.1a           the file says why
//! ```
//!
//! What a mechanism needs to inherit is made before `go`, everything else is done after it.
//! Nothing passes between the processes besides: they keep step by the existence of files.
//!
//! To try it by hand, as root, in namespaces of its own:
//!
//! ```text
//! unshare -nip --fork --kill-child --mount-proc sh
//! ip link set lo up
//! ip link add eth0 type veth peer name eth1    # or dummy
//! ip address add 10.77.0.10/24 dev eth0
//! ip link set eth0 up; ip link set eth1 up
//! lab-guest mechanisms /tmp/m 10.77.0.100:9 &
//! until [ -e /tmp/m/ready ]; do sleep 1; done; touch /tmp/m/go
//! sleep 5; ls /tmp/m | grep -v -e ready -e done
//! ```

mod events;
mod external;
mod files;
mod group;
mod locks;
mod mapping;
mod memory;
mod pipes;
mod processes;
mod ring;
mod signals;
mod sockets;
mod sys;
mod sysv;
mod table;
mod traces;
mod unix;
mod uring;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::exit;

use self::group::{Group, let_block, wait_until};
use self::table::{Mechanism, TABLE};
use crate::Outcome;

pub(crate) use self::processes::replaced;

pub(crate) fn list() -> Outcome {
    let mut output = io::stdout().lock();
    for mechanism in TABLE {
        let Mechanism {
            name,
            expectation,
            kind,
            direction,
            ..
        } = mechanism;
        writeln!(output, "{name}\t{expectation}\t{kind}\t{direction}")?;
    }
    Ok(())
}

pub(crate) fn run(folder: &str, outside: &str) -> Outcome {
    let folder = Path::new(folder);
    let outside: SocketAddrV4 = outside.parse()?;
    fs::create_dir_all(folder)?;
    if fs::read_dir(folder)?.next().is_some() {
        return Err(format!("{} is not empty", folder.display()).into());
    }
    sys::set_name("mechanisms")?;
    sys::lead_group();
    // What the caller has opened is none of theirs.
    sys::close_all_but(&[])?;
    for mechanism in TABLE {
        for number in 1..=2 {
            start(
                mechanism,
                &Group::new(folder, outside, mechanism.name, number),
            )?;
        }
    }
    for mechanism in TABLE {
        for number in 1..=2 {
            await_start(mechanism, folder, number)?;
        }
    }
    // Some are ready just before they block.
    let_block();
    sys::silence()?;
    File::create_new(folder.join("ready"))?;
    loop {
        sys::pause();
    }
}

/// Starts a group by a process that ends when it has forked the members.
fn start(mechanism: &Mechanism, group: &Group) -> Outcome {
    let leader = sys::fork()?;
    if leader != 0 {
        sys::wait(leader)?;
        return Ok(());
    }
    let prepared = sys::silence()
        .and_then(|()| sys::set_name(&group.name()))
        .map_err(Into::into)
        .and_then(|()| (mechanism.start)(group));
    if prepared.is_err() {
        for side in mechanism.sides(group.tainted()) {
            group.report(*side, &prepared);
        }
    }
    exit(0)
}

/// Waits until every member of a group is ready, or will never be.
fn await_start(mechanism: &Mechanism, folder: &Path, number: u8) -> Outcome {
    let name = mechanism.name;
    for side in mechanism.starters(number == 1) {
        let member = format!("{name}.{number}{side}");
        wait_until(&member, || {
            ["ready", "skipped", "failed"]
                .iter()
                .any(|state| folder.join(format!("{state}.{member}")).exists())
        })?;
    }
    Ok(())
}

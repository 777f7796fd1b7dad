//! `unmoor receive`: the destination half's shell.

mod cut;
mod faults;
mod joined;
mod newcomer;
mod outcome;
mod session;
mod start;
mod takeover;
mod thaw;
mod told;

use std::time::Duration;

use hypervisor::{Vm, VmFacts, check_destination};
use rustix::event::{PollFd, PollFlags};

use crate::QMP_CONNECT_LIMIT;
use crate::args::ReceiveArgs;
use crate::control::{Control, Role};
use crate::exit::Exit;
use crate::net::{Door, Link, Protection};
use crate::poll::wait;
use crate::report::{Event, Report, reporter};
use crate::send::{Failure, failed, tell_findings};
use crate::signals::Signals;
use session::{Ending, Session};
pub(crate) use takeover::Takeover;

/// Longest wait for QEMU's monitor after another half has died.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(30);

/// What waits for a VM.
pub(crate) struct Receiver<'a> {
    args: &'a ReceiveArgs,
    report: Box<dyn Report>,
    signals: Signals,
    door: Door,
    control: Control,
    vm: Vm,
    facts: VmFacts,
}

/// Runs the command.
pub(crate) fn run(args: &ReceiveArgs) -> Exit {
    let mut report = reporter(args.output.json, args.output.quiet);
    let prepared = prepare(args, report.as_mut());
    match prepared {
        Ok((signals, door, vm, facts)) => Receiver {
            args,
            control: Control::open_or_tell(Role::Receive, report.as_mut()),
            report,
            signals,
            door,
            vm,
            facts,
        }
        .serve(),
        Err(failure) => fail(report.as_mut(), &failure, "the QEMU here was not touched"),
    }
}

type Prepared = (Signals, Door, Vm, VmFacts);

fn prepare(args: &ReceiveArgs, report: &mut dyn Report) -> Result<Prepared, Failure> {
    let signals = Signals::install().map_err(|e| failed(&e))?;
    let limit = match args.take_over {
        // QEMU has yet to notice that its last client has died.
        true => TAKE_OVER_LIMIT,
        false => QMP_CONNECT_LIMIT,
    };
    let mut vm = Vm::connect(&args.qmp, limit).map_err(|e| failed(&e))?;
    let mut facts = vm.facts().map_err(|e| failed(&e))?;
    if !args.take_over {
        let findings = check_destination(&mut vm).map_err(|e| failed(&e))?;
        tell_findings(&findings, report)?;
        facts.no_post_copy = vm.hindrance_of_post_copy().map_err(|e| failed(&e))?;
    }
    let protection = Protection::from_args(&args.net);
    let door = Door::open(&args.listen, &protection, &args.tls_allow)?;
    Ok((signals, door, vm, facts))
}

fn fail(report: &mut dyn Report, failure: &Failure, vm: &str) -> Exit {
    let exit = failure.exit();
    report.tell(&Event::Failed {
        exit: exit as u8,
        error: failure.to_string(),
        vm: vm.to_owned(),
    });
    exit
}

impl Receiver<'_> {
    fn serve(mut self) -> Exit {
        if let Ok(address) = self.door.address() {
            self.report.tell(&Event::Listening {
                address: address.to_string(),
            });
        }
        if self.args.take_over {
            return match Takeover::read() {
                Ok(from) => takeover::exit_of(self.take_over(from)),
                Err(failure) => fail(
                    self.report.as_mut(),
                    &failure,
                    "the QEMU here was not touched",
                ),
            };
        }
        loop {
            let link = match self.next_connection() {
                Ok(link) => link,
                Err(failure) => {
                    return fail(
                        self.report.as_mut(),
                        &failure,
                        "the QEMU here goes on waiting",
                    );
                }
            };
            match Session::new(&mut self, link).run() {
                Ending::Over(exit) => return exit,
                Ending::Untouched(failure) => {
                    if self.args.once {
                        return fail(
                            self.report.as_mut(),
                            &failure,
                            "the QEMU here was not touched",
                        );
                    }
                    self.report.tell(&Event::Note {
                        text: format!("{failure}; waiting for another source"),
                    });
                }
            }
        }
    }

    /// Waits for a source to connect.
    fn next_connection(&mut self) -> Result<Link, Failure> {
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.vm.fd(), PollFlags::IN),
            ];
            fds.extend(self.door.fds(true));
            let door_ends = fds.len();
            fds.extend(self.control.fds());
            wait(&mut fds, self.door.deadline()).map_err(|e| failed(&e))?;
            let signalled = !fds[0].revents().is_empty();
            let spoken = !fds[1].revents().is_empty();
            let asked = fds[door_ends..].iter().any(|fd| !fd.revents().is_empty());
            drop(fds);
            if asked {
                self.hear_while_idle();
            }
            if signalled && self.signals.take() {
                return Err(Failure::Cancelled("cancelled by a signal".into()));
            }
            if spoken {
                // Events while nothing happens are of no interest; the end of QEMU is.
                self.vm.process().map_err(|error| {
                    Failure::Failed(format!("the QEMU here has ended: {error}"))
                })?;
            }
            let link = self.door.look(true).map_err(|e| failed(&e))?;
            self.tell_of_the_door();
            if let Some(link) = link {
                return Ok(link);
            }
        }
    }

    fn tell_of_the_door(&mut self) {
        if let Some(text) = self.door.news() {
            self.report.tell(&Event::Note { text });
        }
    }
}

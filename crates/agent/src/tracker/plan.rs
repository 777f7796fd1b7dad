//! Which programs are loaded, and in which way: by what this kernel has, and by what has failed.
//!
//! ```text
//! as it is ──cannot be attached──► one call earlier (an LSM hook's wrapper)
//!    │                                │
//!    └──────────────fails─────────────┴──► its stand-in ──fails──► nothing: everybody is uncertain
//! ```

use std::collections::{BTreeMap, BTreeSet};

use guest_proto::LossCause;

use super::loss::{Lost, TABLE, is_stand_in, row_of};

/// What is known of the running kernel.
pub(super) trait Kernel {
    /// Whether its type information has a function.
    fn has_function(&self, name: &str) -> bool;
    /// Whether it has a tracepoint.
    fn has_event(&self, name: &str) -> bool;
    /// Whether io_uring rings can send messages to each other.
    fn has_ring_messages(&self) -> bool;
    /// Whether it calls BPF programs from its security hooks.
    fn calls_lsm(&self) -> bool;
}

/// How a program is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all.
    Off,
    /// As its section says.
    AsIs,
    /// An LSM program by fentry, on the function that calls the hook.
    Wrapper(String),
}

/// The ways of all programs.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// By the programs' names: their sections and ways.
    ways: BTreeMap<String, (String, Way)>,
    failed: BTreeSet<String>,
    lost: Vec<Lost>,
}

impl Plan {
    /// The ways that this kernel allows, for programs by name and section.
    pub(super) fn new(
        programs: impl IntoIterator<Item = (String, String)>,
        kernel: &dyn Kernel,
    ) -> Self {
        let programs = programs.into_iter();
        let mut plan = Plan {
            ways: programs
                .map(|(name, section)| (name, (section, Way::Off)))
                .collect(),
            failed: BTreeSet::new(),
            lost: Vec::new(),
        };
        for row in &TABLE {
            if plan.has_no_work(row.program, kernel) {
                continue;
            }
            match plan.first_way(row.program, kernel) {
                Some(way) => plan.set(row.program, way),
                None => plan.failed(row.program, LossCause::NotInKernel, "", kernel),
            }
        }
        plan
    }

    pub(super) fn way(&self, program: &str) -> &Way {
        self.ways.get(program).map_or(&Way::Off, |(_, way)| way)
    }

    pub(super) fn is_on(&self, program: &str) -> bool {
        *self.way(program) != Way::Off
    }

    pub(super) fn lost(&self) -> &[Lost] {
        &self.lost
    }

    /// Takes note that a program has failed, and chooses what takes its place.
    pub(super) fn failed(
        &mut self,
        program: &str,
        cause: LossCause,
        detail: &str,
        kernel: &dyn Kernel,
    ) {
        let at_its_place = matches!(cause, LossCause::Attach | LossCause::NotInKernel);
        let as_is = *self.way(program) != Way::Off && !is_wrapper(self.way(program));
        self.set(program, Way::Off);
        if is_stand_in(program) {
            self.failed.insert(program.to_owned());
            return self.choose_stand_ins(kernel);
        }
        // The one hook whose wrapper takes other arguments has a program for each.
        if program == "mmap_file" && !self.failed.contains("security_mmap_file") {
            self.failed.insert(program.to_owned());
            match self.first_way("security_mmap_file", kernel) {
                Some(way) => return self.set("security_mmap_file", way),
                None => return self.failed("security_mmap_file", cause, detail, kernel),
            }
        }
        if at_its_place
            && as_is
            && let Some(wrapper) = self.wrapper(program)
            && kernel.has_function(&wrapper)
        {
            return self.set(program, Way::Wrapper(wrapper));
        }
        self.failed.insert(program.to_owned());
        let Some(row) = row_of(program) else { return };
        self.lost.push(Lost {
            row,
            cause,
            detail: detail.to_owned(),
            stand_ins: &[],
        });
        self.choose_stand_ins(kernel);
    }

    /// Switches on the best stand-ins that can work, and the others off.
    fn choose_stand_ins(&mut self, kernel: &dyn Kernel) {
        let mut on: BTreeMap<&str, Way> = BTreeMap::new();
        let mut chosen: Vec<&[&str]> = Vec::new();
        for lost in &self.lost {
            let way = |name: &&'static str| -> Option<(&'static str, Way)> {
                let may = !self.failed.contains(*name);
                Some((*name, may.then(|| self.first_way(name, kernel))??))
            };
            let sets = lost.row.stand_ins().iter();
            let found = sets
                .map(|set| (*set, set.iter().map(way).collect::<Option<Vec<_>>>()))
                .find_map(|(set, ways)| Some((set, ways?)));
            let (set, ways) = found.unwrap_or_default();
            chosen.push(set);
            on.extend(ways);
        }
        for (lost, set) in self.lost.iter_mut().zip(chosen) {
            lost.stand_ins = set;
        }
        for (name, (_, way)) in &mut self.ways {
            if is_stand_in(name) {
                *way = on.remove(name.as_str()).unwrap_or(Way::Off);
            }
        }
    }

    fn set(&mut self, program: &str, way: Way) {
        if let Some((_, before)) = self.ways.get_mut(program) {
            *before = way;
        }
    }

    /// Whether what a program would see does not exist in this kernel, or is seen by another.
    fn has_no_work(&self, program: &str, kernel: &dyn Kernel) -> bool {
        match program {
            // It is called where the other hook is not.
            "security_mmap_file" => true,
            // From 6.2 on. Before, path_truncate is called for descriptors, too.
            "file_truncate" => {
                !kernel.has_function("bpf_lsm_file_truncate")
                    && !kernel.has_function("security_file_truncate")
            }
            "io_msg_ring" => !kernel.has_ring_messages(),
            _ => false,
        }
    }

    fn first_way(&self, program: &str, kernel: &dyn Kernel) -> Option<Way> {
        let (section, _) = self.ways.get(program)?;
        match section.split_once('/')? {
            ("lsm", hook)
                if kernel.calls_lsm() && kernel.has_function(&format!("bpf_lsm_{hook}")) =>
            {
                Some(Way::AsIs)
            }
            ("lsm", _) => {
                let wrapper = self.wrapper(program)?;
                kernel
                    .has_function(&wrapper)
                    .then_some(Way::Wrapper(wrapper))
            }
            ("fentry", function) => kernel.has_function(function).then_some(Way::AsIs),
            ("tp_btf", event) => kernel.has_event(event).then_some(Way::AsIs),
            _ => Some(Way::AsIs),
        }
    }

    /// The function that calls an LSM hook with the same arguments.
    fn wrapper(&self, program: &str) -> Option<String> {
        let (section, _) = self.ways.get(program)?;
        let hook = section.strip_prefix("lsm/")?;
        (hook != "mmap_file").then(|| format!("security_{hook}"))
    }
}

fn is_wrapper(way: &Way) -> bool {
    matches!(way, Way::Wrapper(_))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::mem::MaybeUninit;

    use guest_proto::LossEffect;
    use libbpf_rs::skel::{OpenSkel, SkelBuilder};

    use super::super::loss::{Loss, Row, doubts};
    use super::super::skeleton;
    use super::*;

    /// A kernel that lacks some functions.
    struct Fake {
        lacks: BTreeSet<String>,
        lsm: bool,
        ring_messages: bool,
    }

    impl Fake {
        fn new(lacks: &[&str]) -> Self {
            Fake {
                lacks: lacks.iter().map(|name| (*name).to_owned()).collect(),
                lsm: true,
                ring_messages: true,
            }
        }
    }

    impl Kernel for Fake {
        fn has_function(&self, name: &str) -> bool {
            !self.lacks.contains(name)
        }
        fn has_event(&self, name: &str) -> bool {
            !self.lacks.contains(name)
        }
        fn has_ring_messages(&self) -> bool {
            self.ring_messages
        }
        fn calls_lsm(&self) -> bool {
            self.lsm
        }
    }

    /// Names and sections, as they are in the object file.
    fn programs() -> Vec<(String, String)> {
        let mut object = MaybeUninit::uninit();
        let open = skeleton::TrackerSkelBuilder::default();
        let open = open.open(&mut object).unwrap();
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        open.open_object()
            .progs()
            .map(|program| (text(program.name()), text(program.section())))
            .collect()
    }

    fn plan(kernel: &Fake) -> Plan {
        Plan::new(programs(), kernel)
    }

    #[test]
    fn every_program_has_a_row_and_every_row_a_program() {
        let programs: BTreeSet<String> = programs().into_iter().map(|(name, _)| name).collect();
        let mut rows: BTreeSet<String> = TABLE.iter().map(|row| row.program.to_owned()).collect();
        assert_eq!(rows.len(), TABLE.len(), "a program has two rows");
        for row in &TABLE {
            for name in row.stand_ins().iter().copied().flatten() {
                assert!(is_stand_in(name), "{name}");
                rows.insert((*name).to_owned());
            }
        }
        assert_eq!(programs, rows);
    }

    #[test]
    fn nothing_is_lost_on_a_kernel_that_has_all() {
        let plan = plan(&Fake::new(&[]));
        assert_eq!(plan.lost(), []);
        assert_eq!(*plan.way("mmap_file"), Way::AsIs);
        assert!(!plan.is_on("security_mmap_file"));
        assert!(
            programs()
                .iter()
                .all(|(name, _)| !is_stand_in(name) || !plan.is_on(name))
        );
    }

    #[test]
    fn without_the_bpf_lsm_wrappers_are_used() {
        let kernel = Fake {
            lsm: false,
            ..Fake::new(&[])
        };
        let plan = plan(&kernel);
        assert_eq!(plan.lost(), []);
        let wrapper = Way::Wrapper("security_file_lock".into());
        assert_eq!(*plan.way("file_lock"), wrapper);
        assert!(!plan.is_on("mmap_file"));
        assert_eq!(*plan.way("security_mmap_file"), Way::AsIs);
    }

    #[test]
    fn what_a_kernel_does_not_have_is_not_lost() {
        let mut kernel = Fake::new(&[
            "bpf_lsm_file_truncate",
            "security_file_truncate",
            "io_msg_ring",
        ]);
        kernel.ring_messages = false;
        assert_eq!(plan(&kernel).lost(), []);
        kernel.ring_messages = true;
        let plan = plan(&kernel);
        let [lost] = plan.lost() else {
            panic!("{:?}", plan.lost());
        };
        assert_eq!(lost.row.program, "io_msg_ring");
        // A stand-in in the same place would find none either.
        assert_eq!(lost.effect(), LossEffect::Everyone);
    }

    #[test]
    fn whatever_fails_is_named_and_something_stands_in_or_all_is_uncertain() {
        let kernel = Fake::new(&[]);
        for row in &TABLE {
            for cause in [
                LossCause::Verifier,
                LossCause::Relocation,
                LossCause::Attach,
            ] {
                let mut plan = plan(&kernel);
                let mut failures = 0;
                // Each program in the same place fails in turn.
                while let Some(next) = next_of(row.program, &plan) {
                    plan.failed(&next, cause, "words", &kernel);
                    failures += 1;
                    assert!(failures < 8, "{}: no end", row.program);
                    let known = plan.lost().iter().any(|lost| lost.cause == cause);
                    let replaced = next_of(row.program, &plan).is_some();
                    assert!(known || replaced, "{next}: neither replaced nor named");
                    if known && !replaced {
                        let doubts = doubts(plan.lost());
                        let from_proc = row.loss == Loss::FromProc;
                        assert!(
                            doubts.everyone || doubts.everybody_waits || from_proc,
                            "{next}: nothing is uncertain"
                        );
                    }
                }
                if row.program != "security_mmap_file" {
                    assert!(failures > 0, "{}", row.program);
                }
            }
        }
    }

    /// The program that sees what `program` sees, in this plan.
    fn next_of(program: &str, plan: &Plan) -> Option<String> {
        let mut places = vec![program];
        if program == "mmap_file" {
            places.push("security_mmap_file");
        }
        let sets = row_of(program).map(Row::stand_ins).unwrap_or_default();
        places.extend(sets.iter().copied().flatten());
        let on = places.into_iter().find(|name| plan.is_on(name));
        on.map(str::to_owned)
    }

    #[test]
    fn a_stand_in_of_two_programs_counts_for_both() {
        let kernel = Fake::new(&[]);
        let mut plan = plan(&kernel);
        plan.failed("path_truncate", LossCause::Verifier, "", &kernel);
        plan.failed("file_truncate", LossCause::Verifier, "", &kernel);
        assert!(!doubts(plan.lost()).everyone);
        plan.failed("unseen_truncate", LossCause::Attach, "", &kernel);
        assert!(
            plan.lost()
                .iter()
                .all(|lost| lost.effect() == LossEffect::Everyone)
        );
        // One that fails after its stand-in has failed.
        let mut plan = self::plan(&kernel);
        plan.failed("path_truncate", LossCause::Verifier, "", &kernel);
        plan.failed("unseen_truncate", LossCause::Attach, "", &kernel);
        plan.failed("file_truncate", LossCause::Verifier, "", &kernel);
        assert_eq!(plan.lost().len(), 2);
        assert!(
            plan.lost()
                .iter()
                .all(|lost| lost.effect() == LossEffect::Everyone)
        );
    }
}

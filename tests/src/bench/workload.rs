//! What runs in the guest.

use lab::VmOptions;
use lab::saved::Recipe;

/// Keys of 1 KiB that Redis holds before anybody comes.
const KEYS: u32 = 20_000;

/// A job that writes memory.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Its name.
    pub name: &'static str,
    /// Memory that it writes, again and again.
    pub mib: u32,
    /// How fast, in MB/s; 0 for as fast as it can.
    pub mb_per_s: u32,
    /// `full` rewrites whole pages with fresh data, `text` with such that can be compressed, `touch`
    /// 8 bytes of each.
    pub mode: &'static str,
}

/// What runs in the guest, and what clients outside do with it.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Its short name.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    /// The batch jobs.
    pub jobs: &'static [Job],
    /// Requests a second to Redis.
    pub requests: Option<u32>,
    /// The job that turns to somebody outside when half of the memory has moved.
    pub turns: Option<&'static str>,
    /// The link's rate, as `tc` takes it; nothing for as fast as it can.
    pub link: Option<&'static str>,
}

/// Requests that a guest under emulation answers without a queue, another processor being busy.
const REQUESTS: Option<u32> = Some(400);

/// The link of most.
const GIGABIT: Option<&str> = Some("1gbit");

/// What outruns any link.
const BATCH: &[Job] = &[Job {
    name: "batch",
    mib: 600,
    mb_per_s: 0,
    mode: "full",
}];

/// The benchmark's workloads.
pub const ALL: [Workload; 10] = [
    Workload {
        name: "W1",
        title: "Redis under load, and a job that rewrites 600 MiB of whole pages at full speed",
        jobs: BATCH,
        requests: REQUESTS,
        turns: None,
        link: GIGABIT,
    },
    Workload {
        name: "W1b",
        title: "the same, but the job changes 8 bytes a page",
        jobs: &[Job {
            name: "batch",
            mib: 600,
            mb_per_s: 0,
            mode: "touch",
        }],
        requests: REQUESTS,
        turns: None,
        link: GIGABIT,
    },
    Workload {
        name: "W1c",
        title: "the same as W1, but what the job writes can be compressed",
        jobs: &[Job {
            name: "batch",
            mib: 600,
            mb_per_s: 0,
            mode: "text",
        }],
        requests: REQUESTS,
        turns: None,
        link: GIGABIT,
    },
    Workload {
        name: "W2",
        title: "an idle guest",
        jobs: &[],
        requests: None,
        turns: None,
        link: GIGABIT,
    },
    Workload {
        name: "W2b",
        title: "no clients, and a job that rewrites 64 MiB at 10 MB/s",
        jobs: &[Job {
            name: "light",
            mib: 64,
            mb_per_s: 10,
            mode: "full",
        }],
        requests: None,
        turns: None,
        link: GIGABIT,
    },
    Workload {
        name: "W3",
        title: "Redis under load, no batch job",
        jobs: &[],
        requests: REQUESTS,
        turns: None,
        link: GIGABIT,
    },
    Workload {
        name: "W4",
        title: "Redis under load, and four jobs, of which `turning` becomes dependent half-way",
        jobs: &[
            Job {
                name: "large",
                mib: 320,
                mb_per_s: 0,
                mode: "full",
            },
            Job {
                name: "middle",
                mib: 160,
                mb_per_s: 160,
                mode: "full",
            },
            Job {
                name: "turning",
                mib: 80,
                mb_per_s: 30,
                mode: "full",
            },
            Job {
                name: "small",
                mib: 40,
                mb_per_s: 10,
                mode: "touch",
            },
        ],
        requests: REQUESTS,
        turns: Some("turning"),
        link: GIGABIT,
    },
    Workload {
        name: "W5",
        title: "1200 MiB of data at rest, on a link without a limit",
        jobs: &[Job {
            name: "store",
            mib: 1200,
            mb_per_s: 1,
            mode: "full",
        }],
        requests: None,
        turns: None,
        link: None,
    },
    Workload {
        name: "W6",
        title: "the same as W1, on a link that carries less than a tenth of what the job writes",
        jobs: BATCH,
        requests: REQUESTS,
        turns: None,
        link: Some("200mbit"),
    },
    Workload {
        name: "W6b",
        title: "Redis under load, and a job that changes 8 bytes of each page of 1250 MiB at full speed: more than ten times as many pages a second as the link carries",
        jobs: &[Job {
            name: "touching",
            mib: 1250,
            mb_per_s: 0,
            mode: "touch",
        }],
        requests: REQUESTS,
        turns: None,
        link: GIGABIT,
    },
];

impl Workload {
    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        ALL.into_iter().find(|one| one.name == name)
    }

    /// Memory that the jobs write.
    pub fn job_bytes(&self) -> u64 {
        let mib: u64 = self.jobs.iter().map(|job| u64::from(job.mib)).sum();
        mib << 20
    }

    /// The guest, and how it gets there.
    pub fn recipe(&self) -> Recipe {
        let fill =
            format!("redis-benchmark -q -t set -n {KEYS} -r {KEYS} -d 1024 -c 8 -P 16 >/dev/null");
        let jobs = self.jobs.iter().map(|job| {
            let Job {
                name,
                mib,
                mb_per_s,
                mode,
            } = job;
            format!(
                "lab-guest writer {mib} {mb_per_s} {mode} {name} >/run/{name}.log 2>&1 & \
                 until grep -q ready /run/{name}.log; do usleep 20000; done"
            )
        });
        Recipe {
            name: self.name.to_lowercase(),
            options: VmOptions {
                memory: "2G".into(),
                vcpus: 2,
                agent: true,
                ..VmOptions::default()
            },
            commands: std::iter::once(fill).chain(jobs).collect(),
        }
    }
}

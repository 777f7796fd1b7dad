//! What the daemon has done, for Prometheus.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::board::News;
use crate::control::Role;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Way {
    way: &'static str,
}

impl Way {
    fn of(role: Role) -> Self {
        Way {
            way: match role {
                Role::Send => "from_here",
                Role::Receive => "to_here",
            },
        }
    }
}

/// Counted from the start of the daemon.
#[derive(Debug, Default)]
pub(super) struct Figures {
    running: Family<Way, Gauge>,
    carried: Family<Way, Counter>,
    failed: Family<Way, Counter>,
    wire: Family<Way, Counter>,
}

impl Figures {
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("unmoord");
        registry.register(
            "migrations_running",
            "VMs that are moving",
            self.running.clone(),
        );
        registry.register(
            "migrations_carried",
            "VMs that were loaded at their destination",
            self.carried.clone(),
        );
        registry.register(
            "migrations_failed",
            "VMs that stayed where they were",
            self.failed.clone(),
        );
        registry.register_with_unit(
            "wire",
            "What went over the link for VMs that have moved",
            Unit::Bytes,
            self.wire.clone(),
        );
        registry
    }

    pub(super) fn begins(&self, role: Role) {
        self.running.get_or_create(&Way::of(role)).inc();
    }

    pub(super) fn ends(&self, role: Role) {
        self.running.get_or_create(&Way::of(role)).dec();
    }

    pub(super) fn hear(&self, news: &News) {
        match news {
            News::Carried {
                role, wire_bytes, ..
            } => {
                let way = Way::of(*role);
                self.carried.get_or_create(&way).inc();
                self.wire.get_or_create(&way).inc_by(*wire_bytes);
            }
            News::Failed { role, .. } => {
                self.failed.get_or_create(&Way::of(*role)).inc();
            }
            News::Listening { .. } | News::Note { .. } | News::Began { .. } => {}
        }
    }
}

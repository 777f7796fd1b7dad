//! Which boxes the graph of dependencies has, in which column: few enough to read, whatever the
//! guest runs.

use std::collections::{BTreeMap, HashMap};

use super::escape::named;
use crate::report::bytes;
use crate::report::record::{Process, Record};

/// Most boxes in a column; what is left is one more.
const COLUMN_MAX: usize = 12;
/// Farther from the outside than this is one column.
const STEPS_MAX: u32 = 2;
/// A process that nothing else is known of, with less memory than this, is folded first.
const SMALL: u64 = 1 << 20;

/// A box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) title: String,
    pub(super) detail: String,
    /// Everything, for whoever points at it.
    pub(super) full: String,
    pub(super) paused: bool,
}

/// Boxes one above the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) heading: &'static str,
    /// Its colour.
    pub(super) class: &'static str,
    pub(super) nodes: Vec<Node>,
}

/// A box's column and place in it.
pub(super) type Place = (usize, usize);

/// Columns, and arrows between boxes of them, towards the outside.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) columns: Vec<Column>,
    /// Those that no arrow leads to or from.
    pub(super) free: Vec<Node>,
    pub(super) arrows: Vec<(Place, Place)>,
}

/// Processes that share a box.
#[derive(Debug)]
struct Bundle<'a> {
    members: Vec<&'a Process>,
    /// What matters about it, most first.
    weight: (bool, usize, u64),
}

impl Layout {
    /// Of all that is known.
    pub(super) fn of(record: &Record) -> Self {
        let mut layout = Layout::default();
        let mut places: HashMap<u32, Place> = HashMap::new();
        let mut pointed_at: HashMap<u32, usize> = HashMap::new();
        for toward in record.processes.iter().filter_map(|process| process.toward) {
            *pointed_at.entry(toward).or_default() += 1;
        }
        let bundles = |wanted: &dyn Fn(&Process) -> bool| {
            let processes = record.processes.iter().filter(|process| wanted(process));
            bundles(processes, record, &pointed_at)
        };
        let direct = bundles(&|process| process.distance == Some(0));
        layout.outside_and_direct(&direct, record, &mut places);
        for steps in 1..=STEPS_MAX {
            let far = |process: &Process| match process.distance {
                Some(distance) if steps == STEPS_MAX => distance >= steps,
                distance => distance == Some(steps),
            };
            let mut indirect = bundles(&far);
            // Near the one that they point at, so that arrows cross less.
            indirect.sort_by_key(|bundle| target(bundle, &places));
            let heading = match steps {
                1 => "exchange data with those",
                _ => "two steps away and more",
            };
            layout.column(heading, "indirect", &indirect, record, &mut places);
        }
        let free = bundles(&|process| process.may_pause);
        layout.column("", "free", &free, record, &mut HashMap::new());
        if !free.is_empty() {
            layout.free = layout
                .columns
                .pop()
                .map(|column| column.nodes)
                .unwrap_or_default();
        }
        for process in &record.processes {
            let from = places.get(&process.pid).copied();
            let to = process
                .toward
                .and_then(|toward| places.get(&toward))
                .copied();
            if let (Some(from), Some(to)) = (from, to)
                && from != to
                && !layout.arrows.contains(&(from, to))
            {
                layout.arrows.push((from, to));
            }
        }
        layout
    }

    /// The contacts with the outside, and who has them.
    fn outside_and_direct(
        &mut self,
        direct: &[Bundle<'_>],
        record: &Record,
        places: &mut HashMap<u32, Place>,
    ) {
        if direct.is_empty() {
            return;
        }
        let mut contacts: Vec<(String, u32)> = Vec::new();
        for process in direct.iter().flat_map(|bundle| &bundle.members) {
            let contact = contact(process);
            match contacts.iter_mut().find(|(text, _)| *text == contact) {
                Some((_, count)) => *count += 1,
                None => contacts.push((contact, 1)),
            }
        }
        let shown = if contacts.len() > COLUMN_MAX {
            COLUMN_MAX - 1
        } else {
            contacts.len()
        };
        let processes = |count: u32| match count {
            1 => "1 process".to_owned(),
            count => format!("{count} processes"),
        };
        let node = |title: String, count| Node {
            full: title.clone(),
            title,
            detail: processes(count),
            paused: false,
        };
        let rest = &contacts[shown..];
        let mut nodes: Vec<Node> = contacts[..shown]
            .iter()
            .map(|(text, count)| node(text.clone(), *count))
            .collect();
        if !rest.is_empty() {
            let count = rest.iter().map(|(_, count)| count).sum();
            nodes.push(node(format!("{} more contacts", rest.len()), count));
        }
        self.columns.push(Column {
            heading: "the outside",
            class: "outside",
            nodes,
        });
        self.column("in contact with it", "direct", direct, record, places);
        for process in direct.iter().flat_map(|bundle| &bundle.members) {
            let contact = contact(process);
            let at = contacts.iter().position(|(text, _)| *text == contact);
            if let (Some(from), Some(at)) = (places.get(&process.pid), at) {
                let arrow = (*from, (0, at.min(shown)));
                if !self.arrows.contains(&arrow) {
                    self.arrows.push(arrow);
                }
            }
        }
    }

    fn column(
        &mut self,
        heading: &'static str,
        class: &'static str,
        bundles: &[Bundle<'_>],
        record: &Record,
        places: &mut HashMap<u32, Place>,
    ) {
        if bundles.is_empty() {
            return;
        }
        let at = self.columns.len();
        let unremarkable =
            |bundle: &Bundle<'_>| class == "free" && bundle.weight < (false, 1, SMALL);
        let small = bundles.iter().filter(|bundle| unremarkable(bundle)).count();
        let mut order: Vec<usize> = (0..bundles.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(bundles[*i].weight));
        let mut most = if bundles.len() > COLUMN_MAX {
            COLUMN_MAX - 1
        } else {
            bundles.len()
        };
        // Two or three small ones are told apart; many are one box.
        if small > 3 {
            most = most.min(bundles.len() - small);
        }
        let mut shown = order[..most].to_vec();
        shown.sort_unstable();
        let mut nodes = Vec::new();
        for i in shown {
            for member in &bundles[i].members {
                places.insert(member.pid, (at, nodes.len()));
            }
            nodes.push(node(&bundles[i], record));
        }
        let rest: Vec<&Process> = order[most..]
            .iter()
            .flat_map(|i| bundles[*i].members.iter().copied())
            .collect();
        if !rest.is_empty() {
            for member in &rest {
                places.insert(member.pid, (at, nodes.len()));
            }
            let memory = rest.iter().map(|one| one.anonymous_bytes).sum();
            let names: Vec<String> = rest.iter().take(40).map(|one| one.name.clone()).collect();
            nodes.push(Node {
                title: format!("{} more", rest.len()),
                detail: format!("{} together", bytes(memory)),
                full: names.join(", "),
                paused: false,
            });
        }
        self.columns.push(Column {
            heading,
            class,
            nodes,
        });
    }
}

/// Processes of one name that are what they are for one reason share a box, unless something
/// was done to one of them.
fn bundles<'a>(
    processes: impl Iterator<Item = &'a Process>,
    record: &Record,
    pointed_at: &HashMap<u32, usize>,
) -> Vec<Bundle<'a>> {
    let mut by_key: BTreeMap<(u32, &str, Option<u32>, String), Bundle<'a>> = BTreeMap::new();
    for process in processes {
        let paused = is_paused(record, process.pid);
        let own = if paused { process.pid } else { 0 };
        let contact = match process.distance {
            Some(0) => contact(process),
            _ => String::new(),
        };
        let key = (own, process.name.as_str(), process.toward, contact);
        let bundle = by_key.entry(key).or_insert(Bundle {
            members: Vec::new(),
            weight: (false, 0, 0),
        });
        bundle.members.push(process);
        bundle.weight.0 |= paused;
        bundle.weight.1 += pointed_at.get(&process.pid).copied().unwrap_or(0);
        bundle.weight.2 += process.anonymous_bytes;
    }
    let mut bundles: Vec<Bundle<'a>> = by_key.into_values().collect();
    bundles.sort_by_key(|bundle| std::cmp::Reverse(bundle.weight));
    bundles
}

fn node(bundle: &Bundle<'_>, record: &Record) -> Node {
    let Some(first) = bundle.members.first() else {
        return Node {
            title: String::new(),
            detail: String::new(),
            full: String::new(),
            paused: false,
        };
    };
    let memory = bundle.members.iter().map(|one| one.anonymous_bytes).sum();
    let title = match bundle.members.len() {
        1 => named(&crate::report::Named {
            pid: first.pid,
            name: first.name.clone(),
        }),
        count => format!("{} × {count}", first.name),
    };
    let pause = record
        .pauses
        .iter()
        .find(|one| one.process.pid == first.pid);
    let detail = match (pause, first.why.first()) {
        (Some(pause), _) => match pause.length_ms() {
            Some(ms) => format!("paused for {}", super::axis::seconds(ms)),
            None => "paused".to_owned(),
        },
        (None, Some(why)) => why.clone(),
        (None, None) => bytes(memory),
    };
    let mut full = format!("{title}, {}", bytes(memory));
    for step in &first.why {
        full += "; ";
        full += step;
    }
    Node {
        title,
        detail,
        full,
        paused: pause.is_some(),
    }
}

pub(super) fn is_paused(record: &Record, pid: u32) -> bool {
    record.pauses.iter().any(|pause| pause.process.pid == pid)
}

/// The place of what a bundle points at.
fn target(bundle: &Bundle<'_>, places: &HashMap<u32, Place>) -> Place {
    let toward = bundle.members.first().and_then(|first| first.toward);
    let place = toward.and_then(|toward| places.get(&toward));
    place.copied().unwrap_or((usize::MAX, 0))
}

/// The contact with the outside; connections with one peer are one contact.
fn contact(process: &Process) -> String {
    let why = process.why.first().map_or("unknown", String::as_str);
    let why = why.strip_prefix("established ").unwrap_or(why);
    match why.rsplit_once(':') {
        Some((peer, port))
            if (why.starts_with("TCP with ") || why.starts_with("UDP with "))
                && !port.is_empty()
                && port.bytes().all(|c| c.is_ascii_digit()) =>
        {
            peer.to_owned()
        }
        _ => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, name: &str, distance: Option<u32>, toward: Option<u32>) -> Process {
        Process {
            pid,
            name: name.to_owned(),
            class: "indirect",
            may_pause: distance.is_none(),
            distance,
            toward,
            why: match distance {
                Some(0) => vec![format!("TCP with 10.0.0.9:{}", 1000 + pid)],
                _ => Vec::new(),
            },
            anonymous_bytes: 4096,
            ..Process::default()
        }
    }

    fn titles(column: &Column) -> Vec<&str> {
        column
            .nodes
            .iter()
            .map(|node| node.title.as_str())
            .collect()
    }

    #[test]
    fn arrows_lead_to_the_outside() {
        let record = Record {
            processes: vec![
                process(1, "nginx", Some(0), None),
                process(2, "nginx", Some(0), None),
                process(3, "backend", Some(1), Some(2)),
                process(4, "batch", None, None),
            ],
            ..Record::default()
        };
        let layout = Layout::of(&record);
        let columns: Vec<_> = layout.columns.iter().map(titles).collect();
        let expected = [
            vec!["TCP with 10.0.0.9"],
            vec!["nginx × 2"],
            vec!["backend (3)"],
        ];
        assert_eq!(columns, expected);
        assert_eq!(layout.free.len(), 1);
        assert_eq!(layout.arrows, [((1, 0), (0, 0)), ((2, 0), (1, 0))]);
    }

    #[test]
    fn a_guest_with_thousands_of_processes_stays_readable() {
        let mut processes = vec![process(1, "front", Some(0), None)];
        for pid in 2..1000 {
            processes.push(process(pid, &format!("job-{pid}"), None, None));
            processes.push(process(
                pid + 1000,
                &format!("b-{pid}"),
                Some(1 + pid % 5),
                Some(1),
            ));
        }
        let record = Record {
            processes,
            ..Record::default()
        };
        let layout = Layout::of(&record);
        assert_eq!(layout.columns.len(), 4);
        for column in &layout.columns {
            assert!(column.nodes.len() <= COLUMN_MAX, "{column:?}");
        }
        let free: Vec<_> = layout.free.iter().map(|node| node.title.as_str()).collect();
        assert_eq!(free, ["998 more"]);
    }
}

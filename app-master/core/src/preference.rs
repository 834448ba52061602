//! Where a slot's next container would rather run, best first: where valid local state is, by bytes; then at the
//! leaders of its partitions; then at their replicas; then in those hosts' racks. Each says why.

use std::collections::BTreeMap;

use types::{ContainerModel, NodeId, NodeState, Preference};

use crate::place::{Topology, same_host};

/// What preferences are made from.
#[derive(Debug)]
pub struct Known<'a> {
    /// Where the inputs are.
    pub topology: &'a Topology,
    /// Local state by node.
    pub state: &'a BTreeMap<NodeId, NodeState>,
    /// Hosts not to prefer: each entry is all names of one.
    pub avoid: &'a [Vec<String>],
    /// Local state flushed earlier than this is of no use, unix ms.
    pub valid_since_unix_ms: u64,
}

/// Why a host is preferred. The order of the fields is the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Merit {
    state_bytes: u64,
    leaders: u64,
    replicas: u64,
}

#[derive(Debug)]
struct Host {
    names: Vec<String>,
    rack: String,
    merit: Merit,
}

/// The preferences of a container with tasks `model`, best first.
#[must_use]
pub fn preferences(model: &ContainerModel, known: &Known<'_>) -> Vec<Preference> {
    let mut hosts: Vec<Host> = Vec::new();
    for node in known.state.values() {
        let bytes: u64 = model.tasks.iter().map(|t| useful_bytes(&t.state_entry(), node, known)).sum();
        if bytes > 0 {
            host_named(&mut hosts, &node.hosts, "").merit.state_bytes += bytes;
        }
    }
    for input in model.tasks.iter().flat_map(|t| &t.inputs) {
        let Some(place) = known.topology.partition(&input.stream, input.partition) else { continue };
        for id in &place.replicas {
            let Some(broker) = known.topology.broker(&input.stream.system, *id) else { continue };
            let mut names = vec![broker.host.clone()];
            names.extend(broker.aliases.iter().cloned());
            let host = host_named(&mut hosts, &names, &broker.rack);
            if place.leader == Some(*id) {
                host.merit.leaders += 1;
            } else {
                host.merit.replicas += 1;
            }
        }
    }
    hosts.retain(|h| !known.avoid.iter().any(|a| matches(&h.names, a)));
    hosts.sort_by(|a, b| b.merit.cmp(&a.merit).then_with(|| a.names.cmp(&b.names)));
    hosts.into_iter().map(preference).collect()
}

fn matches(left: &[String], right: &[String]) -> bool {
    same_host(left.iter().map(String::as_str), right.iter().map(String::as_str))
}

fn host_named<'a>(hosts: &'a mut Vec<Host>, names: &[String], rack: &str) -> &'a mut Host {
    let found = hosts.iter().position(|h| matches(&h.names, names));
    let at = found.unwrap_or_else(|| {
        hosts.push(Host { names: Vec::new(), rack: String::new(), merit: Merit::default() });
        hosts.len() - 1
    });
    let host = &mut hosts[at];
    for name in names {
        if !name.is_empty() && !host.names.iter().any(|n| n.eq_ignore_ascii_case(name)) {
            host.names.push(name.clone());
        }
    }
    if host.rack.is_empty() {
        host.rack = rack.to_owned();
    }
    host
}

/// Bytes of `entry` on `node` that a restore need not read again. A copy that another node has newer is worth
/// half: its changelog tail is the longer one.
fn useful_bytes(entry: &str, node: &NodeState, known: &Known<'_>) -> u64 {
    let Some(mine) = node.entries.iter().find(|e| e.entry == entry) else { return 0 };
    if mine.flushed_unix_ms < known.valid_since_unix_ms {
        return 0;
    }
    let newest = known
        .state
        .values()
        .flat_map(|n| &n.entries)
        .filter(|e| e.entry == entry)
        .map(|e| e.flushed_unix_ms)
        .max()
        .unwrap_or(0);
    if mine.flushed_unix_ms < newest { mine.bytes / 2 } else { mine.bytes }
}

fn preference(host: Host) -> Preference {
    let mut names = host.names.into_iter();
    Preference {
        host: names.next().unwrap_or_default(),
        aliases: names.collect(),
        rack: host.rack,
        weight: weight(host.merit),
        reason: reason(host.merit),
    }
}

/// The merit as one number, the fields one above the other: KiB of state, 12 bits each for the counts.
fn weight(merit: Merit) -> u64 {
    let state = merit.state_bytes.div_ceil(1024).min((1 << 40) - 1);
    (state << 24) | (merit.leaders.min(4095) << 12) | merit.replicas.min(4095)
}

fn reason(merit: Merit) -> String {
    let mut parts = Vec::new();
    if merit.state_bytes > 0 {
        parts.push(format!("local state {}", bytes(merit.state_bytes)));
    }
    if merit.leaders > 0 {
        parts.push(format!("leader of {}", partitions(merit.leaders)));
    }
    if merit.replicas > 0 {
        parts.push(format!("replica of {}", partitions(merit.replicas)));
    }
    parts.join(", ")
}

fn partitions(n: u64) -> String {
    if n == 1 { "1 partition".into() } else { format!("{n} partitions") }
}

fn bytes(n: u64) -> String {
    if n >= 1 << 20 { format!("{} MiB", n >> 20) } else { format!("{} KiB", n.div_ceil(1024)) }
}

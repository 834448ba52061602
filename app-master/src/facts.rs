//! Reads where the inputs are.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::sync::Arc;

use am_core::place::{Broker, PartitionPlace, Topology};
use am_core::plan;
use task_api::system::{BrokerMetadata, SystemAdmin, SystemError, TopicMetadata};
use types::{JobSpec, SystemStream};

use crate::systems::Systems;

/// Why the topology is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unread {
    /// Inputs that do not exist yet: `system.topic`.
    MissingInputs(Vec<String>),
    /// A system failed.
    System(String, SystemError),
}

/// Brokers, leaders and replicas of every input of `spec` that exists, patterns replaced by what matches them; and the
/// topics of inputs that do not exist.
///
/// # Errors
/// A system did not answer.
pub fn read_topology(spec: &JobSpec, systems: &mut dyn Systems) -> Result<(Topology, Vec<String>), Unread> {
    let mut topology = Topology::default();
    let matched = matched(spec, systems)?;
    let inputs = types::inputs(&matched)
        .map_err(|e| Unread::System(String::new(), SystemError::Fatal(e.to_string())))?;
    let mut missing = Vec::new();
    for system in plan::systems(spec) {
        let of = |e: SystemError| Unread::System(system.clone(), e);
        let admin = systems.admin(&system).map_err(of)?;
        let mine: Vec<&SystemStream> = inputs.iter().filter(|i| i.system == system).collect();
        read_streams(&matched, &mine, &admin, &mut topology, &mut missing).map_err(of)?;
    }
    Ok((topology, missing))
}

/// As [`read_topology`], where every input must exist, and something match the patterns if there are no others.
///
/// # Errors
/// As above, or an input does not exist.
pub fn read_whole_topology(spec: &JobSpec, systems: &mut dyn Systems) -> Result<Topology, Unread> {
    let (topology, mut missing) = read_topology(spec, systems)?;
    if missing.is_empty() && topology.streams.is_empty() {
        missing = spec.task.inputs.clone();
    }
    if missing.is_empty() { Ok(topology) } else { Err(Unread::MissingInputs(missing)) }
}

/// `spec` with its patterns replaced.
fn matched(spec: &JobSpec, systems: &mut dyn Systems) -> Result<JobSpec, Unread> {
    let mut topics: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for input in spec.task.inputs.iter().filter_map(|input| SystemStream::parse(input)) {
        if input.pattern().is_some() && !topics.contains_key(&input.system) {
            let of = |e: SystemError| Unread::System(input.system.clone(), e);
            let found = systems.admin(&input.system).map_err(of)?.topics().map_err(of)?;
            topics.insert(input.system.clone(), found);
        }
    }
    Ok(types::expand(spec, &|system| topics.get(system).cloned().unwrap_or_default()))
}

fn read_streams(
    spec: &JobSpec,
    inputs: &[&SystemStream],
    admin: &Arc<dyn SystemAdmin>,
    topology: &mut Topology,
    missing: &mut Vec<String>,
) -> Result<(), SystemError> {
    let topics: Vec<String> = inputs.iter().map(|i| spec.stream(i).topic).collect();
    let mut found: BTreeMap<String, TopicMetadata> =
        admin.describe(&topics)?.into_iter().map(|topic| (topic.topic.clone(), topic)).collect();
    for (input, topic) in inputs.iter().zip(topics) {
        match found.get_mut(&topic).filter(|t| !t.partitions.is_empty()) {
            None => missing.push(topic),
            Some(there) => {
                let known = topology.brokers.entry(input.system.clone()).or_default();
                for broker in there.brokers.drain(..) {
                    known.entry(broker.id).or_insert_with(|| placed(broker));
                }
                there.partitions.sort_by_key(|p| p.partition);
                let places = there
                    .partitions
                    .iter()
                    .map(|p| PartitionPlace { leader: p.leader, replicas: p.replicas.clone() });
                topology.streams.insert((*input).clone(), places.collect());
            }
        }
    }
    Ok(())
}

fn placed(broker: BrokerMetadata) -> Broker {
    let aliases = addresses(&broker.host, broker.port);
    Broker { host: broker.host, aliases, rack: broker.rack }
}

/// What `host` resolves to, without itself.
fn addresses(host: &str, port: u16) -> Vec<String> {
    let Ok(found) = (host, port).to_socket_addrs() else { return Vec::new() };
    let mut all: Vec<String> = found.map(|a| a.ip().to_string()).filter(|a| a != host).collect();
    all.sort();
    all.dedup();
    all
}

//! Reads where the inputs are.

use std::net::ToSocketAddrs;
use std::sync::Arc;

use am_core::place::{Broker, PartitionPlace, Topology};
use am_core::plan;
use task_api::system::{SystemAdmin, SystemError};
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

/// Brokers, leaders and replicas of every input of `spec`.
///
/// # Errors
/// An input does not exist, or a system did not answer.
pub fn read_topology(spec: &JobSpec, systems: &mut dyn Systems) -> Result<Topology, Unread> {
    let mut topology = Topology::default();
    let inputs =
        types::inputs(spec).map_err(|e| Unread::System(String::new(), SystemError::Fatal(e.to_string())))?;
    let mut missing = Vec::new();
    for system in plan::systems(spec) {
        let of = |e: SystemError| Unread::System(system.clone(), e);
        let admin = systems.admin(&system).map_err(of)?;
        let brokers = admin.brokers().map_err(of)?;
        let known = brokers.into_iter().map(|b| {
            let aliases = addresses(&b.host, b.port);
            (b.id, Broker { host: b.host, aliases, rack: b.rack })
        });
        topology.brokers.insert(system.clone(), known.collect());
        let mine: Vec<&SystemStream> = inputs.iter().filter(|i| i.system == system).collect();
        read_streams(spec, &mine, &admin, &mut topology, &mut missing).map_err(of)?;
    }
    if missing.is_empty() { Ok(topology) } else { Err(Unread::MissingInputs(missing)) }
}

fn read_streams(
    spec: &JobSpec,
    inputs: &[&SystemStream],
    admin: &Arc<dyn SystemAdmin>,
    topology: &mut Topology,
    missing: &mut Vec<String>,
) -> Result<(), SystemError> {
    let topics: Vec<String> = inputs.iter().map(|i| physical(spec, i)).collect();
    let found = admin.describe(&topics)?;
    for (input, topic) in inputs.iter().zip(topics) {
        match found.iter().find(|t| t.topic == topic && !t.partitions.is_empty()) {
            None => missing.push(topic),
            Some(there) => {
                let mut partitions = there.partitions.clone();
                partitions.sort_by_key(|p| p.partition);
                let places =
                    partitions.into_iter().map(|p| PartitionPlace { leader: p.leader, replicas: p.replicas });
                topology.streams.insert((*input).clone(), places.collect());
            }
        }
    }
    Ok(())
}

/// The topic of a stream.
fn physical(spec: &JobSpec, stream: &SystemStream) -> String {
    spec.stream(stream).topic
}

/// What `host` resolves to, without itself.
fn addresses(host: &str, port: u16) -> Vec<String> {
    let Ok(found) = (host, port).to_socket_addrs() else { return Vec::new() };
    let mut all: Vec<String> = found.map(|a| a.ip().to_string()).filter(|a| a != host).collect();
    all.sort();
    all.dedup();
    all
}

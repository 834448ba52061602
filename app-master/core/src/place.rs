//! What Kafka says about where data is, and what the job remembered of itself: the facts that decisions rest on.

use std::collections::{BTreeMap, BTreeSet};

use types::{AppId, ContainerId, Grouper, JobModel, NodeId, SystemStream, TaskName};

/// One broker's place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Broker {
    /// Its advertised host.
    pub host: String,
    /// Addresses the host resolves to, and other names of it.
    pub aliases: Vec<String>,
    /// Its rack, empty if it has none.
    pub rack: String,
}

/// One partition's place: brokers by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionPlace {
    /// Its leader, none if it has none now.
    pub leader: Option<i32>,
    /// All its replicas, the leader among them.
    pub replicas: Vec<i32>,
}

/// Where the inputs are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Brokers that are up and have a replica of an input, by system and id.
    pub brokers: BTreeMap<String, BTreeMap<i32, Broker>>,
    /// Partitions of each input, in order.
    pub streams: BTreeMap<SystemStream, Vec<PartitionPlace>>,
}

impl Topology {
    /// The place of partition `partition` of `stream`, if both are known.
    #[must_use]
    pub fn partition(&self, stream: &SystemStream, partition: i32) -> Option<&PartitionPlace> {
        self.streams.get(stream)?.get(usize::try_from(partition).ok()?)
    }
    /// Broker `id` of `system`.
    #[must_use]
    pub fn broker(&self, system: &str, id: i32) -> Option<&Broker> {
        self.brokers.get(system)?.get(&id)
    }
}

/// Where a slot's last container ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPlace {
    /// The container.
    pub container: ContainerId,
    /// Its node.
    pub node: NodeId,
    /// The node's first name.
    pub host: String,
}

/// What the coordinator topic holds: the job's memory across attempts and submissions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remembered {
    /// Each task's changelog partition; for ever.
    pub changelog: BTreeMap<TaskName, i32>,
    /// The last job model.
    pub model: Option<RememberedModel>,
    /// Where each slot last ran.
    pub places: BTreeMap<u32, SlotPlace>,
}

/// The last job model, and whose it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RememberedModel {
    /// The application it was made for; its later attempts use it as it is.
    pub app: AppId,
    /// Counts the job's models, from 1.
    pub generation: u64,
    /// The model.
    pub model: JobModel,
    /// How its partitions became tasks; older records do not say.
    pub grouper: Option<Grouper>,
    /// The system of the checkpoint and coordinator topics; older records do not say.
    pub home: Option<String>,
}

/// All that has to be known before containers can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Where the inputs are.
    pub topology: Topology,
    /// What the job remembered.
    pub remembered: Remembered,
}

/// Whether two sets of host names name one host; without case.
#[must_use]
pub fn same_host<'a>(
    left: impl IntoIterator<Item = &'a str>,
    right: impl IntoIterator<Item = &'a str>,
) -> bool {
    let left: BTreeSet<String> =
        left.into_iter().filter(|n| !n.is_empty()).map(str::to_ascii_lowercase).collect();
    right.into_iter().any(|n| left.contains(&n.to_ascii_lowercase()))
}

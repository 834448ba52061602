//! Nodes, and the indexes by which placement finds them.
//!
//! | liveness \ event | Hello or beat | three beats missed | lease and its margin over |
//! |---|---|---|---|
//! | Active | Active | Suspect | (Suspect comes first) |
//! | Suspect | Active | Suspect | Lost: its containers are NodeLost, its session is closed |
//! | Lost | Active, by Hello only | Lost | Lost |
//!
//! A node that the store knows starts as Suspect, with a full lease from the resource manager's own start.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    CommandStamp, ContainerId, Epoch, JobId, NodeHello, NodeId, NodeIncarnation, NodeState, NodeStateName,
    Resource, StateEntry, Timestamp,
};

use crate::command::StoredNode;

/// A node's place in [`Nodes`]: dense and stable for the life of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeIx(pub(crate) u32);

/// Whether a node beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    Active,
    Suspect,
    Lost,
}

/// One node.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) incarnation: NodeIncarnation,
    pub(crate) total: Resource,
    pub(crate) hosts: Vec<String>,
    pub(crate) rack: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) address: String,
    pub(crate) liveness: Liveness,
    pub(crate) unhealthy: Option<String>,
    /// Whether it is being emptied, and how long containers have from TERM to KILL, ms.
    pub(crate) draining: Option<u64>,
    /// While it is draining: when all that it has is to be gone.
    pub(crate) gone_by: Option<Timestamp>,
    /// When its last beat or Hello came.
    pub(crate) heard: Timestamp,
    pub(crate) session: Option<u64>,
    /// What occupies it: every container of it that may still have a process.
    pub(crate) holding: BTreeMap<ContainerId, Resource>,
    /// The sum of `holding`.
    pub(crate) used: Resource,
    /// Whether what it came back with exceeds what it offers; placement never does.
    pub(crate) overfull: bool,
    /// Whether it was lost before the Hello that is being taken in: what it has was given up.
    pub(crate) returns: bool,
    /// Local state it keeps.
    pub(crate) state: BTreeMap<JobId, Vec<StateEntry>>,
}

impl Node {
    pub(crate) fn free(&self) -> Resource {
        self.total.minus(&self.used)
    }

    /// Whether new containers may go there at all.
    pub(crate) fn takes_containers(&self) -> bool {
        let open = self.unhealthy.is_none() && self.draining.is_none();
        open && self.liveness == Liveness::Active && self.session.is_some()
    }

    pub(crate) fn hold(&mut self, id: ContainerId, resource: Resource) {
        if self.holding.insert(id, resource).is_none() {
            self.used = self.used.plus(&resource);
        }
    }

    /// Whether anything was freed.
    pub(crate) fn release(&mut self, id: ContainerId) -> bool {
        let Some(resource) = self.holding.remove(&id) else { return false };
        self.used = self.used.minus(&resource);
        self.overfull = !self.total.fits(&self.used);
        true
    }

    pub(crate) fn state_name(&self) -> NodeStateName {
        match (self.liveness, &self.unhealthy) {
            (Liveness::Active, _) if self.draining.is_some() && self.holding.is_empty() => {
                NodeStateName::Drained
            }
            (Liveness::Active, _) if self.draining.is_some() => NodeStateName::Draining,
            (Liveness::Active, None) => NodeStateName::Active,
            (Liveness::Active, Some(_)) => NodeStateName::Unhealthy,
            (Liveness::Suspect, _) => NodeStateName::Suspect,
            (Liveness::Lost, _) => NodeStateName::Lost,
        }
    }

    pub(crate) fn stamp(&self, epoch: Epoch, session: u64) -> CommandStamp {
        CommandStamp { epoch, session, incarnation: self.incarnation.clone() }
    }

    pub(crate) fn stored(&self) -> StoredNode {
        StoredNode {
            node: self.id.clone(),
            incarnation: self.incarnation.clone(),
            total: self.total,
            hosts: self.hosts.clone(),
            rack: self.rack.clone(),
            lost: self.liveness == Liveness::Lost,
            draining: self.draining,
        }
    }

    pub(crate) fn state_of(&self, job: &JobId) -> NodeState {
        NodeState {
            node: self.id.clone(),
            hosts: self.hosts.clone(),
            entries: self.state.get(job).cloned().unwrap_or_default(),
        }
    }

    /// Groups `entries` by job, replacing what was known; returns the jobs whose list changed.
    pub(crate) fn set_state(&mut self, entries: Vec<StateEntry>) -> Vec<JobId> {
        let mut by_job: BTreeMap<JobId, Vec<StateEntry>> = BTreeMap::new();
        for entry in entries {
            by_job.entry(entry.job.clone()).or_default().push(entry);
        }
        let old = std::mem::replace(&mut self.state, by_job);
        let jobs: BTreeSet<&JobId> = old.keys().chain(self.state.keys()).collect();
        jobs.into_iter().filter(|job| old.get(*job) != self.state.get(*job)).cloned().collect()
    }
}

/// All nodes ever seen by this core.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    rows: Vec<Node>,
    by_id: BTreeMap<NodeId, NodeIx>,
    by_name: BTreeMap<String, BTreeSet<NodeIx>>,
    by_rack: BTreeMap<String, BTreeSet<NodeIx>>,
}

impl Nodes {
    pub(crate) fn ix(&self, id: &NodeId) -> Option<NodeIx> {
        self.by_id.get(id).copied()
    }

    pub(crate) fn get(&self, ix: NodeIx) -> &Node {
        &self.rows[ix.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, ix: NodeIx) -> &mut Node {
        &mut self.rows[ix.0 as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeIx, &Node)> {
        self.rows.iter().enumerate().map(|(at, node)| (NodeIx(at as u32), node))
    }

    /// The nodes that have `name`, compared without case.
    pub(crate) fn named(&self, name: &str) -> impl Iterator<Item = NodeIx> + '_ {
        self.by_name.get(&name.to_ascii_lowercase()).into_iter().flatten().copied()
    }

    pub(crate) fn in_rack(&self, rack: &str) -> impl Iterator<Item = NodeIx> + '_ {
        self.by_rack.get(rack).into_iter().flatten().copied()
    }

    /// Adds a node that only the store knows yet.
    pub(crate) fn add_stored(&mut self, stored: StoredNode, now: Timestamp) -> NodeIx {
        let liveness = if stored.lost { Liveness::Lost } else { Liveness::Suspect };
        self.insert(Node {
            id: stored.node,
            incarnation: stored.incarnation,
            total: stored.total,
            hosts: stored.hosts,
            rack: stored.rack,
            labels: BTreeMap::new(),
            address: String::new(),
            liveness,
            unhealthy: None,
            draining: stored.draining,
            gone_by: None,
            heard: now,
            session: None,
            holding: BTreeMap::new(),
            used: Resource::default(),
            overfull: false,
            returns: false,
            state: BTreeMap::new(),
        })
    }

    /// Adds or renews a node by its Hello; containers and state are the caller's to look at.
    pub(crate) fn greet(&mut self, hello: &NodeHello, session: u64, now: Timestamp) -> NodeIx {
        let ix = match self.ix(&hello.node) {
            Some(ix) => ix,
            None => self.add_stored(
                StoredNode {
                    node: hello.node.clone(),
                    incarnation: hello.incarnation.clone(),
                    total: hello.total,
                    hosts: Vec::new(),
                    rack: String::new(),
                    lost: false,
                    draining: None,
                },
                now,
            ),
        };
        self.unindex(ix);
        let node = self.get_mut(ix);
        node.incarnation = hello.incarnation.clone();
        node.total = hello.total;
        node.hosts = hello.hosts.clone();
        node.rack = hello.rack.clone();
        node.labels = hello.labels.clone();
        node.address = hello.address.clone();
        node.returns = node.liveness == Liveness::Lost;
        node.liveness = Liveness::Active;
        node.unhealthy = None;
        node.heard = now;
        node.session = Some(session);
        self.index(ix);
        ix
    }

    fn insert(&mut self, node: Node) -> NodeIx {
        let ix = NodeIx(self.rows.len() as u32);
        self.by_id.insert(node.id.clone(), ix);
        self.rows.push(node);
        self.index(ix);
        ix
    }

    fn names(node: &Node) -> impl Iterator<Item = String> + '_ {
        node.hosts.iter().chain(std::iter::once(&node.id.0)).map(|name| name.to_ascii_lowercase())
    }

    fn index(&mut self, ix: NodeIx) {
        let node = &self.rows[ix.0 as usize];
        for name in Self::names(node) {
            self.by_name.entry(name).or_default().insert(ix);
        }
        if !node.rack.is_empty() {
            self.by_rack.entry(node.rack.clone()).or_default().insert(ix);
        }
    }

    fn unindex(&mut self, ix: NodeIx) {
        let node = &self.rows[ix.0 as usize];
        for name in Self::names(node) {
            if let Some(set) = self.by_name.get_mut(&name) {
                set.remove(&ix);
            }
        }
        if let Some(set) = self.by_rack.get_mut(&node.rack) {
            set.remove(&ix);
        }
    }
}

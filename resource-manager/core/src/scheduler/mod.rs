//! Where a container goes: filter ([`feasible`]) → rank ([`score`]) → pick ([`plan`]). Pure functions of the
//! nodes and one want; committing the choice is the caller's.

pub(crate) mod feasible;
pub(crate) mod plan;
pub(crate) mod score;

use std::collections::BTreeMap;

use types::{Preference, Resource, Spread, Timestamp};

use crate::node::NodeIx;

/// One container that needs a node.
#[derive(Debug)]
pub(crate) struct Want<'a> {
    pub(crate) resource: Resource,
    /// Labels the node must have.
    pub(crate) labels: &'a BTreeMap<String, String>,
    /// Nodes to avoid when another will do.
    pub(crate) avoid: &'a [NodeIx],
    pub(crate) preferences: &'a [Preference],
    /// When it was first asked for; the waits count from here.
    pub(crate) since: Timestamp,
    pub(crate) wait_ms: u64,
    pub(crate) rack_wait_ms: u64,
    pub(crate) spread: Spread,
    /// How many live containers of the same job each node has.
    pub(crate) siblings: &'a BTreeMap<NodeIx, u32>,
}

impl Want<'_> {
    pub(crate) fn avoids(&self, node: NodeIx) -> bool {
        self.avoid.contains(&node)
    }
}

//! Rank: how good a node is. The order of the fields is the policy; higher is better.

use std::cmp::Reverse;

use types::Resource;

use super::Want;
use crate::node::{Node, NodeIx};

/// How near a node is to where a container would rather be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Locality {
    /// Neither.
    Anywhere,
    /// In the rack of a preferred host.
    Rack,
    /// A preferred host.
    Host,
}

/// How good a node is for one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// A node that the ask avoids comes after all others.
    pub(crate) welcome: bool,
    /// With a spread: fewer of the job's containers on its host (or in its rack).
    pub(crate) apart: Reverse<u32>,
    /// Preferred hosts, then their racks.
    pub(crate) locality: Locality,
    /// The preference's own weight.
    pub(crate) weight: u64,
    /// Fewer of the job's containers on it: one dead machine hurts less.
    pub(crate) siblings: Reverse<u32>,
    /// Less of it used after this one, in thousandths of its scarcer resource.
    pub(crate) used_permille: Reverse<u32>,
    /// Ties go to the node that joined first, so that choices are the same every time.
    pub(crate) order: Reverse<NodeIx>,
}

impl Score {
    /// Of `node` for `want`; locality, weight and `apart` come from the plan, which knows all nodes.
    pub(crate) fn of(ix: NodeIx, node: &Node, want: &Want<'_>, near: (Locality, u64), apart: u32) -> Score {
        Score {
            welcome: !want.avoids(ix),
            apart: Reverse(apart),
            locality: near.0,
            weight: near.1,
            siblings: Reverse(want.siblings.get(&ix).copied().unwrap_or(0)),
            used_permille: Reverse(used_permille(&node.used.plus(&want.resource), &node.total)),
            order: Reverse(ix),
        }
    }
}

fn used_permille(used: &Resource, total: &Resource) -> u32 {
    let memory = used.memory_bytes.saturating_mul(1000) / total.memory_bytes.max(1);
    let cpu = u64::from(used.cpu_millis) * 1000 / u64::from(total.cpu_millis.max(1));
    u32::try_from(memory.max(cpu)).unwrap_or(u32::MAX)
}

//! Pick: preferred hosts until `wait_ms`, then their racks until `rack_wait_ms` more, then anywhere.
//!
//! Only a place that could be had makes a container wait: a preference whose host is no node, or one that takes
//! no containers, that the ask avoids, or where its spread forbids it, is skipped at once, with its rack.

use std::collections::{BTreeMap, BTreeSet};

use types::{Spread, Timestamp};

use super::Want;
use super::feasible::{Tally, fits, suits};
use super::score::{Locality, Score};
use crate::node::{Node, NodeIx, Nodes};

/// What is to be done with a want now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Put it there.
    Place(NodeIx),
    /// No node can take it, or a better place is worth waiting for.
    Wait {
        /// When to look again though nothing changed.
        until: Option<Timestamp>,
        /// Why, one line each.
        reasons: Vec<String>,
        /// Whether no node at all can take it: then no other want of the same size and labels can be placed.
        nowhere: bool,
    },
}

/// Where a want would rather be.
#[derive(Debug, Default)]
struct Near {
    hosts: BTreeMap<NodeIx, u64>,
    racks: BTreeMap<String, u64>,
    /// Racks worth waiting for.
    waits_for_rack: bool,
}

/// Picks a node for `want`, or says why not.
pub(crate) fn choose(nodes: &Nodes, want: &Want<'_>, now: Timestamp) -> Choice {
    let crowd = Crowd::of(nodes, want);
    let near = Near::of(nodes, want, &crowd);
    let mut host_until = want.since;
    if !near.hosts.is_empty() {
        host_until = want.since.plus(want.wait_ms);
        if let Some(best) = best(nodes, want, &near, &crowd, near.hosts.keys().copied()) {
            return Choice::Place(best);
        }
    }
    let rack_until = if near.waits_for_rack { host_until.plus(want.rack_wait_ms) } else { host_until };
    let mut in_racks: BTreeSet<NodeIx> = near.racks.keys().flat_map(|rack| nodes.in_rack(rack)).collect();
    in_racks.retain(|ix| crowd.wants(*ix, nodes.get(*ix), want));
    if now >= host_until
        && !in_racks.is_empty()
        && let Some(best) = best(nodes, want, &near, &crowd, in_racks.iter().copied())
    {
        return Choice::Place(best);
    }
    if now >= rack_until
        && let Some(best) = best(nodes, want, &near, &crowd, nodes.iter().map(|(ix, _)| ix))
    {
        return Choice::Place(best);
    }
    wait(nodes, want, &near, now, host_until, rack_until)
}

fn wait(
    nodes: &Nodes,
    want: &Want<'_>,
    near: &Near,
    now: Timestamp,
    host: Timestamp,
    rack: Timestamp,
) -> Choice {
    let mut tally = Tally::default();
    let mut nowhere = true;
    for (_, node) in nodes.iter() {
        match fits(node, want) {
            Ok(()) => nowhere = false,
            Err(unfit) => tally.add(node, unfit),
        }
    }
    if nowhere {
        return Choice::Wait { until: None, reasons: tally.lines(&want.resource), nowhere };
    }
    let names = |set: &mut dyn Iterator<Item = &Node>| -> String {
        set.map(|node| node.id.0.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (until, reason) = if now < host {
        let hosts = names(&mut near.hosts.keys().map(|ix| nodes.get(*ix)));
        (host, format!("holds out for preferred hosts that are full: {hosts}"))
    } else {
        let racks = near.racks.keys().cloned().collect::<Vec<_>>().join(", ");
        (rack, format!("holds out for racks of preferred hosts: {racks}"))
    };
    Choice::Wait { until: Some(until), reasons: vec![reason], nowhere }
}

fn best(
    nodes: &Nodes,
    want: &Want<'_>,
    near: &Near,
    crowd: &Crowd<'_>,
    candidates: impl Iterator<Item = NodeIx>,
) -> Option<NodeIx> {
    candidates
        .filter_map(|ix| {
            let node = nodes.get(ix);
            fits(node, want).ok()?;
            Some(Score::of(ix, node, want, near.locality(ix, node), crowd.apart(ix, node)))
        })
        .max()
        .map(|score| score.order.0)
}

impl Near {
    fn of(nodes: &Nodes, want: &Want<'_>, crowd: &Crowd<'_>) -> Near {
        let mut near = Near::default();
        for preference in want.preferences {
            let names =
                std::iter::once(&preference.host).chain(&preference.aliases).filter(|name| !name.is_empty());
            let matched: BTreeSet<NodeIx> = names.flat_map(|name| nodes.named(name)).collect();
            let usable = |ix: &NodeIx| -> bool {
                let node = nodes.get(*ix);
                suits(node, want).is_ok() && crowd.wants(*ix, node, want)
            };
            let mut found = preference.host.is_empty();
            for ix in matched.iter().filter(|ix| usable(ix)) {
                found = true;
                let weight = near.hosts.entry(*ix).or_default();
                *weight = (*weight).max(preference.weight);
            }
            let of_matched = matched.iter().map(|ix| &nodes.get(*ix).rack);
            for rack in of_matched.chain(std::iter::once(&preference.rack)).filter(|rack| !rack.is_empty()) {
                let weight = near.racks.entry(rack.clone()).or_default();
                *weight = (*weight).max(preference.weight);
                near.waits_for_rack |= found && nodes.in_rack(rack).any(|ix| usable(&ix));
            }
        }
        near
    }

    fn locality(&self, ix: NodeIx, node: &Node) -> (Locality, u64) {
        if let Some(weight) = self.hosts.get(&ix) {
            return (Locality::Host, *weight);
        }
        match self.racks.get(&node.rack) {
            Some(weight) => (Locality::Rack, *weight),
            None => (Locality::Anywhere, 0),
        }
    }
}

/// The job's other containers, as the want's spread counts them.
struct Crowd<'a> {
    spread: Spread,
    on_host: &'a BTreeMap<NodeIx, u32>,
    in_rack: BTreeMap<&'a str, u32>,
}

impl<'a> Crowd<'a> {
    fn of(nodes: &'a Nodes, want: &Want<'a>) -> Crowd<'a> {
        let mut in_rack = BTreeMap::new();
        if want.spread == Spread::Rack {
            for (ix, count) in want.siblings {
                *in_rack.entry(nodes.get(*ix).rack.as_str()).or_default() += count;
            }
        }
        Crowd { spread: want.spread, on_host: want.siblings, in_rack }
    }

    /// Whether a node could be a preferred one: neither avoided nor against the spread.
    fn wants(&self, ix: NodeIx, node: &Node, want: &Want<'_>) -> bool {
        !want.avoids(ix) && self.apart(ix, node) == 0
    }

    fn apart(&self, ix: NodeIx, node: &Node) -> u32 {
        match self.spread {
            Spread::None => 0,
            Spread::Host => self.on_host.get(&ix).copied().unwrap_or(0),
            Spread::Rack => self.in_rack.get(node.rack.as_str()).copied().unwrap_or(0),
        }
    }
}

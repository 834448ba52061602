//! Filter: whether a node can take a container now, and if not, why. The reasons are counted and kept, because
//! somebody will ask.

use std::collections::BTreeMap;

use types::Resource;

use super::Want;
use crate::node::{Liveness, Node};

/// Why a node cannot take a container now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unfit {
    /// It does not beat.
    Suspect,
    /// Its lease is over.
    Lost,
    /// Its session is down.
    Disconnected,
    /// It said it is not well.
    Unhealthy(String),
    /// It is being emptied.
    Draining,
    /// It lacks this label.
    Label(String),
    /// It will never be big enough.
    TooSmall,
    /// Not enough free memory.
    Memory,
    /// Not enough free CPU.
    Cpu,
}

/// What does not change while containers come and go: liveness, health, labels, size.
pub(crate) fn suits(node: &Node, want: &Want<'_>) -> Result<(), Unfit> {
    match node.liveness {
        Liveness::Suspect => return Err(Unfit::Suspect),
        Liveness::Lost => return Err(Unfit::Lost),
        Liveness::Active => {}
    }
    if node.draining.is_some() {
        return Err(Unfit::Draining);
    }
    if let Some(why) = &node.unhealthy {
        return Err(Unfit::Unhealthy(why.clone()));
    }
    if node.session.is_none() {
        return Err(Unfit::Disconnected);
    }
    if let Some((key, value)) = want.labels.iter().find(|(key, value)| node.labels.get(*key) != Some(*value))
    {
        return Err(Unfit::Label(format!("{key}={value}")));
    }
    if !node.total.fits(&want.resource) {
        return Err(Unfit::TooSmall);
    }
    Ok(())
}

/// Whether `node` can take it now.
pub(crate) fn fits(node: &Node, want: &Want<'_>) -> Result<(), Unfit> {
    suits(node, want)?;
    let free = node.free();
    if free.memory_bytes < want.resource.memory_bytes {
        return Err(Unfit::Memory);
    }
    if free.cpu_millis < want.resource.cpu_millis {
        return Err(Unfit::Cpu);
    }
    Ok(())
}

/// Counted reasons.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: BTreeMap<Unfit, u32>,
    most_free: Resource,
    largest: Resource,
}

impl Tally {
    pub(crate) fn add(&mut self, node: &Node, unfit: Unfit) {
        let free = node.free();
        match unfit {
            Unfit::Memory => self.most_free.memory_bytes = self.most_free.memory_bytes.max(free.memory_bytes),
            Unfit::Cpu => self.most_free.cpu_millis = self.most_free.cpu_millis.max(free.cpu_millis),
            Unfit::TooSmall => {
                self.largest.memory_bytes = self.largest.memory_bytes.max(node.total.memory_bytes);
                self.largest.cpu_millis = self.largest.cpu_millis.max(node.total.cpu_millis);
            }
            Unfit::Suspect
            | Unfit::Lost
            | Unfit::Disconnected
            | Unfit::Draining
            | Unfit::Unhealthy(_)
            | Unfit::Label(_) => {}
        }
        *self.counts.entry(unfit).or_default() += 1;
    }

    /// One line per reason.
    pub(crate) fn lines(&self, need: &Resource) -> Vec<String> {
        if self.counts.is_empty() {
            return vec!["no node has joined".to_owned()];
        }
        self.counts.iter().map(|(unfit, count)| self.line(unfit, *count, need)).collect()
    }

    fn line(&self, unfit: &Unfit, count: u32, need: &Resource) -> String {
        let nodes = if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
        let (is, lacks) = if count == 1 { ("is", "lacks") } else { ("are", "lack") };
        match unfit {
            Unfit::Suspect => format!("{nodes} {is} suspect"),
            Unfit::Lost => format!("{nodes} {is} lost"),
            Unfit::Disconnected => format!("{nodes} {is} disconnected"),
            Unfit::Draining => format!("{nodes} {is} draining"),
            Unfit::Unhealthy(why) => format!("{nodes} {is} unhealthy: {why}"),
            Unfit::Label(label) => format!("{nodes} {lacks} label {label}"),
            Unfit::TooSmall => format!("{nodes} {is} too small (need {need}, largest {})", self.largest),
            Unfit::Memory => format!(
                "{nodes} {lacks} memory (need {} MiB, most free {} MiB)",
                need.memory_bytes >> 20,
                self.most_free.memory_bytes >> 20
            ),
            Unfit::Cpu => format!(
                "{nodes} {lacks} cpu (need {:.2}, most free {:.2})",
                f64::from(need.cpu_millis) / 1000.0,
                f64::from(self.most_free.cpu_millis) / 1000.0
            ),
        }
    }
}

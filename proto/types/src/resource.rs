//! Amounts of a machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An amount of memory and CPU: a node's capacity, an ask, an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Resource {
    /// Bytes of memory; a hard limit on a container.
    pub memory_bytes: u64,
    /// Thousandths of a core; a weight on a container unless a quota is asked for.
    pub cpu_millis: u32,
}

impl Resource {
    /// Whether an ask of `other` fits into this much.
    #[must_use]
    pub fn fits(&self, other: &Resource) -> bool {
        other.memory_bytes <= self.memory_bytes && other.cpu_millis <= self.cpu_millis
    }
    /// The sum.
    #[must_use]
    pub fn plus(&self, other: &Resource) -> Resource {
        Resource {
            memory_bytes: self.memory_bytes + other.memory_bytes,
            cpu_millis: self.cpu_millis + other.cpu_millis,
        }
    }
    /// What is left after `other`, never below zero.
    #[must_use]
    pub fn minus(&self, other: &Resource) -> Resource {
        Resource {
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB, {:.2} cpu", self.memory_bytes >> 20, f64::from(self.cpu_millis) / 1000.0)
    }
}

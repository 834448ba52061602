//! What containers use, read from their cgroups once a second.

use std::collections::BTreeMap;
use std::time::Instant;

use types::{ContainerId, ContainerUsage};

use crate::cgroup::Cgroups;

/// Remembers the last reading, to turn CPU time into cores.
#[derive(Default)]
pub(crate) struct Meter {
    last: BTreeMap<ContainerId, (Instant, u64)>,
}

/// One reading.
pub(crate) struct Reading {
    pub(crate) usage: Vec<ContainerUsage>,
    /// Containers in which the kernel killed something at the memory limit.
    pub(crate) exhausted: Vec<ContainerId>,
}

impl Meter {
    /// Reads the containers that have processes.
    pub(crate) fn read(&mut self, cgroups: &dyn Cgroups, running: &[ContainerId]) -> Reading {
        let mut reading = Reading { usage: Vec::new(), exhausted: Vec::new() };
        self.last.retain(|id, _| running.contains(id));
        for id in running {
            let name = id.to_string();
            let Some(usage) = cgroups.usage(&name) else { continue };
            let now = Instant::now();
            let before = self.last.insert(*id, (now, usage.cpu_ns));
            let cpu_millis = before.map_or(0, |(then, cpu_ns)| {
                let wall_us = now.duration_since(then).as_micros().max(1);
                u128::from(usage.cpu_ns.saturating_sub(cpu_ns)) / wall_us
            });
            reading.usage.push(ContainerUsage {
                container: *id,
                memory_bytes: usage.memory_bytes,
                cpu_millis: u32::try_from(cpu_millis).unwrap_or(u32::MAX),
            });
            if cgroups.memory(&name).is_some_and(|memory| memory.oom_kills > 0) {
                reading.exhausted.push(*id);
            }
        }
        reading
    }
}

//! What containers use, read from their cgroups once a second. One that has used no CPU since the last look is as it
//! was: that is all that is read of it, and nothing is told.

use std::collections::BTreeMap;
use std::time::Instant;

use types::{ContainerId, ContainerUsage, Pressure};

use crate::cgroup::Cgroups;

/// Remembers the last reading, to turn CPU time into cores and to tell only what changed.
#[derive(Default)]
pub(crate) struct Meter {
    last: BTreeMap<ContainerId, Last>,
}

struct Last {
    at: Instant,
    cpu_ns: u64,
    /// As told, if it was told in this session.
    told: Option<ContainerUsage>,
}

impl Meter {
    /// A new session knows nothing: all is told again.
    pub(crate) fn tell_all(&mut self) {
        self.last.values_mut().for_each(|last| last.told = None);
    }

    /// Reads the containers that have processes; the usage of those that changed.
    pub(crate) fn read(&mut self, cgroups: &dyn Cgroups, running: &[ContainerId]) -> Vec<ContainerUsage> {
        let mut changed = Vec::new();
        self.last.retain(|id, _| running.contains(id));
        for id in running {
            let name = id.to_string();
            let Some(cpu_ns) = cgroups.cpu_ns(&name) else { continue };
            let before = self.last.get(id);
            let told = before.and_then(|before| before.told);
            let is_idle = before.is_some_and(|before| before.cpu_ns == cpu_ns);
            if is_idle && told.is_some_and(is_at_rest) {
                continue;
            }
            let Some(memory_bytes) = cgroups.memory_bytes(&name) else { continue };
            let at = Instant::now();
            let cpu_millis = before.map_or(0, |before| {
                let wall_us = at.duration_since(before.at).as_micros().max(1);
                u128::from(cpu_ns.saturating_sub(before.cpu_ns)) / wall_us
            });
            let cpu_millis = u32::try_from(cpu_millis).unwrap_or(u32::MAX);
            let pressure = cgroups.pressure(&name);
            let now = ContainerUsage { container: *id, memory_bytes, cpu_millis, pressure };
            if told != Some(now) {
                changed.push(now);
            }
            self.last.insert(*id, Last { at, cpu_ns, told: Some(now) });
        }
        changed
    }
}

/// Whether it is told as what it is while it does nothing. Pressure is of the last 10 s and fades for longer.
fn is_at_rest(told: ContainerUsage) -> bool {
    told.cpu_millis == 0 && told.pressure.is_none_or(|pressure| pressure == Pressure::default())
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    use nm_shim::KillPlan;

    use super::*;
    use crate::cgroup::{Held, Limits, MemoryEvidence};

    /// A container that has used so much CPU and waits so much, and how often its memory was looked at.
    #[derive(Default)]
    struct Fake {
        cpu_ns: AtomicU64,
        waits: AtomicU8,
        looks: AtomicU64,
    }

    impl Cgroups for Fake {
        fn cpu_ns(&self, _: &str) -> Option<u64> {
            Some(self.cpu_ns.load(Ordering::Relaxed))
        }
        fn memory_bytes(&self, _: &str) -> Option<u64> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            Some(7)
        }
        fn pressure(&self, _: &str) -> Option<Pressure> {
            Some(Pressure { io: self.waits.load(Ordering::Relaxed), ..Pressure::default() })
        }
        fn describe(&self) -> String {
            unreachable!()
        }
        fn create(&self, _: &str, _: &Limits) -> anyhow::Result<()> {
            unreachable!()
        }
        fn join_files(&self, _: &str) -> Vec<PathBuf> {
            unreachable!()
        }
        fn kill_plan(&self, _: &str) -> KillPlan {
            unreachable!()
        }
        fn memory(&self, _: &str) -> Option<MemoryEvidence> {
            unreachable!()
        }
        fn remove(&self, _: &str) -> io::Result<()> {
            unreachable!()
        }
        fn list(&self) -> io::Result<Vec<String>> {
            unreachable!()
        }
        fn dissolve(&self) -> io::Result<()> {
            unreachable!()
        }
        fn holds(&self, _: &str) -> Vec<Held> {
            unreachable!()
        }
    }

    #[test]
    fn one_that_is_idle_is_told_once_and_again_in_a_new_session() {
        let (fake, mut meter) = (Fake::default(), Meter::default());
        let running = [ContainerId::default()];
        let told = |meter: &mut Meter| meter.read(&fake, &running).len();
        assert_eq!(told(&mut meter), 1);
        assert_eq!((told(&mut meter), told(&mut meter)), (0, 0));
        assert_eq!(fake.looks.load(Ordering::Relaxed), 1);
        fake.cpu_ns.store(5_000_000_000, Ordering::Relaxed);
        assert_eq!(told(&mut meter), 1, "it works");
        assert_eq!(told(&mut meter), 1, "it rests");
        assert_eq!(told(&mut meter), 0);
        meter.tell_all();
        assert_eq!((told(&mut meter), told(&mut meter)), (1, 0));
    }

    #[test]
    fn pressure_that_fades_after_the_work_is_told_until_it_is_gone() {
        let (fake, mut meter) = (Fake::default(), Meter::default());
        let mut waits = |percent| {
            fake.waits.store(percent, Ordering::Relaxed);
            let told = meter.read(&fake, &[ContainerId::default()]);
            told.first().and_then(|usage| usage.pressure).map(|pressure| pressure.io)
        };
        assert_eq!([40, 20, 20, 0, 0].map(&mut waits), [Some(40), Some(20), None, Some(0), None]);
        assert_eq!(fake.looks.load(Ordering::Relaxed), 4);
    }
}

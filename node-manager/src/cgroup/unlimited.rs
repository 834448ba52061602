//! No control groups: containers run without limits, are killed by descent from their shim, and their memory and
//! CPU are not known. Only with `--unlimited`.

use std::io;
use std::path::PathBuf;

use anyhow::Result;
use nm_shim::KillPlan;

use super::{Cgroups, Held, Limits, MemoryEvidence};

pub(super) struct Unlimited;

impl Cgroups for Unlimited {
    fn describe(&self) -> String {
        "UNLIMITED: no cgroups, containers can take all of this machine's memory and CPU".to_owned()
    }
    fn create(&self, _container: &str, _limits: &Limits) -> Result<()> {
        Ok(())
    }
    fn join_files(&self, _container: &str) -> Vec<PathBuf> {
        Vec::new()
    }
    fn kill_plan(&self, _container: &str) -> KillPlan {
        KillPlan::Descendants
    }
    fn cpu_ns(&self, _container: &str) -> Option<u64> {
        None
    }
    fn memory_bytes(&self, _container: &str) -> Option<u64> {
        None
    }
    fn memory(&self, _container: &str) -> Option<MemoryEvidence> {
        None
    }
    fn remove(&self, _container: &str) -> io::Result<()> {
        Ok(())
    }
    fn dissolve(&self) -> io::Result<()> {
        Ok(())
    }
    fn holds(&self, _container: &str) -> Vec<Held> {
        ["memory limit", "swap off", "cpu weight", "cpu limit", "pids", "io weight"]
            .map(|what| Held { what, by: None })
            .to_vec()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

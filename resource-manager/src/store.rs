//! The durable store: applications, nodes and the epoch, in one redb file. One commit per batch of the driver.

use std::path::Path;

use anyhow::Context;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use rm_core::{Record, Stored};
use types::Epoch;

const APPS: TableDefinition<&str, &[u8]> = TableDefinition::new("apps");
const NODES: TableDefinition<&str, &[u8]> = TableDefinition::new("nodes");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const EPOCH: &str = "epoch";

/// The open store.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens the store at `path`, makes this process's epoch durable, and returns what was stored. The epoch is
    /// `max(stored + 1, unix_ms)`: higher than any before it, even over a store that was lost.
    pub(crate) fn open(path: &Path, unix_ms: u64) -> anyhow::Result<(Store, Epoch, Stored)> {
        let database = Database::create(path).with_context(|| {
            format!("opening {}; is another resource manager using this --data folder?", path.display())
        })?;
        // It holds applications' tokens and secrets.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let store = Store { database };
        let write = store.database.begin_write()?;
        let epoch = {
            write.open_table(APPS)?;
            write.open_table(NODES)?;
            let mut meta = write.open_table(META)?;
            let stored = meta.get(EPOCH)?.map_or(0, |value| value.value());
            let epoch = unix_ms.max(stored + 1);
            meta.insert(EPOCH, epoch)?;
            epoch
        };
        write.commit().context("storing the epoch")?;
        let stored = store.load().with_context(|| format!("reading {}", path.display()))?;
        Ok((store, Epoch(epoch), stored))
    }

    fn load(&self) -> anyhow::Result<Stored> {
        let read = self.database.begin_read()?;
        let mut stored = Stored::default();
        for row in read.open_table(APPS)?.iter()? {
            let (key, value) = row?;
            let app = serde_json::from_slice(value.value())
                .with_context(|| format!("application {}", key.value()))?;
            stored.apps.push(app);
        }
        for row in read.open_table(NODES)?.iter()? {
            let (key, value) = row?;
            let node =
                serde_json::from_slice(value.value()).with_context(|| format!("node {}", key.value()))?;
            stored.nodes.push(node);
        }
        Ok(stored)
    }

    /// Makes all of `records` durable, in their order, or none.
    pub(crate) fn commit(&self, records: &[Record]) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut apps = write.open_table(APPS)?;
            let mut nodes = write.open_table(NODES)?;
            for record in records {
                match record {
                    Record::App(app) => {
                        apps.insert(app.app.0.as_str(), serde_json::to_vec(app)?.as_slice())?;
                    }
                    Record::Node(node) => {
                        nodes.insert(node.node.0.as_str(), serde_json::to_vec(node)?.as_slice())?;
                    }
                    Record::DropApp(app) => {
                        apps.remove(app.0.as_str())?;
                    }
                }
            }
        }
        write.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rm_core::StoredNode;
    use types::{NodeIncarnation, Resource};

    use super::*;

    fn node(id: &str, lost: bool) -> StoredNode {
        StoredNode {
            node: id.into(),
            incarnation: NodeIncarnation::default(),
            total: Resource::default(),
            hosts: vec![id.to_owned()],
            rack: "r1".into(),
            lost,
            draining: None,
        }
    }

    #[test]
    fn what_was_committed_is_there_after_reopening_and_the_epoch_only_rises() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("store.redb");
        let (store, first, stored) = Store::open(&path, 1_000).expect("a fresh store opens");
        assert_eq!((first, stored), (Epoch(1_000), Stored::default()));
        store.commit(&[Record::Node(Box::new(node("a", false)))]).expect("committed");
        store
            .commit(&[Record::Node(Box::new(node("a", true))), Record::Node(Box::new(node("b", false)))])
            .expect("committed");
        drop(store);
        let (store, second, stored) = Store::open(&path, 5).expect("opens again");
        assert_eq!(second, Epoch(1_001), "though the clock went back");
        assert_eq!(stored.nodes, [node("a", true), node("b", false)]);
        assert!(Store::open(&path, 5).is_err(), "one process at a time");
        drop(store);
    }
}

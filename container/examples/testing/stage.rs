//! What the examples' tests stand on: stores in memory, a collector that keeps what it is sent, and a context.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use samza::store::{RawStore, StoreError, Visit, Visitor};
use samza::{
    IncomingMessageEnvelope, JobId, MessageCollector, OutgoingMessage, StreamTask, SystemStream,
    SystemStreamPartition, TaskContext, TaskCoordinator, TaskName, TaskResult,
};

/// A store in memory.
#[derive(Default)]
pub struct Memory(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl RawStore for Memory {
    fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        Ok(self.0.get(key).map(Vec::as_slice))
    }
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.0.insert(key.to_vec(), value.to_vec());
        Ok(())
    }
    fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.0.remove(key);
        Ok(())
    }
    fn scan(
        &mut self,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        visit: &mut Visitor<'_>,
    ) -> Result<(), StoreError> {
        let inside = |key: &[u8]| from.is_none_or(|from| key >= from) && to.is_none_or(|to| key < to);
        for (key, value) in self.0.iter().filter(|(key, _)| inside(key)) {
            if visit(key, value)? == Visit::Stop {
                break;
            }
        }
        Ok(())
    }
}

/// Keeps what it is sent: stream, key, value.
#[derive(Default)]
pub struct Sent(pub Vec<(String, String, String)>);

impl MessageCollector for Sent {
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        self.0.push((message.stream.to_owned(), text(message.key), text(message.value)));
        Ok(())
    }
}

/// Stores that outlive a task.
pub type Stores = BTreeMap<String, Rc<RefCell<Memory>>>;

/// A task with its stores, as a container would run it.
pub struct Stage<T> {
    pub task: T,
    pub stores: Stores,
}

impl<T: StreamTask + Default> Stage<T> {
    /// Task `name` on stores of these names, empty.
    pub fn new(name: &str, stores: &[&str]) -> Stage<T> {
        Stage::with(name, stores.iter().map(|name| ((*name).to_owned(), Rc::default())).collect())
    }

    /// Task `name` on what an earlier one left.
    pub fn with(name: &str, stores: Stores) -> Stage<T> {
        let mut context = TaskContext {
            task: TaskName(name.to_owned()),
            job: JobId { name: "example".into(), id: "1".into() },
            inputs: Vec::new(),
            config: BTreeMap::new(),
            stores: BTreeMap::new(),
        };
        for (name, store) in &stores {
            context.stores.insert(name.clone(), store.clone());
        }
        let mut task = T::default();
        task.init(&mut context).expect("its stores are there");
        Stage { task, stores }
    }

    /// Has `value` processed.
    pub fn process(&mut self, value: &str) -> TaskResult {
        let stream = SystemStream { system: "kafka".into(), stream: "input".into() };
        let envelope = IncomingMessageEnvelope {
            source: &SystemStreamPartition { stream, partition: 0 },
            offset: 0,
            key: None,
            value: Some(value.as_bytes()),
            timestamp_ms: -1,
        };
        self.task.process(&envelope, &mut Sent::default(), &mut TaskCoordinator::default())
    }

    /// What a window sends.
    pub fn window(&mut self) -> Vec<(String, String, String)> {
        let mut sent = Sent::default();
        self.task.window(&mut sent, &mut TaskCoordinator::default()).expect("it can be sent");
        sent.0
    }
}

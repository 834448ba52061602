//! The task with stores in memory.

use std::cell::RefCell;
use std::rc::Rc;

use samza::store::{RawStore, StoreError, Visit, Visitor};
use samza::{JobId, SystemStream, SystemStreamPartition, TaskName};

use super::*;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

struct Memory(Rows);

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

#[derive(Default)]
struct Sent(Vec<(String, String)>);

impl MessageCollector for Sent {
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult {
        assert_eq!(message.stream, OUTPUT);
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        self.0.push((text(message.key), text(message.value)));
        Ok(())
    }
}

struct Stage {
    task: FlightDelays,
    flights: Rc<RefCell<Memory>>,
    carriers: Rc<RefCell<Memory>>,
}

impl Stage {
    fn with(flights: Rc<RefCell<Memory>>, carriers: Rc<RefCell<Memory>>) -> Stage {
        let mut context = TaskContext {
            task: TaskName("Partition 2".into()),
            job: JobId { name: "flight-delays".into(), id: "1".into() },
            inputs: Vec::new(),
            config: BTreeMap::new(),
            stores: BTreeMap::new(),
        };
        context.stores.insert("flights".into(), flights.clone());
        context.stores.insert("carriers".into(), carriers.clone());
        let mut task = FlightDelays::default();
        task.init(&mut context).expect("both stores are there");
        Stage { task, flights, carriers }
    }

    fn new() -> Stage {
        let empty = || Rc::new(RefCell::new(Memory(Rows::new())));
        Stage::with(empty(), empty())
    }

    fn fly(&mut self, carrier: &str, flight: u32, delay: i64) {
        let message = format!(
            r#"{{"year":2013,"month":1,"day":1,"carrier":"{carrier}","flight":{flight},"origin":"JFK","dest":"MIA",
            "tailnum":null,"sched_dep_time":600,"dep_time":610,"dep_delay":{delay}}}"#
        );
        let stream = SystemStream { system: "kafka".into(), stream: "flights".into() };
        let source = SystemStreamPartition { stream, partition: 2 };
        let envelope = IncomingMessageEnvelope {
            source: &source,
            offset: 0,
            key: None,
            value: Some(message.as_bytes()),
            timestamp_ms: -1,
        };
        let done = self.task.process(&envelope, &mut Sent::default(), &mut TaskCoordinator::default());
        done.expect("a flight");
    }

    fn window(&mut self) -> Vec<(String, String)> {
        let mut sent = Sent::default();
        self.task.window(&mut sent, &mut TaskCoordinator::default()).expect("it can be sent");
        sent.0
    }
}

#[test]
fn a_window_sends_the_carriers_that_changed_and_no_others() {
    let mut stage = Stage::new();
    stage.fly("AA", 1, 20);
    stage.fly("UA", 2, 5);
    assert_eq!(stage.window().len(), 2);
    stage.fly("AA", 3, 30);
    let expected =
        r#"{"carrier":"AA","task":"Partition 2","flights":2,"cancelled":0,"delayed":2,"delay_minutes":50}"#;
    assert_eq!(stage.window(), [("AA Partition 2".to_owned(), expected.to_owned())]);
    assert_eq!(stage.window(), []);
    assert_eq!(stage.flights.borrow().0.len(), 3);
}

#[test]
fn a_successor_goes_on_from_the_stores_and_sends_what_may_not_have_been_sent() {
    let mut first = Stage::new();
    first.fly("AA", 1, 20);
    let mut second = Stage::with(first.flights, first.carriers);
    let sent = second.window();
    assert_eq!(sent.len(), 1);
    assert!(sent[0].1.contains(r#""flights":1,"#), "{sent:?}");
    second.fly("AA", 2, 0);
    assert!(second.window()[0].1.contains(r#""flights":2,"#));
    assert_eq!(second.carriers.borrow().0.len(), 1);
}

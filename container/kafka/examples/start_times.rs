//! Prints what the steps of a start take: registering a transactional id (fresh, over a predecessor's open
//! transaction), appending an owner record, reading a range.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaProducer};
use task_api::system::{
    Isolation, NewTopic, PlainMessage, ProducerRecord, SystemAdmin, SystemProducer, TopicPartition,
    TransactionalProducer,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bootstrap = std::env::args().nth(1).ok_or("usage: start_times <bootstrap>")?;
    let none = BTreeMap::new();
    let admin = KafkaAdmin::new(&bootstrap, &none)?;
    let topic = format!("start-times-{}", std::process::id());
    admin.create(&[NewTopic {
        topic: topic.clone(),
        partitions: 1,
        replication: 1,
        config: BTreeMap::new(),
    }])?;
    for round in 0..5 {
        let id = format!("{topic}-{round}");
        let started = Instant::now();
        let mut producer = KafkaProducer::transactional(&bootstrap, &id, &none)?;
        producer.init(Duration::from_secs(30))?;
        println!("fresh: {:?}", started.elapsed());
        producer.begin()?;
        let handle = producer.topic(&topic)?;
        producer.send(&ProducerRecord::new(handle, None, Some(b"x")).to(0))?;
        producer.flush(Duration::from_secs(30))?;
        let started = Instant::now();
        admin.fence(&id)?;
        println!("over an open transaction: {:?}", started.elapsed());
        let started = Instant::now();
        admin.fence(&id)?;
        println!("over none: {:?}", started.elapsed());
    }
    for round in 0..6 {
        let topic = format!("{topic}-read-{}", round / 2);
        admin.create(&[NewTopic {
            topic: topic.clone(),
            partitions: 4,
            replication: 1,
            config: BTreeMap::new(),
        }])?;
        let to = TopicPartition { topic: topic.clone(), partition: round % 2 };
        let record = PlainMessage { to: to.clone(), key: b"k".to_vec(), value: None };
        let started = Instant::now();
        admin.append(&[record])?;
        println!("append: {:?}", started.elapsed());
        let started = Instant::now();
        admin.read_range(&to, 0, 1, Isolation::ReadCommitted, &mut |_| Ok(()))?;
        println!("read one: {:?}", started.elapsed());
    }
    Ok(())
}

//! Prints how long registering a transactional id takes: fresh, and over a predecessor's open transaction.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kafka::{KafkaAdmin, KafkaProducer};
use task_api::system::{NewTopic, SystemAdmin, SystemProducer, TransactionalProducer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bootstrap = std::env::args().nth(1).ok_or("usage: init_times <bootstrap>")?;
    let none = BTreeMap::new();
    let admin = KafkaAdmin::new(&bootstrap, &none)?;
    let topic = format!("init-times-{}", std::process::id());
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
        producer.send(handle, Some(0), None, Some(b"x"))?;
        producer.flush(Duration::from_secs(30))?;
        let started = Instant::now();
        admin.fence(&id)?;
        println!("over an open transaction: {:?}", started.elapsed());
        let started = Instant::now();
        admin.fence(&id)?;
        println!("over none: {:?}", started.elapsed());
    }
    Ok(())
}

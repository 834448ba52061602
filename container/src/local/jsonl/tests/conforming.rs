//! What a job keeps in its state folder, and what it reads from files and writes to them, is as on Kafka where it can be.

use conformance::{Can, Stage};

use super::*;

/// The job's own topics, which are in the log.
struct Rows(super::Stage);

impl Stage for Rows {
    fn lacks(&self) -> &'static [(Can, &'static str)] {
        &[
            (Can::Consume, "what a job keeps for itself is read by range"),
            (
                Can::SendPlain,
                "what a job keeps for itself is written in transactions, or by its administrator",
            ),
            (Can::HoldBack, "a transaction is in memory until it is committed"),
            (Can::Fence, "the lock on the folder is the fence"),
            (Can::Refuse, "a row may be as large as memory"),
            (Can::Delete, "nothing is deleted but what newer rows have replaced"),
            (Can::Extend, "a job has as many tasks as it began with"),
            (Can::MissTopics, "a topic that is not in the log is a file"),
            (Can::BeAway, "the folder is on this machine"),
        ]
    }
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        self.0.system.admin()
    }
    fn transactional(&self, id: &str) -> Box<dyn TransactionalProducer> {
        self.0.system.transactional(id).expect("a producer")
    }
}

/// Inputs and outputs, which are files of lines.
struct Lines(super::Stage);

impl Stage for Lines {
    fn lacks(&self) -> &'static [(Can, &'static str)] {
        &[
            (Can::HoldBack, "a transaction is in memory until it is committed"),
            (Can::Fence, "the lock on the folder is the fence"),
            (Can::Grow, "a file is read to its end, once"),
            (Can::Administer, "files are not ours to make or to configure, and are read by consumers"),
            (Can::Partition, "what is written is one file, whichever partition a message names"),
            (Can::KeepTime, "a line without a time has none"),
            (Can::Refuse, "a line may be as long as memory"),
            (Can::Delete, "lines stay"),
            (Can::Extend, "files are not ours to make"),
            (Can::MissTopics, "a file that is not there is made when it is written to"),
            (Can::BeAway, "the folder is on this machine"),
        ]
    }
    fn admin(&self) -> Arc<dyn SystemAdmin> {
        self.0.system.admin()
    }
    fn consumer(&self) -> Box<dyn SystemConsumer> {
        self.0.system.consumer("reader", "reader").expect("a consumer")
    }
    fn producer(&self) -> Box<dyn SystemProducer> {
        self.0.system.producer("sender").expect("a producer")
    }
    /// Lines are written when they are flushed, or when they are many.
    fn slow_producer(&self) -> Box<dyn SystemProducer> {
        self.producer()
    }
    fn transactional(&self, id: &str) -> Box<dyn TransactionalProducer> {
        self.0.system.transactional(id).expect("a producer")
    }
    fn topic(&self, name: &str, _: i32, _: &[(&str, &str)]) -> String {
        let topic = conformance::unique(name) + ".jsonl";
        self.0.write(&topic, "");
        topic
    }
}

/// Several reads make what a consumer hands over.
fn lines() -> Lines {
    let folder = folder();
    let files = Files { chunk: 4 << 10, ..files(folder.path()) };
    Lines(super::Stage::with(folder, files))
}

mod rows {
    conformance::tests!(super::Rows(super::super::Stage::new()));
}

mod of_files {
    conformance::tests!(super::lines());
}

//! Kafka behind `task-api`'s system traits, on librdkafka's C API.
//!
//! [`KafkaAdmin`] asks and orders, [`KafkaConsumer`] reads committed messages in borrowed batches,
//! [`KafkaProducer`] writes, plainly or in transactions. Everything that touches C is in the module `native`; no type of
//! librdkafka leaves this crate. Calls block: give them threads of their own, never a pool's.

mod admin;
mod consumer;
mod murmur2;
mod producer;

pub use admin::KafkaAdmin;
pub use consumer::KafkaConsumer;
pub use murmur2::murmur2_partition;
pub use producer::KafkaProducer;

//! What a job is written against, and what a system must offer to run it.
//!
//! Users see [`StreamTask`], [`MessageCollector`], [`TaskCoordinator`], [`KeyValueStore`] and the serdes; systems
//! (Kafka is one) implement the traits of [`system`]. This crate knows no Kafka, no RocksDB and no tokio, so that
//! a task can be tested with nothing else: [`testkit`] runs one against streams and stores in memory.

mod async_task;
pub mod dead_letter;
mod headers;
pub mod metrics;
mod murmur2;
pub mod serde;
pub mod store;
pub mod system;
mod task;
pub mod testkit;
pub mod timers;

pub use async_task::{AsyncStreamTask, Calls, InOrder, Reply};
pub use headers::{Header, HeaderSource, Headers, HeadersIter, OwnedHeaders};
pub use metrics::TaskMetrics;
pub use murmur2::murmur2_partition;
pub use serde::{BytesSerde, DecodeError, F64Serde, I64Serde, JsonSerde, OrderedI64, Serde, StringSerde};
pub use store::{KeyValueStore, Rows, StoreError};
pub use system::{Offset, SystemError};
pub use task::*;
pub use timers::Timers;

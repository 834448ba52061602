//! What the tests of whole processes, the demo and the benches stand on: brokers, clusters of real processes, jobs,
//! Kafka's contents, and waiting for conditions.

pub mod brokers;
pub mod browser;
pub mod built;
pub mod cluster;
pub mod feed;
pub mod fencing;
pub mod http;
pub mod job;
pub mod log_segment;
pub mod network;
pub mod process;
pub mod topic;
pub mod wait;

pub use brokers::Brokers;
pub use browser::Browser;
pub use cluster::{Cluster, Settings};
pub use feed::Feed;
pub use job::Job;
pub use network::Network;
pub use topic::Topics;
pub use wait::{Pending, wait_until};

//! Where a thread's messages go: outputs (joined to the transaction or not), changelogs and checkpoints.

use std::sync::Arc;
use std::time::Duration;

use task_api::dead_letter::after_refusal;
use task_api::metrics::{Counter, MetricsRegistry};
use task_api::system::{ProducerRecord, SystemError, SystemProducer, TopicHandle, TransactionalProducer};
use task_api::{MessageCollector, OutgoingMessage, TaskError, TaskResult, murmur2_partition};
use tracing::warn;
use types::{Delivery, JobSpec, SystemStream};

use crate::systems::{Systems, home};

/// How long a flush or a commit may take before the container gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A stream's way.
#[derive(Clone, Copy)]
struct Route {
    /// None: the transactional producer.
    plain: Option<usize>,
    topic: TopicHandle,
}

/// One thread's producers.
pub(crate) struct Outputs {
    job: Arc<JobSpec>,
    systems: Systems,
    client_id: String,
    transactional: Box<dyn TransactionalProducer>,
    in_transaction: bool,
    /// Made when first needed: system and producer.
    plain: Vec<(String, Box<dyn SystemProducer>)>,
    /// A plain producer has messages since its last flush.
    plain_unflushed: bool,
    routes: Vec<(String, Route)>,
    /// The first error; a task that swallows it does not get past its next commit.
    failed: Option<SystemError>,
    /// Messages sent by tasks since the last commit.
    pub(crate) sent: u64,
    /// Outputs that their system refused and that were left out.
    refused: Counter,
}

impl Outputs {
    pub(crate) fn new(
        job: Arc<JobSpec>,
        systems: Systems,
        client_id: String,
        transactional: Box<dyn TransactionalProducer>,
        metrics: &MetricsRegistry,
    ) -> Outputs {
        Outputs {
            job,
            systems,
            client_id,
            transactional,
            in_transaction: false,
            plain: Vec::new(),
            plain_unflushed: false,
            routes: Vec::new(),
            failed: None,
            sent: 0,
            refused: metrics.with_labels(&[]).counter("samza_outputs_refused_total"),
        }
    }

    /// The error that a task's send met.
    pub(crate) fn failure(&mut self) -> Option<SystemError> {
        self.failed.take()
    }

    pub(crate) fn init(&mut self) -> Result<(), SystemError> {
        self.transactional.init(PATIENCE)
    }

    /// Opens the transaction unless it is open.
    pub(crate) fn begin(&mut self) -> Result<(), SystemError> {
        if !self.in_transaction {
            self.transactional.begin()?;
            self.in_transaction = true;
        }
        Ok(())
    }

    pub(crate) fn flush_plain(&mut self) -> Result<(), SystemError> {
        if self.plain_unflushed {
            self.plain.iter_mut().try_for_each(|(_, producer)| producer.flush(PATIENCE))?;
            self.plain_unflushed = false;
        }
        Ok(())
    }

    /// Waits until what the transaction has so far is acknowledged.
    pub(crate) fn flush_transaction(&mut self) -> Result<(), SystemError> {
        self.transactional.flush(PATIENCE)
    }

    pub(crate) fn commit(&mut self) -> Result<(), SystemError> {
        self.transactional.commit(PATIENCE)?;
        self.in_transaction = false;
        self.sent = 0;
        Ok(())
    }

    /// Lets readers of the outputs go on; a successor would do it as well.
    pub(crate) fn abort(&mut self) -> Result<(), SystemError> {
        if self.in_transaction {
            self.transactional.abort(Duration::from_secs(5))?;
            self.in_transaction = false;
        }
        Ok(())
    }

    /// A handle for [`Self::send_state`].
    pub(crate) fn state_topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        self.transactional.topic(topic)
    }

    /// Sends a changelog row or a checkpoint into the open transaction.
    pub(crate) fn send_state(
        &mut self,
        topic: TopicHandle,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), SystemError> {
        self.transactional.send(&ProducerRecord::new(topic, Some(key), value).to(partition))
    }

    /// Finds out where a stream goes, once per stream.
    fn route(&mut self, stream: &str) -> Result<Route, SystemError> {
        let Some(parsed) = SystemStream::parse(stream) else {
            return Err(SystemError::Fatal(format!("`{stream}` is not <system>.<stream>")));
        };
        let topic = self.job.stream(&parsed).topic;
        if !self.job.task.inputs.iter().any(|input| input == stream)
            && let Some(pattern) = self.job.pattern_of(&parsed)
        {
            return Err(SystemError::Fatal(format!(
                "the input {pattern} matches stream `{stream}`: what is sent there would come round for ever; write a \
                 pattern that does not match it, or name the stream among the inputs if that is meant"
            )));
        }
        let name = parsed.system;
        let Some(system) = self.systems.get(&name) else {
            let known: Vec<_> = self.systems.keys().map(String::as_str).collect();
            return Err(SystemError::Fatal(format!(
                "no system `{name}` in job.toml for stream `{stream}`; it has: {}",
                known.join(", ")
            )));
        };
        let joins = match self.job.task.delivery {
            Delivery::ExactlyOnce => home(&self.job) == Some(name.as_str()),
            Delivery::AtLeastOnce => false,
        };
        let route = if joins {
            Route { plain: None, topic: self.transactional.topic(&topic)? }
        } else {
            let at = match self.plain.iter().position(|(of, _)| *of == name) {
                Some(at) => at,
                None => {
                    self.plain.push((name, system.producer(&self.client_id)?));
                    self.plain.len() - 1
                }
            };
            Route { plain: Some(at), topic: self.plain[at].1.topic(&topic)? }
        };
        self.routes.push((stream.to_owned(), route));
        Ok(route)
    }

    /// Where a stream goes. A task has few outputs: looking through them is cheaper than hashing.
    fn route_of(&mut self, stream: &str) -> Result<Route, SystemError> {
        match self.routes.iter().find(|(known, _)| known == stream) {
            Some((_, route)) => Ok(*route),
            None => self.route(stream),
        }
    }

    fn partitions_of(&mut self, route: Route) -> Result<i32, SystemError> {
        match route.plain {
            Some(at) => self.plain[at].1.partitions(route.topic),
            None => self.transactional.partitions(route.topic),
        }
    }

    fn send_output(&mut self, message: &OutgoingMessage<'_>) -> Result<(), SystemError> {
        let route = self.route_of(message.stream)?;
        let OutgoingMessage { mut partition, partition_key, key, value, timestamp_ms, headers, .. } =
            *message;
        if let (None, Some(chooses)) = (partition, partition_key) {
            partition = Some(murmur2_partition(chooses, self.partitions_of(route)?));
        }
        self.sent += 1;
        let record = ProducerRecord { topic: route.topic, partition, key, value, timestamp_ms, headers };
        match route.plain {
            Some(at) => {
                self.plain_unflushed = true;
                self.plain[at].1.send(&record)
            }
            None => {
                self.begin()?;
                self.transactional.send(&record)
            }
        }
    }

    /// A system refused this one message.
    fn refused(&mut self, message: &OutgoingMessage<'_>, why: &str) -> Result<(), SystemError> {
        let job = Arc::clone(&self.job);
        let (policy, dead_letters) = (job.errors.send, job.errors.dead_letter.as_deref());
        after_refusal(message, why, policy, dead_letters, &mut |letter| self.send_output(letter))?;
        warn!("an output to {} is left out, as [errors] send says: {why}", message.stream);
        self.refused.inc();
        Ok(())
    }
}

impl MessageCollector for Outputs {
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult {
        let sent = match self.send_output(&message) {
            Err(SystemError::Refused(why)) => self.refused(&message, &why),
            sent => sent,
        };
        sent.map_err(|error| {
            self.failed.get_or_insert_with(|| error.clone());
            error.into()
        })
    }

    fn partitions(&mut self, stream: &str) -> Result<i32, TaskError> {
        let route = self.route_of(stream)?;
        Ok(self.partitions_of(route)?)
    }
}

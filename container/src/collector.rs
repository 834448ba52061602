//! Where a thread's messages go: outputs (joined to the transaction or not), changelogs and checkpoints.

use std::sync::Arc;
use std::time::{Duration, Instant};

use task_api::dead_letter::{Form, Outcome, after_refusal, count_error};
use task_api::metrics::MetricsRegistry;
use task_api::system::{
    ProducerRecord, RefusedRecord, SystemError, SystemProducer, TopicHandle, TransactionalProducer,
};
use task_api::{MessageCollector, OutgoingMessage, TaskError, TaskResult, murmur2_partition};
use task_core::commit::{Contents, Proof};
use tracing::{debug, warn};
use types::{Delivery, JobSpec, OnError, SystemStream};

use crate::systems::{System, Systems, home, largest_output};

/// How long a flush may go without a delivery, or a commit without an answer, before the container gives up. A commit is
/// waited for at least as long as its transaction may be open.
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
    contents: Contents,
    /// When the last transaction began.
    began: Option<Instant>,
    /// Made when first needed: system and producer.
    plain: Vec<(String, Box<dyn SystemProducer>)>,
    /// A plain producer has messages since its last flush.
    plain_unflushed: bool,
    routes: Vec<(String, Route)>,
    /// The topics, by producer, that were asked how much they take at once.
    asked: Vec<(Option<usize>, String)>,
    /// The transaction takes rows of stores that may be larger than this; outputs may not.
    largest_output: usize,
    /// The first error; a task that swallows it does not get past its next commit.
    failed: Option<SystemError>,
    /// Messages sent by tasks since the last commit.
    pub(crate) sent: u64,
    metrics: MetricsRegistry,
}

impl Outputs {
    pub(crate) fn new(
        job: Arc<JobSpec>,
        systems: Systems,
        client_id: String,
        transactional: Box<dyn TransactionalProducer>,
        metrics: &MetricsRegistry,
    ) -> Outputs {
        let largest_output = largest_output(&job);
        Outputs {
            job,
            systems,
            client_id,
            transactional,
            in_transaction: false,
            contents: Contents::default(),
            began: None,
            plain: Vec::new(),
            plain_unflushed: false,
            routes: Vec::new(),
            asked: Vec::new(),
            largest_output,
            failed: None,
            sent: 0,
            metrics: metrics.clone(),
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
            self.began = Some(Instant::now());
        }
        Ok(())
    }

    /// Waits until all that is no part of the transaction is acknowledged, the dead letters of what was refused too.
    pub(crate) fn flush_plain(&mut self) -> Result<(), SystemError> {
        while std::mem::take(&mut self.plain_unflushed) {
            for at in 0..self.plain.len() {
                let (system, producer) = &mut self.plain[at];
                let flushed = producer.flush(PATIENCE);
                flushed.map_err(|error| error.during(&format!("outputs to system `{system}`")))?;
            }
            self.settle_refusals()?;
        }
        Ok(())
    }

    /// To be called now and then, also when nothing is sent.
    pub(crate) fn look_after(&mut self) {
        self.transactional.look_after();
        self.plain.iter_mut().for_each(|(_, producer)| producer.look_after());
    }

    /// Waits until what the transaction has so far is acknowledged.
    pub(crate) fn flush_transaction(&mut self) -> Result<(), SystemError> {
        self.transactional.flush(PATIENCE)
    }

    /// Whether the open transaction holds nothing yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.contents.is_empty()
    }

    /// Commits the transaction; returns what that proves.
    pub(crate) fn commit(&mut self) -> Result<Option<Proof>, SystemError> {
        // With as much patience as there is progress; then only the coordinator's answer is missing.
        let patience = PATIENCE.max(self.transactional.timeout());
        let committed = self.transactional.flush(PATIENCE).and_then(|()| self.transactional.commit(patience));
        committed.map_err(|error| match error {
            SystemError::Refused(why) => SystemError::Fatal(format!(
                "{why}: a refusal inside a transaction ends it, whatever [errors] send says; make the topic take such \
                 messages, or send none"
            )),
            other => other,
        })?;
        (self.in_transaction, self.began) = (false, None);
        self.sent = 0;
        Ok(self.contents.committed())
    }

    /// If the transaction that is open, or was when it failed, is open for longer than it may be: for how long, and for
    /// how long it may.
    pub(crate) fn overtime(&self) -> Option<(Duration, Duration)> {
        let (open, most) = (self.began?.elapsed(), self.transactional.timeout());
        (open > most).then_some((open, most))
    }

    /// Lets readers of the outputs go on; a successor would do it as well.
    pub(crate) fn abort(&mut self) -> Result<(), SystemError> {
        if self.in_transaction {
            self.transactional.abort(Duration::from_secs(5))?;
            self.in_transaction = false;
            self.contents.dropped();
        }
        Ok(())
    }

    /// A handle for [`Self::send_state`].
    pub(crate) fn state_topic(&mut self, topic: &str) -> Result<TopicHandle, SystemError> {
        let handle = self.transactional.topic(topic)?;
        if let Some(system) = home(&self.job).and_then(|home| self.systems.get(home)).cloned() {
            self.ask_limit(&*system, topic, None, handle);
        }
        Ok(handle)
    }

    /// Tells a producer how much a topic takes at once. Who may not ask learns it from refusals.
    fn ask_limit(&mut self, system: &dyn System, topic: &str, plain: Option<usize>, handle: TopicHandle) {
        if self.asked.contains(&(plain, topic.to_owned())) {
            return;
        }
        self.asked.push((plain, topic.to_owned()));
        match system.admin().describe_configs(&[topic.to_owned()]) {
            Ok(configs) => {
                let set = configs.get(topic).and_then(|configs| configs.get("max.message.bytes"));
                if let Some(bytes) = set.and_then(|set| set.value.parse().ok()) {
                    match plain {
                        Some(at) => self.plain[at].1.takes_at_most(handle, bytes),
                        None => self.transactional.takes_at_most(handle, bytes),
                    }
                }
            }
            Err(error) => debug!(%error, "how much topic {topic} takes at once is not known"),
        }
    }

    /// Sends a changelog row or a checkpoint into the open transaction.
    pub(crate) fn send_state(
        &mut self,
        topic: TopicHandle,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), SystemError> {
        self.transactional.send(&ProducerRecord::new(topic, Some(key), value).to(partition))?;
        self.contents.sent();
        Ok(())
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
        let Some(system) = self.systems.get(&name).cloned() else {
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
        self.ask_limit(&*system, &topic, route.plain, route.topic);
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

    /// `tag` is 0 for an output, or that of a dead letter's form.
    fn send_output(&mut self, message: &OutgoingMessage<'_>, tag: u8) -> Result<(), SystemError> {
        let route = self.route_of(message.stream)?;
        let OutgoingMessage { mut partition, partition_key, key, value, timestamp_ms, headers, .. } =
            *message;
        if let (None, Some(chooses)) = (partition, partition_key) {
            partition = Some(murmur2_partition(chooses, self.partitions_of(route)?));
        }
        self.sent += 1;
        let record = ProducerRecord { topic: route.topic, partition, key, value, timestamp_ms, headers, tag };
        match route.plain {
            Some(at) => {
                self.plain_unflushed = true;
                self.plain[at].1.send(&record)
            }
            None => {
                let bytes = bytes_of(&record);
                if bytes > self.largest_output {
                    let most = self.largest_output;
                    return Err(SystemError::Refused(format!(
                        "send to {}: {bytes} bytes are more than message.max.bytes, {most}",
                        message.stream
                    )));
                }
                self.begin()?;
                self.transactional.send(&record)?;
                self.contents.sent();
                Ok(())
            }
        }
    }

    /// Sends a dead letter.
    pub(crate) fn send_letter(
        &mut self,
        letter: &OutgoingMessage<'_>,
        form: Form,
    ) -> Result<(), SystemError> {
        self.send_output(letter, form as u8 + 1)
    }

    /// A system refused this one message.
    fn refused(&mut self, message: &OutgoingMessage<'_>, why: &str) -> Result<(), SystemError> {
        let job = Arc::clone(&self.job);
        let (policy, dead_letters) = (job.errors.send, job.errors.dead_letter.as_deref());
        let mut send = |letter: &OutgoingMessage<'_>, form| self.send_letter(letter, form);
        let gone_on = after_refusal(message, why, policy, dead_letters, &mut send);
        let (then, outcome) = match (&gone_on, policy, dead_letters) {
            (Err(_), ..) => (String::new(), Outcome::Failed),
            (Ok(_), OnError::DeadLetter, Some(stream)) => {
                (format!("sent to {stream}"), Outcome::DeadLettered)
            }
            (Ok(_), ..) => ("left out".to_owned(), Outcome::Skipped),
        };
        count_error(&self.metrics, message.stream, "send", outcome).inc();
        gone_on?;
        warn!("an output to {} is {then}, as [errors] send says: {why}", message.stream);
        Ok(())
    }

    /// Does with what plain systems have refused since it was sent what the job wants done with it.
    fn settle_refusals(&mut self) -> Result<(), SystemError> {
        (0..self.plain.len()).try_for_each(|at| self.settle_refusals_of(at))
    }

    fn settle_refusals_of(&mut self, at: usize) -> Result<(), SystemError> {
        while let Some(record) = self.plain[at].1.refused() {
            let RefusedRecord { topic, key, value, timestamp_ms, headers, tag, why } = record;
            let is_it = |(_, route): &&(String, Route)| route.plain == Some(at) && route.topic == topic;
            let Some((stream, _)) = self.routes.iter().find(is_it).cloned() else { continue };
            let message = OutgoingMessage {
                timestamp_ms,
                headers: headers.get(),
                ..OutgoingMessage::new(&stream, key.as_deref(), value.as_deref())
            };
            match [Form::Whole, Form::WithoutValue, Form::Bare].get(usize::from(tag.wrapping_sub(1))) {
                None => {
                    let topic = SystemStream::parse(&stream).map(|of| self.job.stream(&of).topic);
                    let at = format!("an output to {stream} (topic {})", topic.unwrap_or_default());
                    self.refused(&message, &why).map_err(|error| error.during(&at))?;
                }
                Some(form) => {
                    let failed = || SystemError::Refused(format!("a dead letter to {stream}: {why}"));
                    let form = form.smaller().ok_or_else(failed)?;
                    form.send(&message, &mut |letter, form| self.send_letter(letter, form))?;
                }
            }
        }
        Ok(())
    }
}

/// Key, value and headers together.
fn bytes_of(record: &ProducerRecord<'_>) -> usize {
    let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
    let headers: usize = record.headers.iter().map(|header| header.name.len() + length(header.value)).sum();
    length(record.key) + length(record.value) + headers
}

impl MessageCollector for Outputs {
    fn send(&mut self, message: OutgoingMessage<'_>) -> TaskResult {
        let sent = match self.send_output(&message, 0) {
            Err(SystemError::Refused(why)) => self.refused(&message, &why),
            sent => sent,
        };
        let sent = sent.and_then(|()| self.settle_refusals());
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

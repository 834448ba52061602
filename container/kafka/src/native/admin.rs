//! Administration: requests whose answers come as events on a queue made for them.

use std::collections::BTreeSet;
use std::ffi::{c_char, c_int};
use std::time::{Duration, Instant};

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_admin_op_t as Op;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{
    BrokerMetadata, Isolation, LogEnd, NewTopic, PartitionMetadata, SystemError, TopicMetadata,
    TopicPartition,
};

use super::rights::Tried;
use super::{Client, TEXT, c_text, rust_text};

/// Which end of a partition is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// The first offset there is.
    Earliest,
    /// One past the last.
    Latest,
}

/// An answer; dies with everything it lends.
pub(super) struct Answer(pub(super) *mut rd::rd_kafka_event_t);

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: ours since `rd_kafka_queue_poll`.
        unsafe { rd::rd_kafka_event_destroy(self.0) }
    }
}

impl Client {
    /// A client for questions and orders.
    pub(crate) fn admin(settings: &[(&str, &str)]) -> Result<Client, SystemError> {
        Client::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, settings)
    }

    /// Sends one request and waits for its answer.
    pub(super) fn ask(
        &self,
        op: Op,
        isolation: Option<Isolation>,
        timeout: Duration,
        send: impl FnOnce(*const rd::rd_kafka_AdminOptions_t, *mut rd::rd_kafka_queue_t),
    ) -> Result<Answer, SystemError> {
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut text = [0 as c_char; TEXT];
        // SAFETY: options and queue are ours and destroyed here; librdkafka copies the options and keeps its own
        // reference of the queue.
        let event = unsafe {
            let options = rd::rd_kafka_AdminOptions_new(self.rk, op);
            rd::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), TEXT);
            if let Some(isolation) = isolation {
                let level = match isolation {
                    Isolation::ReadUncommitted => {
                        rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED
                    }
                    Isolation::ReadCommitted => {
                        rd::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED
                    }
                };
                let refused = rd::rd_kafka_AdminOptions_set_isolation_level(options, level);
                if !refused.is_null() {
                    rd::rd_kafka_error_destroy(refused);
                }
            }
            let queue = rd::rd_kafka_queue_new(self.rk);
            send(options, queue);
            let event = self.await_event(queue, timeout + Duration::from_secs(1));
            rd::rd_kafka_queue_destroy(queue);
            rd::rd_kafka_AdminOptions_destroy(options);
            event?
        };
        let answer = Answer(event);
        // SAFETY: the event is alive as long as `answer`.
        let (code, why) = unsafe {
            (rd::rd_kafka_event_error(answer.0), rust_text(rd::rd_kafka_event_error_string(answer.0)))
        };
        if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(self.error(code, &why));
        }
        self.answered();
        Ok(answer)
    }

    /// The next event of `queue`; sooner than in time, why there will be none.
    fn await_event(
        &self,
        queue: *mut rd::rd_kafka_queue_t,
        timeout: Duration,
    ) -> Result<*mut rd::rd_kafka_event_t, SystemError> {
        const SLICE_MS: c_int = 100;
        let since = Instant::now();
        while since.elapsed() < timeout {
            // SAFETY: the caller has the queue.
            let event = unsafe { rd::rd_kafka_queue_poll(queue, SLICE_MS) };
            if !event.is_null() {
                return Ok(event);
            }
            if let Some(hopeless) = self.hopeless(since) {
                return Err(hopeless);
            }
        }
        Err(self.explained(SystemError::Retriable("no broker answered in time".into())))
    }

    /// The topics that exist among `topics`.
    pub(crate) fn describe(
        &self,
        topics: &[String],
        timeout: Duration,
    ) -> Result<Vec<TopicMetadata>, SystemError> {
        let names = topics.iter().map(|topic| c_text(topic)).collect::<Result<Vec<_>, _>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the names are copied.
        let wanted =
            unsafe { rd::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
        let answer = self.ask(Op::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, None, timeout, |options, queue| {
            // SAFETY: all are alive during the call.
            unsafe { rd::rd_kafka_DescribeTopics(self.rk, wanted, options, queue) }
        });
        // SAFETY: ours; librdkafka copied it.
        unsafe { rd::rd_kafka_TopicCollection_destroy(wanted) };
        let answer = answer?;
        let mut found = Vec::new();
        // SAFETY: what the event lends lives until `answer` is dropped.
        unsafe {
            let result = rd::rd_kafka_event_DescribeTopics_result(answer.0);
            let mut n = 0;
            for topic in slice(rd::rd_kafka_DescribeTopics_result_topics(result, &raw mut n), n) {
                let error = rd::rd_kafka_TopicDescription_error(*topic);
                let name = rust_text(rd::rd_kafka_TopicDescription_name(*topic));
                match if error.is_null() {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR
                } else {
                    rd::rd_kafka_error_code(error)
                } {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => found.push(topic_metadata(name, *topic)),
                    Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                    | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {}
                    code => {
                        let why = format!("topic {name}: {}", rust_text(rd::rd_kafka_error_string(error)));
                        return Err(self.error_of(code, &why, Tried::topic("Read", &name)));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Creates topics; those that exist already are left as they are.
    pub(crate) fn create(&self, topics: &[NewTopic], timeout: Duration) -> Result<(), SystemError> {
        let mut orders = Vec::with_capacity(topics.len());
        for topic in topics {
            orders.push(Order::new(topic)?);
        }
        let mut pointers: Vec<*mut rd::rd_kafka_NewTopic_t> = orders.iter().map(|order| order.0).collect();
        let answer = self.ask(Op::RD_KAFKA_ADMIN_OP_CREATETOPICS, None, timeout, |options, queue| {
            // SAFETY: all are alive during the call; librdkafka copies them.
            unsafe {
                rd::rd_kafka_CreateTopics(self.rk, pointers.as_mut_ptr(), pointers.len(), options, queue)
            }
        })?;
        // SAFETY: what the event lends lives until `answer` is dropped.
        unsafe {
            let result = rd::rd_kafka_event_CreateTopics_result(answer.0);
            let mut n = 0;
            for topic in slice(rd::rd_kafka_CreateTopics_result_topics(result, &raw mut n), n) {
                match rd::rd_kafka_topic_result_error(*topic) {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR | Code::RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS => {}
                    code => {
                        let name = rust_text(rd::rd_kafka_topic_result_name(*topic));
                        let why = rust_text(rd::rd_kafka_topic_result_error_string(*topic));
                        let why = format!("topic {name} cannot be created: {why}");
                        return Err(self.error_of(code, &why, Tried::topic("Create", &name)));
                    }
                }
            }
        }
        Ok(())
    }

    /// One end of each partition, in the order given; one that is named twice, as several tasks do that read it, is
    /// asked for once, for librdkafka refuses to ask twice.
    pub(crate) fn ends(
        &self,
        partitions: &[TopicPartition],
        which: Which,
        isolation: Isolation,
        timeout: Duration,
    ) -> Result<Vec<LogEnd>, SystemError> {
        let spec = match which {
            Which::Earliest => rd::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST,
            Which::Latest => rd::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST,
        } as i64;
        let asked: BTreeSet<&TopicPartition> = partitions.iter().collect();
        let names = asked.iter().map(|it| c_text(&it.topic)).collect::<Result<Vec<_>, _>>()?;
        // SAFETY: the list is ours; librdkafka copies it.
        let list = unsafe {
            let list = rd::rd_kafka_topic_partition_list_new(c_int::try_from(asked.len()).unwrap_or(0));
            for (partition, name) in asked.iter().zip(&names) {
                let entry = rd::rd_kafka_topic_partition_list_add(list, name.as_ptr(), partition.partition);
                (*entry).offset = spec;
            }
            list
        };
        let answer =
            self.ask(Op::RD_KAFKA_ADMIN_OP_LISTOFFSETS, Some(isolation), timeout, |options, queue| {
                // SAFETY: all are alive during the call.
                unsafe { rd::rd_kafka_ListOffsets(self.rk, list, options, queue) }
            });
        // SAFETY: ours.
        unsafe { rd::rd_kafka_topic_partition_list_destroy(list) };
        let answer = answer?;
        let mut found = std::collections::HashMap::new();
        // SAFETY: what the event lends lives until `answer` is dropped.
        unsafe {
            let result = rd::rd_kafka_event_ListOffsets_result(answer.0);
            let mut n = 0;
            for info in slice(rd::rd_kafka_ListOffsets_result_infos(result, &raw mut n), n) {
                let of = &*rd::rd_kafka_ListOffsetsResultInfo_topic_partition(*info);
                let name = rust_text(of.topic);
                if of.err != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                    let why = format!("{name}-{}: {}", of.partition, super::code_text(of.err));
                    let code = match of.err {
                        // The client does not know of it, which may be new: so brokers say it too.
                        Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
                        | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC => {
                            Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
                        }
                        code => code,
                    };
                    return Err(self.error_of(code, &why, Tried::topic("Read", &name)));
                }
                // Below zero: the broker did not tell.
                let leader_epoch = rd::rd_kafka_topic_partition_get_leader_epoch(of);
                let leader_epoch = Some(leader_epoch).filter(|epoch| *epoch >= 0);
                let offset = u64::try_from(of.offset).unwrap_or(0);
                found.insert((name, of.partition), LogEnd { offset, leader_epoch });
            }
        }
        partitions
            .iter()
            .map(|it| {
                found.get(&(it.topic.clone(), it.partition)).copied().ok_or_else(|| {
                    SystemError::Retriable(format!("no answer about {}-{}", it.topic, it.partition))
                })
            })
            .collect()
    }
}

/// A topic to create, in C.
struct Order(*mut rd::rd_kafka_NewTopic_t);

impl Drop for Order {
    fn drop(&mut self) {
        // SAFETY: ours.
        unsafe { rd::rd_kafka_NewTopic_destroy(self.0) }
    }
}

impl Order {
    fn new(topic: &NewTopic) -> Result<Order, SystemError> {
        let name = c_text(&topic.topic)?;
        let mut text = [0 as c_char; TEXT];
        // SAFETY: the name and the settings are copied.
        unsafe {
            let order = rd::rd_kafka_NewTopic_new(
                name.as_ptr(),
                topic.partitions,
                c_int::from(topic.replication),
                text.as_mut_ptr(),
                TEXT,
            );
            if order.is_null() {
                return Err(SystemError::Fatal(format!(
                    "topic {}: {}",
                    topic.topic,
                    rust_text(text.as_ptr())
                )));
            }
            let order = Order(order);
            for (key, value) in &topic.config {
                let (key, value) = (c_text(key)?, c_text(value)?);
                rd::rd_kafka_NewTopic_set_config(order.0, key.as_ptr(), value.as_ptr());
            }
            Ok(order)
        }
    }
}

/// # Safety
/// `topic` is alive.
unsafe fn topic_metadata(name: String, topic: *const rd::rd_kafka_TopicDescription_t) -> TopicMetadata {
    // SAFETY: what the description lends lives as long as it.
    unsafe {
        let mut n = 0;
        let mut found = TopicMetadata {
            topic: name,
            topic_id: rust_text(rd::rd_kafka_Uuid_base64str(rd::rd_kafka_TopicDescription_topic_id(topic))),
            ..TopicMetadata::default()
        };
        for partition in slice(rd::rd_kafka_TopicDescription_partitions(topic, &raw mut n), n) {
            let leader = rd::rd_kafka_TopicPartitionInfo_leader(*partition);
            let mut n = 0;
            let replicas = slice(rd::rd_kafka_TopicPartitionInfo_replicas(*partition, &raw mut n), n);
            for node in replicas {
                let broker = broker(*node);
                let is_known = found.brokers.iter().any(|known| known.id == broker.id);
                // A broker that is down has an id and nothing else.
                if !broker.host.is_empty() && !is_known {
                    found.brokers.push(broker);
                }
            }
            found.partitions.push(PartitionMetadata {
                partition: rd::rd_kafka_TopicPartitionInfo_partition(*partition),
                leader: (!leader.is_null()).then(|| rd::rd_kafka_Node_id(leader)).filter(|id| *id >= 0),
                replicas: replicas.iter().map(|node| rd::rd_kafka_Node_id(*node)).collect(),
            });
        }
        found
    }
}

/// # Safety
/// `node` is alive.
unsafe fn broker(node: *const rd::rd_kafka_Node_t) -> BrokerMetadata {
    // SAFETY: what the node lends lives as long as it.
    unsafe {
        BrokerMetadata {
            id: rd::rd_kafka_Node_id(node),
            host: rust_text(rd::rd_kafka_Node_host(node)),
            port: rd::rd_kafka_Node_port(node),
            rack: rust_text(rd::rd_kafka_Node_rack(node)),
        }
    }
}

/// # Safety
/// `at` is null or points to `n` values that live as long as `'a`.
pub(super) unsafe fn slice<'a, T>(at: *mut T, n: usize) -> &'a [T] {
    if at.is_null() || n == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(at, n) }
}

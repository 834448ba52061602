//! Producers, plain and transactional.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{ProducerRecord, RefusedRecord, SystemError, TopicHandle};
use task_api::{Header, OwnedHeaders};

use super::consume::borrowed;
use super::rights::{Tried, is_denied};
use super::{Client, c_text, code_text, rust_text};
use crate::statistics::Statistics;

/// How long a full queue is waited for: longer means that no broker takes anything.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the leaders of a topic are waited for.
const LEARN_TIMEOUT: Duration = Duration::from_secs(5);

/// So old may be what is known of a topic's partitions: as often librdkafka asks.
const PARTITIONS_AGE: Duration = Duration::from_secs(10);

/// How soon a broker is asked again about a topic that it does not know yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// The partition of a message whose key chooses.
const KEY_CHOOSES: i32 = -1;

/// A producer.
#[derive(Debug)]
pub(crate) struct Producer {
    topics: Vec<Topic>,
    client: Client,
}

/// A topic that it writes to.
#[derive(Debug)]
struct Topic {
    name: String,
    handle: *mut rd::rd_kafka_topic_t,
    /// None (0) if no broker has told.
    partitions: i32,
    asked: Instant,
}

// SAFETY: as for `Client`; topic handles are thread-safe too.
unsafe impl Send for Producer {}

impl Drop for Producer {
    fn drop(&mut self) {
        const QUEUE_AND_INFLIGHT: c_int = 0x1 | 0x2;
        // SAFETY: the handles are ours. What was not acknowledged by now was not committed either: waiting for
        // it would only delay the end.
        unsafe {
            let dropped = rd::rd_kafka_outq_len(self.client.rk);
            if dropped > 0 {
                tracing::warn!(
                    "{dropped} messages that no broker has acknowledged are dropped: what caused them is not committed"
                );
            }
            for topic in self.topics.drain(..) {
                rd::rd_kafka_topic_destroy(topic.handle);
            }
            rd::rd_kafka_purge(self.client.rk, QUEUE_AND_INFLIGHT);
            rd::rd_kafka_poll(self.client.rk, 0);
        }
    }
}

/// What is given to librdkafka with a message, in the number that comes back with it. librdkafka knows no time of a message
/// that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct With {
    is_alone: bool,
    tag: u8,
    timestamp_ms: Option<u64>,
}

impl With {
    const TIME_AT: u32 = 9;

    fn opaque(self) -> usize {
        let fits = |time: &u64| *time < 1 << (u64::BITS - Self::TIME_AT);
        let time = self.timestamp_ms.and_then(|time| time.checked_add(1)).filter(fits).unwrap_or(0);
        let opaque = time << Self::TIME_AT | u64::from(self.tag) << 1 | u64::from(self.is_alone);
        usize::try_from(opaque).expect("addresses have 64 bits")
    }

    fn of(opaque: usize) -> With {
        let opaque = opaque as u64;
        With {
            is_alone: opaque & 1 == 1,
            tag: (opaque >> 1 & 0xff) as u8,
            timestamp_ms: (opaque >> Self::TIME_AT).checked_sub(1),
        }
    }
}

/// A message that was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    partition: i32,
    code: Code,
    why: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: OwnedHeaders,
    with: With,
}

impl Refusal {
    /// Of a live message that has failed.
    pub(super) fn of(raw: &rd::rd_kafka_message_t) -> Refusal {
        let message = borrowed(raw, 0);
        // SAFETY: the message is alive; the text lives as long.
        let told = rust_text(unsafe { rd::rd_kafka_message_produce_errstr(raw) });
        Refusal {
            partition: raw.partition,
            code: raw.err,
            why: if told.is_empty() { code_text(raw.err) } else { told },
            key: message.key.map(<[u8]>::to_vec),
            value: message.value.map(<[u8]>::to_vec),
            headers: OwnedHeaders::of(message.headers),
            with: With::of(raw._private.addr()),
        }
    }

    /// With a reason that says more.
    pub(super) fn told(self, why: String) -> Refusal {
        Refusal { why, ..self }
    }

    /// Its batch was too large, or it alone.
    pub(crate) fn is_of_size(&self) -> bool {
        use Code as C;
        matches!(
            self.code,
            C::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE | C::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE
        )
    }

    /// Another message of its batch may be at fault.
    pub(crate) fn is_innocent(&self) -> bool {
        // Where one message alone is invalid librdkafka gives its code to the whole batch, and only the text differs.
        self.code == Code::RD_KAFKA_RESP_ERR__INVALID_DIFFERENT_RECORD
            || self.why.starts_with("Failed to append record because it was part of a batch")
            || self.is_of_size() && !self.with.is_alone
    }

    /// To be sent again.
    pub(crate) fn record(&self, topic: u32) -> ProducerRecord<'_> {
        ProducerRecord {
            topic: TopicHandle(topic),
            partition: Some(self.partition).filter(|partition| *partition >= 0),
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            timestamp_ms: self.with.timestamp_ms,
            headers: self.headers.get(),
            tag: self.with.tag,
        }
    }

    pub(crate) fn into_record(self, topic: u32) -> RefusedRecord {
        let Refusal { key, value, headers, why, with: With { tag, timestamp_ms, .. }, .. } = self;
        RefusedRecord { topic: TopicHandle(topic), key, value, timestamp_ms, headers, tag, why }
    }
}

impl Producer {
    pub(crate) fn new(settings: &[(&str, &str)]) -> Result<Producer, SystemError> {
        Ok(Producer {
            topics: Vec::new(),
            client: Client::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, settings)?,
        })
    }

    /// As [`Client::tell`].
    pub(crate) fn tell(&self, statistics: Statistics) {
        self.client.tell(statistics);
    }

    /// The place of `topic` among the kept handles.
    pub(crate) fn topic(&mut self, topic: &str) -> Result<u32, SystemError> {
        let known = self.topics.iter().position(|known| known.name == topic);
        let place = match known {
            Some(place) => place,
            None => {
                let name = c_text(topic)?;
                // SAFETY: the name is copied; a null configuration means the client's.
                let handle =
                    unsafe { rd::rd_kafka_topic_new(self.client.rk, name.as_ptr(), std::ptr::null_mut()) };
                if handle.is_null() {
                    return Err(SystemError::Fatal(format!("topic {topic}: refused by the client")));
                }
                let partitions = self.client.learn(topic, LEARN_TIMEOUT)?;
                self.topics.push(Topic { name: topic.to_owned(), handle, partitions, asked: Instant::now() });
                self.topics.len() - 1
            }
        };
        u32::try_from(place).map_err(|_| SystemError::Fatal("too many topics".into()))
    }

    /// How many partitions the topic has, as last heard.
    pub(crate) fn partitions(&mut self, topic: u32) -> Result<i32, SystemError> {
        let Self { topics, client } = self;
        let topic = topics.get_mut(topic as usize).ok_or_else(foreign_handle)?;
        if topic.partitions == 0 || topic.asked.elapsed() > PARTITIONS_AGE {
            topic.asked = Instant::now();
            // A topic that is made by asking for it has its partitions a moment later.
            let heard = |partitions: &i32| *partitions > 0;
            let until = topic.asked + LEARN_TIMEOUT;
            let partitions = loop {
                let heard = Some(client.learn(&topic.name, LEARN_TIMEOUT)?).filter(heard);
                if heard.is_some() || topic.partitions > 0 || Instant::now() >= until {
                    break heard;
                }
                std::thread::sleep(ASK_AGAIN);
            };
            topic.partitions = partitions.unwrap_or(topic.partitions);
        }
        match topic.partitions {
            0 => Err(SystemError::Retriable(format!(
                "topic {} has no partitions that a broker knows of: is it there?",
                topic.name
            ))),
            partitions => Ok(partitions),
        }
    }

    /// The name behind a handle.
    pub(crate) fn name(&self, topic: u32) -> &str {
        self.topics.get(topic as usize).map_or("", |topic| &topic.name)
    }

    /// From now on messages that a broker refuses for what they are go to [`Self::refusals`] and fail nothing.
    pub(crate) fn keep_refusals(&self) {
        self.client.keep_refusals();
    }

    /// Takes the messages that were refused since the last call, with their topics.
    pub(crate) fn refusals(&self) -> Vec<(u32, Refusal)> {
        let place = |name: &String| self.topics.iter().position(|topic| topic.name == *name);
        let of = |(name, refusal)| Some((u32::try_from(place(&name)?).ok()?, refusal));
        self.client.refusals().into_iter().filter_map(of).collect()
    }

    /// Queues a message, waiting while the queue is full; `is_alone` comes back if it is refused.
    pub(crate) fn send(&mut self, record: &ProducerRecord<'_>, is_alone: bool) -> Result<(), SystemError> {
        let topic = self.topics.get(record.topic.0 as usize).ok_or_else(foreign_handle)?;
        let refused = |why: String| {
            let (key, value) = (record.key.map_or(0, <[u8]>::len), record.value.map_or(0, <[u8]>::len));
            let name = &topic.name;
            SystemError::Refused(format!("send to {name}: {why} (key of {key} bytes, value of {value})"))
        };
        // Below zero are librdkafka's words, such as "the key chooses".
        if let Some(partition) = record.partition.filter(|partition| *partition < 0) {
            return Err(refused(format!("there is no partition {partition}")));
        }
        let ProducerRecord { tag, timestamp_ms, .. } = *record;
        let opaque = With { is_alone, tag, timestamp_ms }.opaque();
        let is_bare = record.timestamp_ms.is_none() && record.headers.is_empty();
        let mut since = None;
        loop {
            let code =
                if is_bare { bare(topic, record, opaque) } else { self.with_more(topic, record, opaque) };
            match code {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => return Ok(()),
                // These are about this message alone, and it was not queued.
                Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE
                | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
                | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
                | Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
                | Code::RD_KAFKA_RESP_ERR__INVALID_ARG => {
                    let tried = Tried::topic("Write", &topic.name);
                    let denied = is_denied(code).then(|| self.client.error_of(code, "", tried).to_string());
                    return Err(refused(denied.unwrap_or_else(|| code_text(code))));
                }
                _ => {}
            }
            let since = *since.get_or_insert_with(Instant::now);
            if code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL || since.elapsed() > QUEUE_FULL_TIMEOUT {
                // A fenced or failed producer says so in its deliveries first.
                self.serve(0)?;
                let why = format!("send to {}: {}", topic.name, code_text(code));
                return Err(self.client.error_of(code, &why, Tried::topic("Write", &topic.name)));
            }
            self.serve(5)?;
        }
    }

    /// As [`bare`], with headers and a timestamp.
    fn with_more(&self, topic: &Topic, record: &ProducerRecord<'_>, opaque: usize) -> Code {
        use rd::rd_kafka_vtype_t as V;
        let memory = |bytes: Option<&[u8]>| {
            let (at, size) = parts(bytes);
            rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: at.cast_mut().cast(), size }
        };
        // SAFETY: all zeroes is a valid union of numbers and pointers; the field that its type names is set below.
        // Everything pointed to is alive during the call, which copies it (F_COPY; the headers are copies). The
        // list of headers is librdkafka's if the message is queued, and ours to destroy if not.
        unsafe {
            let headers = rd::rd_kafka_headers_new(8);
            for Header { name, value } in record.headers {
                let ((value, size), size_of) = (parts(value), |n: usize| isize::try_from(n).unwrap_or(0));
                rd::rd_kafka_header_add(
                    headers,
                    name.as_ptr().cast(),
                    size_of(name.len()),
                    value.cast(),
                    size_of(size),
                );
            }
            let mut fields = [
                V::RD_KAFKA_VTYPE_RKT,
                V::RD_KAFKA_VTYPE_PARTITION,
                V::RD_KAFKA_VTYPE_MSGFLAGS,
                V::RD_KAFKA_VTYPE_KEY,
                V::RD_KAFKA_VTYPE_VALUE,
                V::RD_KAFKA_VTYPE_TIMESTAMP,
                V::RD_KAFKA_VTYPE_HEADERS,
                V::RD_KAFKA_VTYPE_OPAQUE,
            ]
            .map(|vtype| rd::rd_kafka_vu_t { vtype, u: std::mem::zeroed() });
            fields[0].u.rkt = topic.handle;
            fields[1].u.i32_ = record.partition.unwrap_or(KEY_CHOOSES);
            fields[2].u.i = rd::RD_KAFKA_MSG_F_COPY;
            fields[3].u.mem = memory(record.key);
            fields[4].u.mem = memory(record.value);
            // To librdkafka zero means now; a millisecond later is nearer to what is meant.
            let time = record.timestamp_ms.map_or(0, |time| i64::try_from(time).unwrap_or(i64::MAX).max(1));
            fields[5].u.i64_ = time;
            fields[6].u.headers = headers;
            fields[7].u.ptr = std::ptr::without_provenance_mut(opaque);
            let error = rd::rd_kafka_produceva(self.client.rk, fields.as_ptr(), fields.len());
            if error.is_null() {
                return Code::RD_KAFKA_RESP_ERR_NO_ERROR;
            }
            rd::rd_kafka_headers_destroy(headers);
            let code = rd::rd_kafka_error_code(error);
            rd::rd_kafka_error_destroy(error);
            code
        }
    }

    /// Lets callbacks run; tells of deliveries that failed.
    pub(crate) fn serve(&self, timeout_ms: c_int) -> Result<(), SystemError> {
        // SAFETY: the handle is alive.
        unsafe { rd::rd_kafka_poll(self.client.rk, timeout_ms) };
        self.client.delivery_failure().map_err(|error| self.named(error))?;
        self.client.transaction_failure()
    }

    /// With the topics that are not there, if the error says of some topic only that it is not.
    fn named(&self, error: SystemError) -> SystemError {
        if !error.to_string().contains("UNKNOWN_TOPIC_OR_PART") {
            return error;
        }
        let is_gone = |topic: &&Topic| matches!(self.client.learn(&topic.name, LEARN_TIMEOUT), Ok(0));
        let gone: Vec<&str> = self.topics.iter().filter(is_gone).map(|topic| &*topic.name).collect();
        if gone.is_empty() { error } else { error.during(&format!("no broker knows {}", gone.join(", "))) }
    }

    /// Waits until all that was queued is delivered or failed, for as long as something is within `timeout`: how long a
    /// flush takes depends on how much there is, and on quotas.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), SystemError> {
        /// So often is looked whether anything was delivered. A flush that is over does not wait for it.
        const LOOK: Duration = Duration::from_millis(250);
        let (mut waiting, mut since) = (c_int::MAX, Instant::now());
        loop {
            // SAFETY: the handle is alive.
            let (code, left) = unsafe {
                let code = rd::rd_kafka_flush(self.client.rk, millis(timeout.min(LOOK)));
                (code, rd::rd_kafka_outq_len(self.client.rk))
            };
            self.client.delivery_failure().map_err(|error| self.named(error))?;
            if left < waiting {
                (waiting, since) = (left, Instant::now());
            }
            if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            // librdkafka keeps the messages of a transaction that has failed until it is aborted.
            self.client.transaction_failure()?;
            if code != Code::RD_KAFKA_RESP_ERR__TIMED_OUT || since.elapsed() >= timeout {
                let seconds = since.elapsed().as_secs();
                let why = format!(
                    "{left} messages are not acknowledged, and none was for {seconds} s: {}",
                    code_text(code)
                );
                return Err(self.client.error(code, &why));
            }
        }
    }

    /// Registers the transactional id; refused if transactions may not be open for as long as is wished. librdkafka looks
    /// for the coordinator once when it starts, and again only half a second later if no broker was connected by then: so
    /// a broker is waited for first.
    pub(crate) fn init_transactions(&self, timeout: Duration) -> Result<(), SystemError> {
        self.client.await_broker(timeout)?;
        // SAFETY: the handle is alive; `check` takes the error.
        let done =
            self.client.check(unsafe { rd::rd_kafka_init_transactions(self.client.rk, millis(timeout)) });
        match done {
            Err(error)
                if self.client.fatal_cause() == Code::RD_KAFKA_RESP_ERR_INVALID_TRANSACTION_TIMEOUT =>
            {
                Err(SystemError::Refused(error.to_string()))
            }
            done => done,
        }
    }

    pub(crate) fn begin_transaction(&self) -> Result<(), SystemError> {
        // SAFETY: as above.
        self.client.check(unsafe { rd::rd_kafka_begin_transaction(self.client.rk) })
    }

    pub(crate) fn commit_transaction(&self, timeout: Duration) -> Result<(), SystemError> {
        // SAFETY: as above.
        let committed =
            self.client.check(unsafe { rd::rd_kafka_commit_transaction(self.client.rk, millis(timeout)) });
        let told = match (committed, self.client.delivery_failure()) {
            // Which message it was, and what became of it, says more than that there was one.
            (
                Err(SystemError::Fatal(_) | SystemError::Retriable(_) | SystemError::Refused(_)),
                Err(cause),
            ) => Err(cause),
            (committed, _) => committed,
        };
        told.map_err(|error| self.named(error))
    }

    pub(crate) fn abort_transaction(&self, timeout: Duration) -> Result<(), SystemError> {
        self.client.set_aborting(true);
        // SAFETY: as above. It waits until all that is dropped was reported.
        let aborted =
            self.client.check(unsafe { rd::rd_kafka_abort_transaction(self.client.rk, millis(timeout)) });
        self.client.set_aborting(false);
        aborted
    }
}

/// Queues a message without headers, of now.
fn bare(topic: &Topic, record: &ProducerRecord<'_>, opaque: usize) -> Code {
    let ((key, key_len), (value, value_len)) = (parts(record.key), parts(record.value));
    // SAFETY: with F_COPY the bytes are read before the call returns.
    unsafe {
        let refused = rd::rd_kafka_produce(
            topic.handle,
            record.partition.unwrap_or(KEY_CHOOSES),
            rd::RD_KAFKA_MSG_F_COPY,
            value.cast_mut().cast(),
            value_len,
            key.cast(),
            key_len,
            std::ptr::without_provenance_mut(opaque),
        );
        if refused == 0 { Code::RD_KAFKA_RESP_ERR_NO_ERROR } else { rd::rd_kafka_last_error() }
    }
}

/// Where bytes are; nowhere is null, no bytes are not.
fn parts(bytes: Option<&[u8]>) -> (*const u8, usize) {
    bytes.map_or((std::ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()))
}

fn foreign_handle() -> SystemError {
    SystemError::Fatal("a topic handle of another producer".into())
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_with_a_message_comes_back_with_it() {
        for timestamp_ms in [None, Some(0), Some(1_700_000_000_123), Some(1 << 54)] {
            for (is_alone, tag) in [(false, 0), (true, 0), (false, u8::MAX), (true, 7)] {
                let with = With { is_alone, tag, timestamp_ms };
                assert_eq!(With::of(with.opaque()), with);
            }
        }
        let never = With { is_alone: true, tag: 9, timestamp_ms: Some(u64::MAX) };
        assert_eq!(With::of(never.opaque()), With { timestamp_ms: None, ..never });
    }
}

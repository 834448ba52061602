//! Consumers: assignment and batches.

use std::cell::UnsafeCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, c_int};
use std::time::Duration;

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{Message, SystemError, TopicPartition};
use task_api::{Header, HeaderSource, Headers};

use super::{Client, c_text, code_text, rust_text};

/// Messages in one batch: past a few hundred the cost of a call is gone.
const BATCH: usize = 1_000;

/// How long the leaders of a topic are waited for.
const LEARN_TIMEOUT: Duration = Duration::from_secs(5);

/// Something that came from the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    /// All there is of a source was handed over, up to this offset.
    End { source: usize, offset: u64 },
}

/// A consumer with an assignment.
#[derive(Debug)]
pub(crate) struct Consumer {
    queue: *mut rd::rd_kafka_queue_t,
    client: Client,
    sources: Vec<TopicPartition>,
    /// The place of each partition in `sources`, by librdkafka's topic handle.
    places: HashMap<(usize, i32), usize>,
    /// The partition of the last message and its place: most come from where the one before came from.
    last: Option<((usize, i32), usize)>,
    pointers: Vec<*mut rd::rd_kafka_message_t>,
}

// SAFETY: as for `Client`; the pointers in `pointers` are only valid, and only read, inside `poll`.
unsafe impl Send for Consumer {}

impl Drop for Consumer {
    fn drop(&mut self) {
        // SAFETY: ours since `rd_kafka_queue_get_consumer`; the client is dropped after this.
        unsafe { rd::rd_kafka_queue_destroy(self.queue) }
    }
}

impl Consumer {
    pub(crate) fn new(settings: &[(&str, &str)]) -> Result<Consumer, SystemError> {
        let client = Client::new(rd::rd_kafka_type_t::RD_KAFKA_CONSUMER, settings)?;
        // SAFETY: the handle is alive.
        let queue = unsafe {
            rd::rd_kafka_poll_set_consumer(client.rk);
            rd::rd_kafka_queue_get_consumer(client.rk)
        };
        if queue.is_null() {
            return Err(SystemError::Fatal("a consumer needs a group.id".into()));
        }
        let (sources, places, pointers) = (Vec::new(), HashMap::new(), Vec::new());
        Ok(Consumer { queue, client, sources, places, last: None, pointers })
    }

    /// A list of `partitions` with their offsets, for one call; librdkafka copies what it keeps.
    fn with_list<R>(
        partitions: &mut dyn Iterator<Item = (&TopicPartition, i64)>,
        call: impl FnOnce(*mut rd::rd_kafka_topic_partition_list_t) -> R,
    ) -> Result<R, SystemError> {
        // SAFETY: the list is ours and destroyed here.
        unsafe {
            let list = rd::rd_kafka_topic_partition_list_new(0);
            for (partition, offset) in partitions {
                let topic = match c_text(&partition.topic) {
                    Ok(topic) => topic,
                    Err(error) => {
                        rd::rd_kafka_topic_partition_list_destroy(list);
                        return Err(error);
                    }
                };
                let entry = rd::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), partition.partition);
                (*entry).offset = offset;
            }
            let answer = call(list);
            rd::rd_kafka_topic_partition_list_destroy(list);
            Ok(answer)
        }
    }

    fn checked(&self, code: Code) -> Result<(), SystemError> {
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(self.client.error(code, "")) }
    }

    /// Stops fetching these sources, or, if `resume`, fetches them again from the first message not handed over.
    pub(crate) fn pause(&self, sources: &[usize], resume: bool) -> Result<(), SystemError> {
        let mut partitions = sources.iter().filter_map(|at| self.sources.get(*at)).map(|of| (of, 0));
        let code = Self::with_list(&mut partitions, |list| {
            // SAFETY: the handle and the list are alive.
            unsafe {
                if resume {
                    rd::rd_kafka_resume_partitions(self.client.rk, list)
                } else {
                    rd::rd_kafka_pause_partitions(self.client.rk, list)
                }
            }
        })?;
        self.checked(code)
    }

    /// Sends offsets of sources to the group's coordinator and waits for its answer, whatever it is, for at most
    /// `patience`.
    pub(crate) fn commit_offsets(&self, offsets: &[(usize, u64)], patience: Duration) {
        let mut of = offsets.iter().filter_map(|(at, offset)| {
            Some((self.sources.get(*at)?, i64::try_from(*offset).unwrap_or(i64::MAX)))
        });
        let timeout_ms = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        let sent = Self::with_list(&mut of, |list| {
            // SAFETY: the handle and the list are alive; librdkafka copies it. The queue is ours, an answer that comes
            // too late for it is dropped.
            unsafe {
                let answers = rd::rd_kafka_queue_new(self.client.rk);
                let code =
                    rd::rd_kafka_commit_queue(self.client.rk, list, answers, None, std::ptr::null_mut());
                if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR && timeout_ms > 0 {
                    let answer = rd::rd_kafka_queue_poll(answers, timeout_ms);
                    if !answer.is_null() {
                        rd::rd_kafka_event_destroy(answer);
                    }
                }
                rd::rd_kafka_queue_destroy(answers);
                code
            }
        });
        match sent.and_then(|code| self.checked(code)) {
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "positions are not told to the consumer group"),
        }
    }

    /// The offset of the first message of `unix_ms` or later; none if there is no such message.
    pub(crate) fn offset_at(
        &self,
        partition: &TopicPartition,
        unix_ms: u64,
        timeout: Duration,
    ) -> Result<Option<u64>, SystemError> {
        let time = i64::try_from(unix_ms).unwrap_or(i64::MAX);
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut one = std::iter::once((partition, time));
        let (code, offset) = Self::with_list(&mut one, |list| {
            // SAFETY: the handle and the list are alive, and the list has one entry.
            unsafe {
                let code = rd::rd_kafka_offsets_for_times(self.client.rk, list, timeout_ms);
                let entry = &*(*list).elems;
                let first = if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR { entry.err } else { code };
                (first, entry.offset)
            }
        })?;
        self.checked(code)?;
        // Below zero: librdkafka's word for the end.
        Ok(u64::try_from(offset).ok())
    }

    /// Reads these partitions from these offsets (as librdkafka numbers them) and no others.
    pub(crate) fn assign(&mut self, partitions: &[(TopicPartition, i64)]) -> Result<(), SystemError> {
        self.places.clear();
        self.last = None;
        self.sources = partitions.iter().map(|(partition, _)| partition.clone()).collect();
        let mut list = partitions.iter().map(|(partition, offset)| (partition, *offset));
        // SAFETY: the handle and the list are alive; librdkafka copies it.
        let code = Self::with_list(&mut list, |list| unsafe { rd::rd_kafka_assign(self.client.rk, list) })?;
        self.checked(code)?;
        let topics: BTreeSet<&str> = self.sources.iter().map(|source| source.topic.as_str()).collect();
        topics.into_iter().try_for_each(|topic| self.client.learn(topic, LEARN_TIMEOUT).map(drop))
    }

    /// Waits up to `timeout` for a first message, then takes what is there. `take` gets the messages, `event`
    /// everything else that is not an error.
    pub(crate) fn poll(
        &mut self,
        timeout: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
        event: &mut dyn FnMut(Event),
    ) -> Result<usize, SystemError> {
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        self.pointers.clear();
        self.pointers.resize(BATCH, std::ptr::null_mut());
        // The batch call waits until its batch is full or its time is over; so only the first message is waited
        // for, alone, and only if there is none.
        // SAFETY: the array has room for BATCH pointers.
        let mut n =
            unsafe { rd::rd_kafka_consume_batch_queue(self.queue, 0, self.pointers.as_mut_ptr(), BATCH) };
        if n == 0 && timeout_ms > 0 {
            // SAFETY: as above, with one place taken.
            unsafe {
                let first = rd::rd_kafka_consume_queue(self.queue, timeout_ms);
                if !first.is_null() {
                    self.pointers[0] = first;
                    let rest = self.pointers.as_mut_ptr().add(1);
                    n = 1 + rd::rd_kafka_consume_batch_queue(self.queue, 0, rest, BATCH - 1).max(0);
                }
            }
        }
        let n = usize::try_from(n).map_err(|_| SystemError::Fatal("the consumer's queue failed".into()))?;
        self.pointers.truncate(n);
        let taken = self.hand_over(take, event);
        for message in self.pointers.drain(..) {
            // SAFETY: ours, and nothing borrows from it any more.
            unsafe { rd::rd_kafka_message_destroy(message) }
        }
        taken
    }

    fn hand_over(
        &mut self,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
        event: &mut dyn FnMut(Event),
    ) -> Result<usize, SystemError> {
        let mut messages = Vec::with_capacity(self.pointers.len());
        for at in 0..self.pointers.len() {
            // SAFETY: alive until `poll` destroys it, which is after `messages` is gone.
            let raw = unsafe { &*self.pointers[at] };
            match raw.err {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                    if let Some(source) = self.place_of(raw) {
                        messages.push(borrowed(raw, source));
                    }
                }
                Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                    // Of an assignment that is over it would name a topic that is no source any more.
                    if let Some(source) = self.place_of(raw) {
                        event(Event::End { source, offset: u64::try_from(raw.offset).unwrap_or(0) });
                    }
                }
                code => self.problem(code, raw)?,
            }
        }
        if !messages.is_empty() {
            take(&messages)?;
        }
        Ok(messages.len())
    }

    /// An error among the messages: some librdkafka deals with itself.
    fn problem(&self, code: Code, raw: &rd::rd_kafka_message_t) -> Result<(), SystemError> {
        // SAFETY: the text is the message's payload, alive as long as the message.
        let why = rust_text(unsafe { rd::rd_kafka_message_errstr(raw) });
        match self.client.error(code, &why) {
            SystemError::Retriable(why) => {
                tracing::debug!("consumer: {why}");
                Ok(())
            }
            // The group is nothing but a name under which positions are told to tools: no right on it is needed.
            SystemError::Fatal(_) | SystemError::Fenced(_) | SystemError::Refused(_)
                if matches!(
                    code,
                    Code::RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED
                        | Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED
                ) =>
            {
                Ok(())
            }
            SystemError::Fatal(_) | SystemError::Fenced(_) | SystemError::Refused(_) => {
                Err(SystemError::Fatal(format!("{}: {why}", code_text(code))))
            }
        }
    }

    /// The message's place in the assignment.
    fn place_of(&mut self, raw: &rd::rd_kafka_message_t) -> Option<usize> {
        let key = (raw.rkt as usize, raw.partition);
        if let Some((_, place)) = self.last.filter(|(last, _)| *last == key) {
            return Some(place);
        }
        let place = match self.places.get(&key) {
            Some(place) => *place,
            None => {
                // SAFETY: a message of a partition has a topic handle.
                let topic = rust_text(unsafe { rd::rd_kafka_topic_name(raw.rkt) });
                let is = |of: &TopicPartition| of.partition == raw.partition && of.topic == topic;
                let place = self.sources.iter().position(is)?;
                self.places.insert(key, place);
                place
            }
        };
        self.last = Some((key, place));
        Some(place)
    }

    /// The end of `partition` as heard with the last fetch.
    pub(crate) fn known_end(&self, partition: &TopicPartition) -> Option<u64> {
        let topic = c_text(&partition.topic).ok()?;
        let (mut low, mut high) = (0_i64, 0_i64);
        // SAFETY: the places for the answers are ours.
        let code = unsafe {
            rd::rd_kafka_get_watermark_offsets(
                self.client.rk,
                topic.as_ptr(),
                partition.partition,
                &raw mut low,
                &raw mut high,
            )
        };
        (code == Code::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(())?;
        u64::try_from(high).ok()
    }

    /// Asks the broker for the ends of `partition`; `high` is what this consumer may read.
    pub(crate) fn query_ends(
        &self,
        partition: &TopicPartition,
        timeout: Duration,
    ) -> Result<(i64, i64), SystemError> {
        let topic = c_text(&partition.topic)?;
        let (mut low, mut high) = (0_i64, 0_i64);
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the places for the answers are ours.
        let code = unsafe {
            rd::rd_kafka_query_watermark_offsets(
                self.client.rk,
                topic.as_ptr(),
                partition.partition,
                &raw mut low,
                &raw mut high,
                timeout_ms,
            )
        };
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok((low, high)),
            code => {
                let why = format!("{}-{}: {}", partition.topic, partition.partition, code_text(code));
                Err(self.client.error(code, &why))
            }
        }
    }
}

/// A message whose headers librdkafka reads when it is asked for them, into its own structure: so it is not shared by
/// threads.
#[repr(transparent)]
struct WithHeaders(UnsafeCell<rd::rd_kafka_message_t>);

impl HeaderSource for WithHeaders {
    /// The cursor counts headers. A name ends at a zero byte, if it has one.
    fn next(&self, cursor: &mut usize) -> Option<Header<'_>> {
        let (mut headers, mut name, mut value, mut size) =
            (std::ptr::null_mut(), std::ptr::null(), std::ptr::null(), 0);
        // SAFETY: the message is alive, and the headers, which it owns, as long as it is. Name and value are valid if
        // there is such a header; a name ends with a zero byte, a value has as many bytes as told, or is null.
        unsafe {
            let found = rd::rd_kafka_message_headers(self.0.get(), &raw mut headers);
            if found != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            let found =
                rd::rd_kafka_header_get_all(headers, *cursor, &raw mut name, &raw mut value, &raw mut size);
            if found != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            *cursor += 1;
            Some(Header { name: CStr::from_ptr(name).to_bytes(), value: bytes(value.cast::<u8>(), size) })
        }
    }
}

pub(super) fn borrowed(raw: &rd::rd_kafka_message_t, source: usize) -> Message<'_> {
    let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: payload and key are alive as long as the message, and as long as they say; `WithHeaders` is the same in
    // memory.
    unsafe {
        Message {
            source,
            offset: u64::try_from(raw.offset).unwrap_or(0),
            key: bytes(raw.key.cast::<u8>(), raw.key_len),
            value: bytes(raw.payload.cast::<u8>(), raw.len),
            // Below zero: it has none.
            timestamp_ms: u64::try_from(rd::rd_kafka_message_timestamp(raw, &raw mut kind)).ok(),
            headers: Headers::of(&*std::ptr::from_ref(raw).cast::<WithHeaders>()),
        }
    }
}

/// # Safety
/// `at` is null or points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(at: *const u8, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at, len) })
}

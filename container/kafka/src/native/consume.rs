//! Consumers: assignment and batches.
//!
//! librdkafka keeps a position of its own, from which it goes on after a pause. It is not the right one: an end of
//! partition that is met in a batch moves it one too far (librdkafka's issue 4844), and the message there would never
//! come. So the positions are ours: what is handed over moves them, a pause seeks to them, and what librdkafka hands
//! over a second time is dropped.

use std::cell::UnsafeCell;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{LogEnd, Message, SystemError, TopicPartition};
use task_api::{Header, HeaderSource, Headers};

use super::rights::Tried;
use super::{Client, c_text, code_text, rust_text};
use crate::statistics::Statistics;

mod cut;

/// Messages in one batch: past a few hundred the cost of a call is gone.
const BATCH: usize = 1_000;

/// How long the leaders of a topic are waited for.
const LEARN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a seek may take; it is decided in this process.
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);

/// Called when the queue is no longer empty.
struct Wake(Arc<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Wake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wake")
    }
}

/// A partition that is read, and how far.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) at: TopicPartition,
    /// Everything below it was handed over: the offset after the last message, or where reading began.
    pub(crate) next: u64,
    /// Where the partition was last read to its end: there is nothing to be seen between the last message and this.
    pub(crate) end: Option<u64>,
    /// The end of the last run of its messages, with the leader epoch of the last one.
    pub(crate) read_to: Option<LogEnd>,
}

impl Source {
    /// Where reading goes on.
    pub(crate) fn position(&self) -> u64 {
        self.next.max(self.end.unwrap_or(0))
    }

    /// As librdkafka is told, where the log begins at `low`. The epoch of the last message holds right behind it. What may
    /// be between that and the position is nothing to be seen, such as a marker, of whose epoch nobody tells: it is read
    /// once more.
    fn place(&self, low: u64) -> Place<'_> {
        match self.read_to {
            Some(LogEnd { offset, leader_epoch: Some(epoch) })
                if (low..=self.position()).contains(&offset) =>
            {
                Place { leader_epoch: Some(epoch), ..Place::new(&self.at, offset) }
            }
            Some(_) | None => Place::new(&self.at, self.position()),
        }
    }

    /// Takes note of a message that came; returns whether it is to be handed over. It is not if it was before: what was
    /// on its way when the place to read from was changed may come twice.
    fn is_next(&mut self, offset: u64) -> bool {
        if offset < self.next {
            tracing::debug!(source = ?self.at, offset, next = self.next, "a message came again");
            return false;
        }
        self.next = offset + 1;
        if self.end.is_some_and(|end| offset < end) {
            // There was nothing here before.
            tracing::warn!(source = ?self.at, offset, end = self.end, "the log was written anew before its end");
            self.end = None;
        }
        true
    }
}

impl Source {
    fn read_up_to(&mut self, last: &rd::rd_kafka_message_t) {
        // SAFETY: the message is alive. Below zero: its format has none.
        let epoch = unsafe { rd::rd_kafka_message_leader_epoch(last) };
        let leader_epoch = Some(epoch).filter(|epoch| *epoch >= 0);
        self.read_to = Some(LogEnd { offset: unsigned(last.offset) + 1, leader_epoch });
    }
}

/// What librdkafka is told of a partition.
struct Place<'a> {
    at: &'a TopicPartition,
    offset: i64,
    /// The leader epoch of the message before it: with it the broker is asked whether the log was cut meanwhile.
    leader_epoch: Option<i32>,
}

impl<'a> Place<'a> {
    fn new(at: &'a TopicPartition, offset: u64) -> Place<'a> {
        Place { at, offset: i64::try_from(offset).unwrap_or(i64::MAX), leader_epoch: None }
    }
}

/// A consumer with an assignment.
#[derive(Debug)]
pub(crate) struct Consumer {
    queue: *mut rd::rd_kafka_queue_t,
    client: Client,
    pub(crate) sources: Vec<Source>,
    /// Boxed, because librdkafka holds its address.
    wake: Option<Box<Wake>>,
    /// The place of each partition in `sources`, by librdkafka's topic handle.
    places: HashMap<(usize, i32), usize>,
    /// The partition of the last message and its place: most come from where the one before came from.
    last: Option<((usize, i32), usize)>,
    pointers: Vec<*mut rd::rd_kafka_message_t>,
    /// Whether the group is none of ours: then no position is told, which nobody would take.
    is_denied_group: bool,
}

// SAFETY: as for `Client`; the pointers in `pointers` are only valid, and only read, inside `poll`.
unsafe impl Send for Consumer {}

impl Drop for Consumer {
    fn drop(&mut self) {
        // SAFETY: ours since `rd_kafka_queue_get_consumer`; the client is dropped after this, and what `wake` points to
        // after the client.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.queue, None, std::ptr::null_mut());
            rd::rd_kafka_queue_destroy(self.queue);
        }
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
        Ok(Consumer {
            queue,
            client,
            sources,
            wake: None,
            places,
            last: None,
            pointers,
            is_denied_group: false,
        })
    }

    /// As [`Client::tell`].
    pub(crate) fn tell(&self, statistics: Statistics) {
        self.client.tell(statistics);
    }

    /// Has `wake` called, from a thread of librdkafka's, whenever something comes into the empty queue.
    pub(crate) fn wake_with(&mut self, wake: Arc<dyn Fn() + Send + Sync>) {
        // SAFETY: the pointer is to what the box holds, which stays where it is until the queue no longer knows it.
        unsafe {
            rd::rd_kafka_queue_cb_event_enable(self.queue, None, std::ptr::null_mut());
            let wake = self.wake.insert(Box::new(Wake(wake)));
            let opaque = std::ptr::from_ref::<Wake>(&**wake).cast_mut().cast::<c_void>();
            rd::rd_kafka_queue_cb_event_enable(self.queue, Some(on_queued), opaque);
        }
    }

    /// A list of `places`, for one call; librdkafka copies what it keeps.
    fn with_list<'a, R>(
        places: &mut dyn Iterator<Item = Place<'a>>,
        call: impl FnOnce(*mut rd::rd_kafka_topic_partition_list_t) -> R,
    ) -> Result<R, SystemError> {
        // SAFETY: the list is ours and destroyed here.
        unsafe {
            let list = rd::rd_kafka_topic_partition_list_new(0);
            for Place { at, offset, leader_epoch } in places {
                let topic = match c_text(&at.topic) {
                    Ok(topic) => topic,
                    Err(error) => {
                        rd::rd_kafka_topic_partition_list_destroy(list);
                        return Err(error);
                    }
                };
                let entry = rd::rd_kafka_topic_partition_list_add(list, topic.as_ptr(), at.partition);
                (*entry).offset = offset;
                if let Some(epoch) = leader_epoch {
                    rd::rd_kafka_topic_partition_set_leader_epoch(entry, epoch);
                }
            }
            let answer = call(list);
            rd::rd_kafka_topic_partition_list_destroy(list);
            Ok(answer)
        }
    }

    fn checked(&self, code: Code) -> Result<(), SystemError> {
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(self.client.error(code, "")) }
    }

    /// Stops fetching these sources, or, if `resume`, fetches them again from their positions.
    pub(crate) fn pause(&self, sources: &[usize], resume: bool) -> Result<(), SystemError> {
        // Before: a paused partition whose leader changes is looked at where librdkafka believes it to be.
        self.seek(sources)?;
        let of = sources.iter().filter_map(|at| self.sources.get(*at));
        let mut partitions = of.map(|source| Place::new(&source.at, 0));
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

    /// Makes librdkafka go on with these sources at their positions, and waits until it will. What is in its queue of
    /// them is dropped, and fetched again.
    fn seek(&self, sources: &[usize]) -> Result<(), SystemError> {
        let of = || sources.iter().filter_map(|place| self.sources.get(*place));
        let timeout_ms = c_int::try_from(SEEK_TIMEOUT.as_millis()).unwrap_or(c_int::MAX);
        let mut list = of().map(|source| source.place(self.known_ends(&source.at).map_or(0, |(low, _)| low)));
        for (source, code) in of().zip(self.seek_to(&mut list, timeout_ms)?) {
            // Not fetched: either not yet, and will be from where it was assigned, which is its position; or not any
            // more, and why is in the queue.
            let is_told = code == Code::RD_KAFKA_RESP_ERR__STATE;
            if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR && !is_told {
                let (TopicPartition { topic, partition }, to) = (&source.at, source.position());
                let why = format!("cannot go to {to} in {topic}-{partition}: {}", code_text(code));
                return Err(self.client.error(code, &why));
            }
        }
        Ok(())
    }

    /// Makes librdkafka go on at these places; what it says of each.
    fn seek_to<'a>(
        &self,
        places: &mut dyn Iterator<Item = Place<'a>>,
        timeout_ms: c_int,
    ) -> Result<Vec<Code>, SystemError> {
        let (error, codes) = Self::with_list(places, |list| {
            // SAFETY: the handle and the list are alive; the list has as many entries as it says.
            unsafe {
                let error = rd::rd_kafka_seek_partitions(self.client.rk, list, timeout_ms);
                let entries = std::slice::from_raw_parts((*list).elems, (*list).cnt.unsigned_abs() as usize);
                (error, entries.iter().map(|entry| entry.err).collect())
            }
        })?;
        self.client.check(error).map(|()| codes)
    }

    /// Sends offsets of sources to the group's coordinator and waits for its answer, whatever it is, for at most
    /// `patience`.
    pub(crate) fn commit_offsets(&mut self, offsets: &[(usize, u64)], patience: Duration) {
        if self.is_denied_group {
            return;
        }
        let mut of =
            offsets.iter().filter_map(|(at, offset)| Some(Place::new(&self.sources.get(*at)?.at, *offset)));
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
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // The time is where the offset would be.
        let mut one = std::iter::once(Place::new(partition, unix_ms));
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

    /// Reads these partitions from these offsets and no others.
    pub(crate) fn assign(&mut self, partitions: &[(TopicPartition, u64)]) -> Result<(), SystemError> {
        self.places.clear();
        self.last = None;
        let source = |(at, next): &(TopicPartition, u64)| Source {
            at: at.clone(),
            next: *next,
            end: None,
            read_to: None,
        };
        self.sources = partitions.iter().map(source).collect();
        let mut list = partitions.iter().map(|(partition, next)| Place::new(partition, *next));
        // SAFETY: the handle and the list are alive; librdkafka copies it.
        let code = Self::with_list(&mut list, |list| unsafe { rd::rd_kafka_assign(self.client.rk, list) })?;
        self.checked(code)?;
        let topics: BTreeSet<&str> = self.sources.iter().map(|source| source.at.topic.as_str()).collect();
        topics.into_iter().try_for_each(|topic| self.client.learn(topic, LEARN_TIMEOUT).map(drop))
    }

    /// Waits up to `timeout` for a first message, then takes what is there. `take` gets the messages.
    pub(crate) fn poll(
        &mut self,
        timeout: Duration,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
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
        let taken = self.hand_over(take);
        for message in self.pointers.drain(..) {
            // SAFETY: ours, and nothing borrows from it any more.
            unsafe { rd::rd_kafka_message_destroy(message) }
        }
        taken
    }

    fn hand_over(
        &mut self,
        take: &mut dyn FnMut(&[Message<'_>]) -> Result<(), SystemError>,
    ) -> Result<usize, SystemError> {
        let mut messages: Vec<Message<'_>> = Vec::with_capacity(self.pointers.len());
        let mut run: Option<(usize, &rd::rd_kafka_message_t)> = None;
        for at in 0..self.pointers.len() {
            // SAFETY: alive until `poll` destroys it, which is after `messages` is gone.
            let raw = unsafe { &*self.pointers[at] };
            // What is of no source is of an assignment that is over.
            match raw.err {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                    if let Some(place) = self.place_of(raw)
                        && self.sources[place].is_next(unsigned(raw.offset))
                    {
                        messages.push(borrowed(raw, place));
                        // Messages of one partition come in runs: the last of each tells enough.
                        match run.replace((place, raw)) {
                            Some((before, last)) if before != place => self.sources[before].read_up_to(last),
                            Some(_) | None => {}
                        }
                    }
                }
                Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                    if let Some(place) = self.place_of(raw) {
                        self.sources[place].end = Some(unsigned(raw.offset));
                    }
                }
                code => self.problem(code, raw)?,
            }
        }
        if let Some((place, last)) = run {
            self.sources[place].read_up_to(last);
        }
        if !messages.is_empty() {
            take(&messages)?;
        }
        Ok(messages.len())
    }

    /// An error among the messages: some librdkafka deals with itself.
    fn problem(&mut self, code: Code, raw: &rd::rd_kafka_message_t) -> Result<(), SystemError> {
        // SAFETY: the text is the message's payload, alive as long as the message.
        let why = rust_text(unsafe { rd::rd_kafka_message_errstr(raw) });
        if code == Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED && !raw.rkt.is_null() {
            // SAFETY: the topic is alive as long as the message.
            let topic = rust_text(unsafe { rd::rd_kafka_topic_name(raw.rkt) });
            return Err(self.client.error_of(code, &why, Tried::topic("Read", &topic)));
        }
        self.is_denied_group |= code == Code::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
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
                let place = if raw.rkt.is_null() { None } else { self.place_of(raw) };
                let of = place.and_then(|place| self.sources.get(place)).map_or_else(String::new, |source| {
                    format!("{}-{} at {}: ", source.at.topic, source.at.partition, source.position())
                });
                Err(SystemError::Fatal(format!("{of}{}: {why}", code_text(code))))
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
                let is = |of: &Source| of.at.partition == raw.partition && of.at.topic == topic;
                let place = self.sources.iter().position(is)?;
                self.places.insert(key, place);
                place
            }
        };
        self.last = Some((key, place));
        Some(place)
    }

    /// Where `partition` begins and ends, as heard with the last fetch.
    pub(crate) fn known_ends(&self, partition: &TopicPartition) -> Option<(u64, u64)> {
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
        Some((unsigned(low), u64::try_from(high).ok()?))
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
                Err(self.client.error_of(code, &why, Tried::topic("Read", &partition.topic)))
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

unsafe extern "C" fn on_queued(_rk: *mut rd::rd_kafka_t, wake: *mut c_void) {
    // SAFETY: the opaque pointer is to the consumer's `Wake`, which outlives the queue's knowledge of it.
    let wake = unsafe { &*wake.cast_const().cast::<Wake>() };
    (wake.0)();
}

/// The offset of a message; below zero are words of librdkafka's that none has.
fn unsigned(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or(0)
}

pub(super) fn borrowed(raw: &rd::rd_kafka_message_t, source: usize) -> Message<'_> {
    let mut kind = rd::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: payload and key are alive as long as the message, and as long as they say; `WithHeaders` is the same in
    // memory.
    unsafe {
        Message {
            source,
            offset: unsigned(raw.offset),
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

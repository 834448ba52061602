//! Producers, plain and transactional.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{Header, SystemError};

use super::{Client, c_text, code_text};

/// How long a full queue is waited for: longer means that no broker takes anything.
const QUEUE_FULL_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the leaders of a topic are waited for.
const LEARN_TIMEOUT: Duration = Duration::from_secs(5);

/// A producer.
#[derive(Debug)]
pub(crate) struct Producer {
    topics: Vec<(String, *mut rd::rd_kafka_topic_t)>,
    client: Client,
}

// SAFETY: as for `Client`; topic handles are thread-safe too.
unsafe impl Send for Producer {}

impl Drop for Producer {
    fn drop(&mut self) {
        const QUEUE_AND_INFLIGHT: c_int = 0x1 | 0x2;
        // SAFETY: the handles are ours. What was not acknowledged by now was not committed either: waiting for
        // it would only delay the end.
        unsafe {
            for (_, topic) in self.topics.drain(..) {
                rd::rd_kafka_topic_destroy(topic);
            }
            rd::rd_kafka_purge(self.client.rk, QUEUE_AND_INFLIGHT);
            rd::rd_kafka_poll(self.client.rk, 0);
        }
    }
}

impl Producer {
    pub(crate) fn new(settings: &[(&str, &str)]) -> Result<Producer, SystemError> {
        Ok(Producer {
            topics: Vec::new(),
            client: Client::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, settings)?,
        })
    }

    /// The place of `topic` among the kept handles.
    pub(crate) fn topic(&mut self, topic: &str) -> Result<u32, SystemError> {
        let known = self.topics.iter().position(|(name, _)| name == topic);
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
                self.topics.push((topic.to_owned(), handle));
                self.client.learn(topic, LEARN_TIMEOUT)?;
                self.topics.len() - 1
            }
        };
        u32::try_from(place).map_err(|_| SystemError::Fatal("too many topics".into()))
    }

    /// Queues a message, waiting while the queue is full. Partition -1 lets the key choose.
    pub(crate) fn send(
        &mut self,
        topic: u32,
        partition: i32,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), SystemError> {
        let Some((name, handle)) = self.topics.get(topic as usize) else {
            return Err(SystemError::Fatal("a topic handle of another producer".into()));
        };
        let (key_at, key_len) = key.map_or((std::ptr::null(), 0), |key| (key.as_ptr(), key.len()));
        let (value_at, value_len) =
            value.map_or((std::ptr::null(), 0), |value| (value.as_ptr(), value.len()));
        let mut since = None;
        loop {
            let code = if headers.is_empty() {
                // SAFETY: with F_COPY the bytes are read before the call returns.
                unsafe {
                    let refused = rd::rd_kafka_produce(
                        *handle,
                        partition,
                        rd::RD_KAFKA_MSG_F_COPY,
                        value_at.cast_mut().cast(),
                        value_len,
                        key_at.cast(),
                        key_len,
                        std::ptr::null_mut(),
                    );
                    if refused == 0 {
                        return Ok(());
                    }
                    rd::rd_kafka_last_error()
                }
            } else {
                self.send_with_headers(*handle, partition, (key_at, key_len), (value_at, value_len), headers)?
            };
            match code {
                Code::RD_KAFKA_RESP_ERR_NO_ERROR => return Ok(()),
                // These are about this message alone, and it was not queued.
                Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE
                | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
                | Code::RD_KAFKA_RESP_ERR__INVALID_ARG => {
                    let (key, value) = (key_len, value_len);
                    return Err(SystemError::Refused(format!(
                        "send to {name}: {} (key of {key} bytes, value of {value})",
                        code_text(code)
                    )));
                }
                _ => {}
            }
            let since = *since.get_or_insert_with(Instant::now);
            if code != Code::RD_KAFKA_RESP_ERR__QUEUE_FULL || since.elapsed() > QUEUE_FULL_TIMEOUT {
                // A fenced or failed producer says so in its deliveries first.
                self.serve(0)?;
                return Err(self.client.error(code, &format!("send to {name}: {}", code_text(code))));
            }
            self.serve(5)?;
        }
    }

    /// As `rd_kafka_produce`, for messages with headers: rare ones, so the setting up does not matter.
    fn send_with_headers(
        &self,
        topic: *mut rd::rd_kafka_topic_t,
        partition: i32,
        key: (*const u8, usize),
        value: (*const u8, usize),
        headers: &[Header<'_>],
    ) -> Result<Code, SystemError> {
        use rd::rd_kafka_vtype_t as V;
        let names: Vec<_> = headers.iter().map(|(name, _)| c_text(name)).collect::<Result<_, _>>()?;
        let memory = |(at, size): (*const u8, usize)| rd::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: at.cast_mut().cast(),
            size,
        };
        // SAFETY: all zeroes is a valid union of numbers and pointers; the field that its type names is set below.
        // Everything pointed to is alive during the call, which copies it (F_COPY; headers always).
        unsafe {
            let field = |vtype| rd::rd_kafka_vu_t { vtype, u: std::mem::zeroed() };
            let mut fields = vec![
                field(V::RD_KAFKA_VTYPE_RKT),
                field(V::RD_KAFKA_VTYPE_PARTITION),
                field(V::RD_KAFKA_VTYPE_MSGFLAGS),
                field(V::RD_KAFKA_VTYPE_KEY),
                field(V::RD_KAFKA_VTYPE_VALUE),
            ];
            fields[0].u.rkt = topic;
            fields[1].u.i32_ = partition;
            fields[2].u.i = rd::RD_KAFKA_MSG_F_COPY;
            fields[3].u.mem = memory(key);
            fields[4].u.mem = memory(value);
            for (name, (_, value)) in names.iter().zip(headers) {
                let mut header = field(V::RD_KAFKA_VTYPE_HEADER);
                header.u.header.name = name.as_ptr();
                header.u.header.val = value.as_ptr().cast();
                header.u.header.size = isize::try_from(value.len()).unwrap_or(isize::MAX);
                fields.push(header);
            }
            let error = rd::rd_kafka_produceva(self.client.rk, fields.as_ptr(), fields.len());
            if error.is_null() {
                return Ok(Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            }
            let code = rd::rd_kafka_error_code(error);
            rd::rd_kafka_error_destroy(error);
            Ok(code)
        }
    }

    /// Lets callbacks run; tells of deliveries that failed.
    pub(crate) fn serve(&self, timeout_ms: c_int) -> Result<(), SystemError> {
        // SAFETY: the handle is alive.
        unsafe { rd::rd_kafka_poll(self.client.rk, timeout_ms) };
        self.client.delivery_failure()
    }

    /// Waits until all that was queued is delivered or failed.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), SystemError> {
        // SAFETY: the handle is alive.
        let code = unsafe { rd::rd_kafka_flush(self.client.rk, millis(timeout)) };
        self.client.delivery_failure()?;
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(self.client.error(code, &format!("flush: {}", code_text(code)))),
        }
    }

    /// Registers the transactional id. librdkafka looks for the coordinator once when it starts, and again only
    /// half a second later if no broker was connected by then: so a broker is waited for first.
    pub(crate) fn init_transactions(&self, timeout: Duration) -> Result<(), SystemError> {
        let mut metadata = std::ptr::null();
        // SAFETY: the metadata is ours if there is some. That there is none is for the call below to tell.
        unsafe {
            rd::rd_kafka_metadata(
                self.client.rk,
                0,
                std::ptr::null_mut(),
                &raw mut metadata,
                millis(timeout),
            );
            if !metadata.is_null() {
                rd::rd_kafka_metadata_destroy(metadata);
            }
        }
        // SAFETY: the handle is alive; `check` takes the error.
        self.client.check(unsafe { rd::rd_kafka_init_transactions(self.client.rk, millis(timeout)) })
    }

    pub(crate) fn begin_transaction(&self) -> Result<(), SystemError> {
        // SAFETY: as above.
        self.client.check(unsafe { rd::rd_kafka_begin_transaction(self.client.rk) })
    }

    pub(crate) fn commit_transaction(&self, timeout: Duration) -> Result<(), SystemError> {
        // SAFETY: as above.
        let committed =
            self.client.check(unsafe { rd::rd_kafka_commit_transaction(self.client.rk, millis(timeout)) });
        match (committed, self.client.delivery_failure()) {
            // Which message it was, and what became of it, says more than that there was one.
            (
                Err(SystemError::Fatal(_) | SystemError::Retriable(_) | SystemError::Refused(_)),
                Err(cause),
            ) => Err(cause),
            (committed, _) => committed,
        }
    }

    pub(crate) fn abort_transaction(&self, timeout: Duration) -> Result<(), SystemError> {
        // SAFETY: as above.
        self.client.check(unsafe { rd::rd_kafka_abort_transaction(self.client.rk, millis(timeout)) })
    }
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX)
}

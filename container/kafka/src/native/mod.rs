//! The only place that calls librdkafka: safe wrappers over its C API, one file per kind of client.
//!
//! rust-rdkafka's own clients are not used: their consumers hand over one message per call and their producers
//! wait in slices of 100 ms for delivery events that nobody here wants (see `docs` of the C API in
//! `rdkafka.h`). What is `unsafe` here rests on three rules of that API: a handle may be used from any thread; a
//! message is alive until it is destroyed; a result belongs to its event and dies with it.
#![allow(unsafe_code, reason = "the C API of librdkafka; no other module of this crate is allowed any")]

pub(crate) mod admin;
mod classify;
pub(crate) mod config;
pub(crate) mod consume;
pub(crate) mod produce;
mod topics;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::SystemError;

use classify::classify;
pub(crate) use consume::Consumer;
pub(crate) use produce::Producer;
use produce::Refusal;

const TEXT: usize = 512;

/// What librdkafka's callbacks leave for the caller.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// The first delivery that failed.
    failed: Mutex<Option<SystemError>>,
    /// Whether messages that a broker refuses for what they are come here, and are no failure of the client.
    keeps_refusals: AtomicBool,
    refusals: Mutex<Vec<(String, Refusal)>>,
}

/// Whether `code` is about a message or its topic, and not about the client or its brokers.
fn is_refusal(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE
            | C::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | C::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
            | C::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE
            | C::RD_KAFKA_RESP_ERR_INVALID_RECORD
            | C::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP
            | C::RD_KAFKA_RESP_ERR_INVALID_MSG_SIZE
            | C::RD_KAFKA_RESP_ERR_POLICY_VIOLATION
            | C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | C::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | C::RD_KAFKA_RESP_ERR__INVALID_DIFFERENT_RECORD
    )
}

/// One librdkafka client.
#[derive(Debug)]
pub(crate) struct Client {
    rk: *mut rd::rd_kafka_t,
    /// Boxed, because librdkafka holds its address.
    mailbox: Box<Mailbox>,
}

// SAFETY: librdkafka's handles are thread-safe, and the mailbox is behind a mutex.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl Client {
    /// A client with these settings; later ones win.
    pub(crate) fn new(kind: rd::rd_kafka_type_t, settings: &[(&str, &str)]) -> Result<Client, SystemError> {
        let mailbox = Box::new(Mailbox::default());
        let mut text = [0 as c_char; TEXT];
        // SAFETY: `conf` is ours until `rd_kafka_new` takes it; on failure we destroy it. The mailbox outlives
        // the client: it is dropped after `rd_kafka_destroy` in `Drop`.
        unsafe {
            let conf = rd::rd_kafka_conf_new();
            for (key, value) in settings {
                let (key, value) = (c_text(key)?, c_text(value)?);
                let set = rd::rd_kafka_conf_set(conf, key.as_ptr(), value.as_ptr(), text.as_mut_ptr(), TEXT);
                if set != rd::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK {
                    rd::rd_kafka_conf_destroy(conf);
                    return Err(SystemError::Fatal(format!(
                        "Kafka setting refused: {}",
                        rust_text(text.as_ptr())
                    )));
                }
            }
            rd::rd_kafka_conf_set_opaque(conf, std::ptr::from_ref(&*mailbox).cast_mut().cast::<c_void>());
            rd::rd_kafka_conf_set_error_cb(conf, Some(on_error));
            rd::rd_kafka_conf_set_log_cb(conf, Some(on_log));
            if kind == rd::rd_kafka_type_t::RD_KAFKA_PRODUCER {
                rd::rd_kafka_conf_set_dr_msg_cb(conf, Some(on_delivery));
            }
            let rk = rd::rd_kafka_new(kind, conf, text.as_mut_ptr(), TEXT);
            if rk.is_null() {
                rd::rd_kafka_conf_destroy(conf);
                return Err(SystemError::Fatal(format!("no Kafka client: {}", rust_text(text.as_ptr()))));
            }
            Ok(Client { rk, mailbox })
        }
    }

    /// From now on messages that a broker refuses are for [`Self::refusals`].
    fn keep_refusals(&self) {
        self.mailbox.keeps_refusals.store(true, Ordering::Relaxed);
    }

    /// Takes the messages that were refused since the last call.
    fn refusals(&self) -> Vec<(String, Refusal)> {
        std::mem::take(&mut *self.mailbox.refusals.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first failed delivery since the client was made; it stays failed.
    pub(crate) fn delivery_failure(&self) -> Result<(), SystemError> {
        let failed = self.mailbox.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone().map_or(Ok(()), Err)
    }

    /// Asks for the leaders of `topic` now. librdkafka would find those of a topic that it has not seen before only
    /// with its next look around, up to a second later. Returns how many partitions it has, 0 if nobody knows: that
    /// there is no answer is for later calls to tell.
    pub(crate) fn learn(&self, topic: &str, timeout: Duration) -> Result<i32, SystemError> {
        let name = c_text(topic)?;
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the topic handle and the answer are ours and destroyed here.
        unsafe {
            let handle = rd::rd_kafka_topic_new(self.rk, name.as_ptr(), std::ptr::null_mut());
            let mut answer = std::ptr::null();
            rd::rd_kafka_metadata(self.rk, 0, handle, &raw mut answer, timeout_ms);
            let mut partitions = 0;
            if !answer.is_null() {
                let answer: &rd::rd_kafka_metadata = &*answer;
                if answer.topic_cnt > 0 {
                    partitions = (*answer.topics).partition_cnt;
                }
                rd::rd_kafka_metadata_destroy(answer);
            }
            if !handle.is_null() {
                rd::rd_kafka_topic_destroy(handle);
            }
            Ok(partitions)
        }
    }

    /// What `code` means, looking behind a fatal error for its cause.
    fn error(&self, code: Code, text: &str) -> SystemError {
        if code != Code::RD_KAFKA_RESP_ERR__FATAL {
            return classify(code, text);
        }
        let mut why = [0 as c_char; TEXT];
        // SAFETY: the buffer is as long as we say.
        let cause = unsafe { rd::rd_kafka_fatal_error(self.rk, why.as_mut_ptr(), TEXT) };
        match classify(cause, &rust_text(why.as_ptr())) {
            fenced @ SystemError::Fenced(_) => fenced,
            SystemError::Retriable(why) | SystemError::Fatal(why) | SystemError::Refused(why) => {
                SystemError::Fatal(why)
            }
        }
    }

    /// Takes an error object, if there is one.
    fn check(&self, error: *mut rd::rd_kafka_error_t) -> Result<(), SystemError> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the object is alive until we destroy it, and its text with it.
        let (code, text, fatal) = unsafe {
            let code = rd::rd_kafka_error_code(error);
            let text = rust_text(rd::rd_kafka_error_string(error));
            let fatal = rd::rd_kafka_error_is_fatal(error) != 0;
            rd::rd_kafka_error_destroy(error);
            (code, text, fatal)
        };
        let found = self.error(code, &text);
        Err(match found {
            SystemError::Retriable(why) if fatal => SystemError::Fatal(why),
            other => other,
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        const NO_CONSUMER_CLOSE: c_int = 0x8;
        // SAFETY: nobody else has the handle; nothing that borrows from it outlives `self`. There is no group to
        // leave, so the consumer need not be closed.
        unsafe { rd::rd_kafka_destroy_flags(self.rk, NO_CONSUMER_CLOSE) }
    }
}

/// librdkafka's logs, as ours.
unsafe extern "C" fn on_log(
    _rk: *const rd::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    text: *const c_char,
) {
    let (facility, text) = (rust_text(facility), rust_text(text));
    // syslog levels: up to 3 are errors; what librdkafka calls an error it mostly retries.
    if level <= 3 {
        tracing::warn!(target: "librdkafka", "{facility}: {text}");
    } else {
        tracing::debug!(target: "librdkafka", "{facility}: {text}");
    }
}

/// Errors that are nobody's answer: librdkafka retries them by itself.
unsafe extern "C" fn on_error(
    _rk: *mut rd::rd_kafka_t,
    code: c_int,
    text: *const c_char,
    _mailbox: *mut c_void,
) {
    tracing::debug!(target: "librdkafka", code, "{}", rust_text(text));
}

/// Called for failed deliveries only (`delivery.report.only.error`).
unsafe extern "C" fn on_delivery(
    _rk: *mut rd::rd_kafka_t,
    message: *const rd::rd_kafka_message_t,
    mailbox: *mut c_void,
) {
    // SAFETY: librdkafka hands us a live message with its topic, whose name lives as long, and the opaque pointer is
    // the client's mailbox.
    let (raw, topic, mailbox) = unsafe {
        let raw = &*message;
        (raw, rust_text(rd::rd_kafka_topic_name(raw.rkt)), &*mailbox.cast_const().cast::<Mailbox>())
    };
    let code = raw.err;
    if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
        return;
    }
    if mailbox.keeps_refusals.load(Ordering::Relaxed) && is_refusal(code) {
        let refusal = Refusal::of(raw);
        mailbox.refusals.lock().unwrap_or_else(PoisonError::into_inner).push((topic, refusal));
        return;
    }
    let (key, value) = (raw.key_len, raw.len);
    let why =
        format!("a message for topic {topic} (key of {key} bytes, value of {value}): {}", code_text(code));
    let error = match classify(code, &why) {
        SystemError::Fatal(why) if is_refusal(code) => SystemError::Refused(why),
        other => other,
    };
    let mut failed = mailbox.failed.lock().unwrap_or_else(PoisonError::into_inner);
    failed.get_or_insert(error);
}

fn code_text(code: Code) -> String {
    // SAFETY: the text is static.
    rust_text(unsafe { rd::rd_kafka_err2str(code) })
}

fn c_text(text: &str) -> Result<CString, SystemError> {
    CString::new(text).map_err(|_| SystemError::Fatal(format!("{text:?} has a zero byte")))
}

/// The text at `text`, empty if there is none.
fn rust_text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's texts end with a zero byte.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

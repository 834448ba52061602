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
mod library;
pub(crate) mod produce;
pub(crate) mod rights;
mod token;
mod topics;
pub(crate) mod trouble;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::SystemError;

use classify::classify;
pub(crate) use consume::Consumer;
pub(crate) use library::features;
pub(crate) use produce::Producer;
use produce::Refusal;
pub(crate) use token::TOKEN_FILE;

use crate::statistics::Statistics;
use rights::{Tried, Who, is_denied};
use trouble::{Cause, Trouble};

const TEXT: usize = 512;

/// What librdkafka's callbacks leave for the caller.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// The first delivery that failed.
    failed: Mutex<Option<SystemError>>,
    /// Whether messages that a broker refuses for what they are come here, and are no failure of the client.
    keeps_refusals: AtomicBool,
    refusals: Mutex<Vec<(String, Refusal)>>,
    /// What connections say.
    trouble: Trouble,
    /// The topic that a transaction could not take in.
    refused: Mutex<Option<String>>,
    /// Whether a transaction is being aborted: that what it was to send is dropped is no failure then.
    is_aborting: AtomicBool,
    /// Why a transaction must be aborted.
    aborted: Mutex<Option<String>>,
    /// Who the client is to brokers.
    who: Who,
    /// Whether a broker has ever answered.
    answered: AtomicBool,
    /// For what it tells of itself, if somebody wants it.
    statistics: OnceLock<Statistics>,
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

/// Before a broker has ever answered, trouble that another try can do nothing about is waited out so long only.
const FIRST_CONTACT: Duration = Duration::from_secs(3);

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
        // Without this, OpenSSL takes itself apart when the process exits, under threads that still use it.
        openssl_sys::init();
        let mailbox = Box::new(Mailbox { who: Who::of(settings), ..Mailbox::default() });
        let with_tokens = settings.iter().any(|(key, _)| *key == TOKEN_FILE);
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
            rd::rd_kafka_conf_set_stats_cb(conf, Some(on_statistics));
            rd::rd_kafka_conf_set_ssl_cert_verify_cb(conf, Some(on_certificate));
            if with_tokens {
                rd::rd_kafka_conf_set_oauthbearer_token_refresh_cb(conf, Some(token::on_token));
                rd::rd_kafka_conf_enable_sasl_queue(conf, 1);
            }
            if kind == rd::rd_kafka_type_t::RD_KAFKA_PRODUCER {
                rd::rd_kafka_conf_set_dr_msg_cb(conf, Some(on_delivery));
            }
            let rk = rd::rd_kafka_new(kind, conf, text.as_mut_ptr(), TEXT);
            if rk.is_null() {
                rd::rd_kafka_conf_destroy(conf);
                return Err(SystemError::Fatal(format!("no Kafka client: {}", rust_text(text.as_ptr()))));
            }
            let client = Client { rk, mailbox };
            if with_tokens {
                // Tokens are refreshed whether or not anybody polls.
                client.check(rd::rd_kafka_sasl_background_callbacks_enable(rk))?;
            }
            Ok(client)
        }
    }

    /// From now on what the client tells of itself goes there. It does so only if `statistics.interval.ms` is set, and
    /// when somebody polls.
    pub(crate) fn tell(&self, statistics: Statistics) {
        // The first one stays.
        let _ = self.mailbox.statistics.set(statistics);
    }

    /// From now on messages that a broker refuses are for [`Self::refusals`].
    fn keep_refusals(&self) {
        self.mailbox.keeps_refusals.store(true, Ordering::Relaxed);
    }

    /// While a transaction is aborted, what it has not sent yet is dropped on purpose.
    fn set_aborting(&self, is_aborting: bool) {
        self.mailbox.is_aborting.store(is_aborting, Ordering::Relaxed);
        if !is_aborting {
            // It explains nothing of the next one.
            *self.mailbox.aborted.lock().unwrap_or_else(PoisonError::into_inner) = None;
            *self.mailbox.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Why the transaction that is open can only be aborted, if so, or the client is of no use any more.
    fn transaction_failure(&self) -> Result<(), SystemError> {
        if self.fatal_cause() != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(self.error(Code::RD_KAFKA_RESP_ERR__FATAL, ""));
        }
        let aborted = self.mailbox.aborted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(why) = aborted else { return Ok(()) };
        let denied = self.denied(Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
        Err(denied.unwrap_or(SystemError::Fatal(why)))
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
            return self.denied(code).unwrap_or_else(|| self.explained(classify(code, text)));
        }
        let mut why = [0 as c_char; TEXT];
        // SAFETY: the buffer is as long as we say.
        let cause = unsafe { rd::rd_kafka_fatal_error(self.rk, why.as_mut_ptr(), TEXT) };
        if let Some(denied) = self.denied(cause) {
            return denied;
        }
        match classify(cause, &rust_text(why.as_ptr())) {
            fenced @ SystemError::Fenced(_) => fenced,
            SystemError::Retriable(why) | SystemError::Fatal(why) | SystemError::Refused(why) => {
                SystemError::Fatal(why)
            }
        }
    }

    /// Which right is missing, where only a transaction's state can tell.
    fn denied(&self, code: Code) -> Option<SystemError> {
        let who = &self.mailbox.who;
        let refused = self.mailbox.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match code {
            Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED => {
                let id = who.transactional_id.as_deref()?;
                Some(who.denied(Tried { operation: "Write", resource: "transactional-id", name: id }))
            }
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => {
                Some(who.denied(Tried::topic("Write", refused.as_deref()?)))
            }
            Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => Some(who.denied(Tried {
                operation: "IdempotentWrite",
                resource: "cluster",
                name: "kafka-cluster",
            })),
            _ => None,
        }
    }

    /// With what connections say: that nobody answered in time explains nothing.
    fn explained(&self, error: SystemError) -> SystemError {
        match (error, self.mailbox.trouble.last()) {
            (SystemError::Retriable(why), Some(cause)) => {
                SystemError::Retriable(format!("{why}: {}", cause.text))
            }
            (error, _) => error,
        }
    }

    /// As [`Client::error`]; where the broker denied it, which right is missing.
    fn error_of(&self, code: Code, text: &str, tried: Tried<'_>) -> SystemError {
        if is_denied(code) { self.mailbox.who.denied(tried) } else { self.error(code, text) }
    }

    /// What connections said last.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.mailbox.trouble.last()
    }

    /// A broker has answered.
    fn answered(&self) {
        self.mailbox.trouble.over();
        self.mailbox.answered.store(true, Ordering::Relaxed);
    }

    /// Why it is no use to wait longer for a first answer, if it is none.
    fn hopeless(&self, since: Instant) -> Option<SystemError> {
        if self.mailbox.answered.load(Ordering::Relaxed) || since.elapsed() < FIRST_CONTACT {
            return None;
        }
        let Cause { text, lasting, .. } = self.mailbox.trouble.last()?;
        lasting.then_some(SystemError::Fatal(text))
    }

    /// Waits for a broker, at most this long: librdkafka answers a question with what it knows about brokers.
    fn await_broker(&self, timeout: Duration) -> Result<(), SystemError> {
        match self.live_brokers(timeout) {
            // That there is still none is for the question itself to tell.
            Ok(_) | Err(SystemError::Retriable(_)) => Ok(()),
            Err(hopeless) => Err(hopeless),
        }
    }

    /// How many brokers are up; waits for at least one.
    ///
    /// `DescribeCluster` would tell their racks too, but librdkafka (2.12) aborts the whole process where its answer
    /// names no broker, as it does while the controller has lost sight of all of them.
    pub(crate) fn live_brokers(&self, timeout: Duration) -> Result<usize, SystemError> {
        const FIRST_SLICE: Duration = Duration::from_millis(500);
        let since = Instant::now();
        loop {
            let mut answer: *const rd::rd_kafka_metadata = std::ptr::null();
            // A late answer is lost, so a slow broker must be given longer each time.
            let slice = (since.elapsed() / 2).max(FIRST_SLICE).min(timeout.saturating_sub(since.elapsed()));
            let slice_ms = c_int::try_from(slice.as_millis()).unwrap_or(c_int::MAX);
            // SAFETY: the answer is ours and destroyed here.
            let (code, count) = unsafe {
                let code = rd::rd_kafka_metadata(self.rk, 0, std::ptr::null_mut(), &raw mut answer, slice_ms);
                let count = if answer.is_null() { 0 } else { (*answer).broker_cnt };
                if !answer.is_null() {
                    rd::rd_kafka_metadata_destroy(answer);
                }
                (code, usize::try_from(count).unwrap_or(0))
            };
            if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR && count > 0 {
                self.answered();
                return Ok(count);
            }
            if let Some(hopeless) = self.hopeless(since) {
                return Err(hopeless);
            }
            if since.elapsed() >= timeout {
                let why = SystemError::Retriable("no broker answered in time".into());
                return Err(self.explained(why));
            }
        }
    }

    /// Why the client failed for good, if it did.
    pub(crate) fn fatal_cause(&self) -> Code {
        // SAFETY: no text is asked for.
        unsafe { rd::rd_kafka_fatal_error(self.rk, std::ptr::null_mut(), 0) }
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
    rk: *const rd::rd_kafka_t,
    level: c_int,
    facility: *const c_char,
    text: *const c_char,
) {
    let (facility, text) = (rust_text(facility), rust_text(text));
    if !rk.is_null() {
        // SAFETY: the opaque pointer is the client's mailbox from before the client is made to after it is gone.
        let mailbox = unsafe { rd::rd_kafka_opaque(rk).cast_const().cast::<Mailbox>().as_ref() };
        if let Some(mailbox) = mailbox {
            mailbox.read_log(&facility, &text);
        }
    }
    // syslog levels: up to 3 are errors; what librdkafka calls an error it mostly retries.
    if level <= 3 {
        tracing::warn!(target: "librdkafka", "{facility}: {text}");
    } else {
        tracing::debug!(target: "librdkafka", "{facility}: {text}");
    }
}

/// Looks at a certificate of a broker's chain, which OpenSSL has judged: nothing else tells what is wrong with it.
unsafe extern "C" fn on_certificate(
    _rk: *mut rd::rd_kafka_t,
    _broker: *const c_char,
    _id: i32,
    error: *mut c_int,
    _depth: c_int,
    _certificate: *const c_char,
    _size: usize,
    _text: *mut c_char,
    _text_size: usize,
    mailbox: *mut c_void,
) -> c_int {
    // SAFETY: the number is librdkafka's; OpenSSL's texts are constants; the opaque pointer is the client's mailbox.
    unsafe {
        if *error == 0 {
            return 1;
        }
        let why = rust_text(openssl_sys::X509_verify_cert_error_string((*error).into()));
        (*mailbox.cast_const().cast::<Mailbox>()).trouble.note_certificate(&why);
    }
    0
}

/// Called on the thread that polls: so the text is kept and no more. librdkafka frees it after 0.
unsafe extern "C" fn on_statistics(
    _rk: *mut rd::rd_kafka_t,
    text: *mut c_char,
    _size: usize,
    mailbox: *mut c_void,
) -> c_int {
    // SAFETY: the opaque pointer is the client's mailbox.
    let mailbox = unsafe { &*mailbox.cast_const().cast::<Mailbox>() };
    if let Some(statistics) = mailbox.statistics.get() {
        statistics.told(rust_text(text));
    }
    0
}

impl Mailbox {
    fn read_log(&self, facility: &str, text: &str) {
        match facility {
            "FAIL" | "SASL" | "SSL" | "LIBSASL" | "OIDC" => self.trouble.note(text),
            // `Failed to add partition "topic" [0] to transaction: …`: no answer tells which it was.
            "ADDPARTS" => {
                // Of the topics beside it is said only that they were not tried.
                if let Some(topic) = text.split('"').nth(1)
                    && text.contains("authorization failed")
                {
                    *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(topic.to_owned());
                }
            }
            "TXNERR" => *self.aborted.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.to_owned()),
            _ => {}
        }
    }
}

/// Errors that are nobody's answer: librdkafka retries them by itself.
unsafe extern "C" fn on_error(
    _rk: *mut rd::rd_kafka_t,
    code: c_int,
    text: *const c_char,
    mailbox: *mut c_void,
) {
    let text = rust_text(text);
    if code == Code::RD_KAFKA_RESP_ERR__AUTHENTICATION as c_int {
        // SAFETY: the opaque pointer is the client's mailbox.
        unsafe { &*mailbox.cast_const().cast::<Mailbox>() }.trouble.note(&text);
    }
    tracing::debug!(target: "librdkafka", code, "{text}");
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
        let refusal = match is_denied(code) {
            true => Refusal::of(raw).told(mailbox.who.denied(Tried::topic("Write", &topic)).to_string()),
            false => Refusal::of(raw),
        };
        mailbox.refusals.lock().unwrap_or_else(PoisonError::into_inner).push((topic, refusal));
        return;
    }
    let (key, value) = (raw.key_len, raw.len);
    let why =
        format!("a message for topic {topic} (key of {key} bytes, value of {value}): {}", code_text(code));
    // A transaction that could not take a topic in, or has lost a message, drops what was to be sent: why says more.
    let purged =
        matches!(code, Code::RD_KAFKA_RESP_ERR__PURGE_QUEUE | Code::RD_KAFKA_RESP_ERR__PURGE_INFLIGHT);
    let left_out = mailbox.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if purged && left_out.is_none() && mailbox.is_aborting.load(Ordering::Relaxed) {
        return;
    }
    let aborted = mailbox.aborted.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let error = match classify(code, &why) {
        SystemError::Fatal(_) if purged && left_out.is_some() => {
            mailbox.who.denied(Tried::topic("Write", left_out.as_deref().unwrap_or_default()))
        }
        SystemError::Fatal(why) if purged => SystemError::Fatal(aborted.unwrap_or(why)),
        SystemError::Fatal(_) if is_denied(code) => mailbox.who.denied(Tried::topic("Write", &topic)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_topics_that_a_transaction_leaves_out_the_one_that_is_denied_is_told() {
        let settings = [("bootstrap.servers", "b:9092"), ("transactional.id", "t"), ("sasl.username", "job")];
        let client = Client::new(rd::rd_kafka_type_t::RD_KAFKA_PRODUCER, &settings).expect("it asks nobody");
        assert_eq!(client.transaction_failure(), Ok(()));
        let told = |topic: &str, why: &str| {
            let text = format!("Failed to add partition \"{topic}\" [0] to transaction: Broker: {why}");
            client.mailbox.read_log("ADDPARTS", &text);
        };
        told("changelog", "Topic authorization failed");
        told("checkpoint", "Operation not attempted");
        client.mailbox.read_log("TXNERR", "Current transaction failed");
        let why = client.transaction_failure().expect_err("it failed").to_string();
        assert!(why.contains("User:job has no right to Write on topic changelog;"), "{why}");
        client.set_aborting(true);
        client.set_aborting(false);
        assert_eq!(client.transaction_failure(), Ok(()), "it explains nothing of the next one");
    }
}

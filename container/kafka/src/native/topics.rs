//! Topics as a whole: their names, and more partitions for one.

use std::ffi::{CStr, c_char, c_int};
use std::time::Duration;

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_admin_op_t as Op;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::SystemError;

use super::admin::slice;
use super::{Client, TEXT, c_text, code_text, rust_text};

impl Client {
    /// The names of all topics that this principal may see.
    pub(crate) fn topics(&self, timeout: Duration) -> Result<Vec<String>, SystemError> {
        let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        let mut answer = std::ptr::null();
        // SAFETY: `answer` is ours from here on if it is set.
        let code =
            unsafe { rd::rd_kafka_metadata(self.rk, 1, std::ptr::null_mut(), &raw mut answer, timeout_ms) };
        if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR || answer.is_null() {
            return Err(self.error(code, &format!("the topics cannot be listed: {}", code_text(code))));
        }
        // SAFETY: the answer says how many topics it has and lives until it is destroyed below.
        unsafe {
            let topics = slice((*answer).topics, usize::try_from((*answer).topic_cnt).unwrap_or(0));
            let there = topics.iter().filter(|topic| topic.err == Code::RD_KAFKA_RESP_ERR_NO_ERROR);
            let names =
                there.map(|topic| CStr::from_ptr(topic.topic).to_string_lossy().into_owned()).collect();
            rd::rd_kafka_metadata_destroy(answer);
            Ok(names)
        }
    }

    /// Orders that `topic` have `partitions` partitions in all. That it has more already is no error.
    pub(crate) fn extend(&self, topic: &str, partitions: i32, timeout: Duration) -> Result<(), SystemError> {
        let name = c_text(topic)?;
        let total = usize::try_from(partitions).unwrap_or(0);
        let mut text = [0 as c_char; TEXT];
        // SAFETY: the name is copied.
        let mut order =
            unsafe { rd::rd_kafka_NewPartitions_new(name.as_ptr(), total, text.as_mut_ptr(), TEXT) };
        if order.is_null() {
            return Err(SystemError::Fatal(format!("topic {topic}: {}", rust_text(text.as_ptr()))));
        }
        let answer = self.ask(Op::RD_KAFKA_ADMIN_OP_CREATEPARTITIONS, None, timeout, |options, queue| {
            // SAFETY: all are alive during the call; librdkafka copies the order.
            unsafe { rd::rd_kafka_CreatePartitions(self.rk, &raw mut order, 1, options, queue) }
        });
        // SAFETY: ours.
        unsafe { rd::rd_kafka_NewPartitions_destroy(order) };
        let answer = answer?;
        // SAFETY: what the event lends lives until `answer` is dropped.
        unsafe {
            let result = rd::rd_kafka_event_CreatePartitions_result(answer.0);
            let mut n = 0;
            for of in slice(rd::rd_kafka_CreatePartitions_result_topics(result, &raw mut n), n) {
                match rd::rd_kafka_topic_result_error(*of) {
                    // Somebody else was first: the caller looks what there is.
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR | Code::RD_KAFKA_RESP_ERR_INVALID_PARTITIONS => {}
                    code => {
                        let why = rust_text(rd::rd_kafka_topic_result_error_string(*of));
                        let told = format!("topic {topic} cannot be given {partitions} partitions: {why}");
                        return Err(self.error(code, &told));
                    }
                }
            }
        }
        Ok(())
    }
}

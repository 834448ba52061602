//! Whether a log was cut since it was seen: the broker is asked where the leader epoch of then ends now (KIP-320).
//!
//! librdkafka asks when a seek names an epoch, and tells of nothing but a cut. So the places are read from, and what
//! comes first tells: a message or an end, or an error.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use rdkafka_sys::bindings as rd;
use rdkafka_sys::bindings::rd_kafka_resp_err_t as Code;
use task_api::system::{LogEnd, SystemError, TopicPartition};

use super::super::rust_text;
use super::{Consumer, Place};

/// How librdkafka's text of an error begins that is a cut. Its code is the one of every offset that is not there.
const CUT: &str = "Partition log truncation detected";

impl Consumer {
    /// By place: whether the log was cut before it. The places must have leader epochs and messages behind which
    /// retention has not gone.
    ///
    /// # Errors
    /// A broker does not answer in `timeout`.
    pub(crate) fn were_cut(
        &mut self,
        seen: &[(TopicPartition, LogEnd)],
        timeout: Duration,
    ) -> Result<Vec<bool>, SystemError> {
        let deadline = Instant::now() + timeout;
        let starts: Vec<(TopicPartition, u64)> =
            seen.iter().map(|(at, end)| (at.clone(), end.offset)).collect();
        self.assign(&starts)?;
        self.seek_in_epochs(seen, deadline)?;
        let mut answers: Vec<Option<bool>> = vec![None; seen.len()];
        while answers.contains(&None) {
            if Instant::now() >= deadline {
                let late = answers.iter().position(Option::is_none).unwrap_or(0);
                let TopicPartition { topic, partition } = &seen[late].0;
                let why = format!("no word about what became of {topic}-{partition}");
                return Err(SystemError::Retriable(why));
            }
            self.hear(&mut answers)?;
        }
        Ok(answers.into_iter().map(|cut| cut == Some(true)).collect())
    }

    /// Takes one word of what is asked for, if there is one soon.
    fn hear(&mut self, answers: &mut [Option<bool>]) -> Result<(), SystemError> {
        // SAFETY: the queue is alive; the message is ours and destroyed below.
        let Some(raw) = (unsafe { rd::rd_kafka_consume_queue(self.queue, 100).as_ref() }) else {
            return Ok(());
        };
        let place = if raw.rkt.is_null() { None } else { self.place_of(raw) };
        let heard = match (raw.err, place) {
            (Code::RD_KAFKA_RESP_ERR_NO_ERROR | Code::RD_KAFKA_RESP_ERR__PARTITION_EOF, Some(place)) => {
                answers[place].get_or_insert(false);
                Ok(())
            }
            (Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET, Some(place)) => {
                // SAFETY: the text is the message's payload, alive as long as the message.
                let why = rust_text(unsafe { rd::rd_kafka_message_errstr(raw) });
                tracing::debug!(source = ?self.sources[place].at, why, "what was seen there is not there");
                // Other words are of places that retention has passed meanwhile.
                answers[place] = Some(why.contains(CUT));
                Ok(())
            }
            (Code::RD_KAFKA_RESP_ERR_NO_ERROR | Code::RD_KAFKA_RESP_ERR__PARTITION_EOF, None) => Ok(()),
            (code, _) => self.problem(code, raw),
        };
        // SAFETY: nothing borrows from it any more.
        unsafe { rd::rd_kafka_message_destroy(std::ptr::from_ref(raw).cast_mut()) }
        heard
    }

    /// Goes to each place in the epoch that it was seen in, as soon as the partitions are fetched from.
    fn seek_in_epochs<'a>(
        &self,
        seen: &'a [(TopicPartition, LogEnd)],
        deadline: Instant,
    ) -> Result<(), SystemError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout_ms = c_int::try_from(left.as_millis()).unwrap_or(c_int::MAX);
            let place = |(at, end): &'a (TopicPartition, LogEnd)| Place {
                leader_epoch: end.leader_epoch,
                ..Place::new(at, end.offset)
            };
            let codes = self.seek_to(&mut seen.iter().map(place), timeout_ms)?;
            let Some(failed) = codes.into_iter().find(|code| *code != Code::RD_KAFKA_RESP_ERR_NO_ERROR)
            else {
                return Ok(());
            };
            // The assignment is not complete yet.
            if failed != Code::RD_KAFKA_RESP_ERR__STATE || left.is_zero() {
                return Err(self.client.error(failed, "cannot go to where a log was seen to end"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

//! What follows an error of a task: job.toml's `[errors]`, by stage.

use std::collections::BTreeMap;

use task_api::metrics::Counter;
use task_api::{
    DecodeError, FailedMessage, IncomingMessageEnvelope, MessageCollector, OutgoingMessage, OwnedMessage,
    StoreError, TaskError, TaskMetrics,
};
use tracing::warn;
use types::{ErrorsSpec, OnError, TaskName};

use crate::collector::Outputs;
use crate::end::End;

/// What went wrong, with what.
pub(crate) enum Failed<'a> {
    /// A message.
    Message(&'a IncomingMessageEnvelope<'a>),
    /// A timer: its key and its time.
    Timer(&'a [u8], u64),
    /// Something that only the error can name ([`FailedMessage`]).
    InFlight,
}

/// One thread's policy and its counters.
pub(crate) struct Failures {
    errors: ErrorsSpec,
    counters: BTreeMap<(TaskName, &'static str), (Counter, Counter)>,
}

impl Failures {
    pub(crate) fn new(errors: ErrorsSpec, tasks: &[(TaskName, TaskMetrics)]) -> Failures {
        let mut counters = BTreeMap::new();
        for (task, metrics) in tasks {
            for stage in ["decode", "process"] {
                let skipped = metrics.counter(&format!("samza_task_{stage}_errors_total"));
                let dead = metrics.counter(&format!("samza_task_{stage}_dead_letters_total"));
                counters.insert((task.clone(), stage), (skipped, dead));
            }
        }
        Failures { errors, counters }
    }

    /// Decides what follows `error` of `task`.
    ///
    /// # Errors
    /// The container ends.
    pub(crate) fn judge(
        &self,
        task: &TaskName,
        failed: &Failed<'_>,
        error: TaskError,
        outputs: &mut Outputs,
    ) -> Result<(), End> {
        // An error that a system or a store caused is not the message's.
        if let Some(system) = outputs.failure() {
            return Err(End::from(system).during("sending"));
        }
        let (letter, error) = match error.downcast::<FailedMessage>() {
            Ok(of) => (Letter::of_message(task, &of.message), of.cause),
            Err(error) => (
                match failed {
                    Failed::Message(envelope) => Letter::of_message(task, &OwnedMessage::of(envelope)),
                    Failed::Timer(key, due) => Letter::of_timer(task, key, *due),
                    Failed::InFlight => Letter::of_timer(task, b"", 0),
                },
                error,
            ),
        };
        let text = format!("{task} failed: {}: {error}", letter.what);
        let (stage, policy) = if error.is::<DecodeError>() {
            ("decode", self.errors.decode)
        } else {
            ("process", self.errors.process)
        };
        if error.downcast_ref::<StoreError>().is_some_and(|e| matches!(e, StoreError::Engine(_))) {
            return Err(End::Failed(text));
        }
        let counters = self.counters.get(&(task.clone(), stage));
        match (policy, &self.errors.dead_letter) {
            (OnError::Fail, _) | (OnError::DeadLetter, None) => return Err(End::Failed(text)),
            (OnError::Skip, _) => warn!("{text}: left out, as [errors] {stage} says"),
            (OnError::DeadLetter, Some(stream)) => {
                letter.send(stream, stage, &error, outputs)?;
                warn!("{text}: sent to {stream}, as [errors] {stage} says");
                if let Some((_, dead)) = counters {
                    dead.inc();
                }
            }
        }
        if let Some((count, _)) = counters {
            count.inc();
        }
        Ok(())
    }
}

/// A message for the dead-letter stream.
struct Letter {
    /// For people.
    what: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(&'static str, String)>,
}

impl Letter {
    fn of_message(task: &TaskName, message: &OwnedMessage) -> Letter {
        let (stream, partition) = (message.source.stream.to_string(), message.source.partition);
        Letter {
            what: format!("message {} of {stream}.{partition}", message.offset),
            key: message.key.clone(),
            value: message.value.clone(),
            headers: vec![
                ("samza.task", task.to_string()),
                ("samza.stream", stream),
                ("samza.partition", partition.to_string()),
                ("samza.offset", message.offset.to_string()),
                ("samza.timestamp", message.timestamp_ms.to_string()),
            ],
        }
    }

    fn of_timer(task: &TaskName, key: &[u8], due_unix_ms: u64) -> Letter {
        Letter {
            what: format!("timer {} of {due_unix_ms}", String::from_utf8_lossy(key)),
            key: Some(key.to_vec()),
            value: None,
            headers: vec![("samza.task", task.to_string()), ("samza.timer", due_unix_ms.to_string())],
        }
    }

    fn send(
        &self,
        stream: &str,
        stage: &'static str,
        error: &TaskError,
        outputs: &mut Outputs,
    ) -> Result<(), End> {
        let error = error.to_string();
        let mut headers = vec![("samza.stage", stage.as_bytes()), ("samza.error", error.as_bytes())];
        headers.extend(self.headers.iter().map(|(name, value)| (*name, value.as_bytes())));
        let sent = outputs.send(OutgoingMessage {
            headers: &headers,
            ..OutgoingMessage::new(stream, self.key.as_deref(), self.value.as_deref())
        });
        sent.map_err(|error| match outputs.failure() {
            Some(system) => End::from(system).during("dead letter"),
            None => End::Failed(format!("dead letter: {error}")),
        })
    }
}

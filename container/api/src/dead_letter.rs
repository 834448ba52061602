//! What failed, as the dead-letter stream gets it: key, value, headers and timestamp as they were, and after its headers
//! ours, which tell where and why.

use types::{OnError, TaskName};

use crate::headers::{Header, Headers, OwnedHeaders};
use crate::serde::DecodeError;
use crate::system::SystemError;
use crate::task::{MessageCollector, OutgoingMessage, OwnedMessage, TaskError, TaskResult};

/// The stages of job.toml's `[errors]` at which a task fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The message cannot be read.
    Decode,
    /// Anything else.
    Process,
}

impl Stage {
    /// Both.
    pub const ALL: [Stage; 2] = [Stage::Decode, Stage::Process];

    /// The stage that `error` is of.
    #[must_use]
    pub fn of(error: &TaskError) -> Stage {
        if error.is::<DecodeError>() { Stage::Decode } else { Stage::Process }
    }
    /// Its name in job.toml, in headers and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Process => "process",
        }
    }
}

/// A message or a timer that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// For people: `message 7 of kafka.in.0`.
    pub what: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    timestamp_ms: Option<u64>,
    /// As they were.
    headers: OwnedHeaders,
    /// Ours.
    told: Vec<(&'static str, String)>,
}

impl DeadLetter {
    /// Of a message that `task` failed with.
    #[must_use]
    pub fn of_message(task: &TaskName, message: &OwnedMessage) -> DeadLetter {
        let (stream, partition) = (message.source.stream.to_string(), message.source.partition);
        let what = format!("message {} of {stream}.{partition}", message.offset);
        let mut told = vec![
            ("samza.task", task.to_string()),
            ("samza.stream", stream),
            ("samza.partition", partition.to_string()),
            ("samza.offset", message.offset.to_string()),
        ];
        // Beside the letter's own time, which a topic may replace with the time of arrival.
        told.extend(message.timestamp_ms.map(|time| ("samza.timestamp", time.to_string())));
        DeadLetter {
            what,
            key: message.key.clone(),
            value: message.value.clone(),
            timestamp_ms: message.timestamp_ms,
            headers: message.headers.clone(),
            told,
        }
    }

    /// Of a timer that `task` failed with.
    #[must_use]
    pub fn of_timer(task: &TaskName, key: &[u8], due_unix_ms: u64) -> DeadLetter {
        DeadLetter {
            what: format!("timer {} of {due_unix_ms}", String::from_utf8_lossy(key)),
            key: Some(key.to_vec()),
            value: None,
            timestamp_ms: None,
            headers: OwnedHeaders::default(),
            told: vec![("samza.task", task.to_string()), ("samza.timer", due_unix_ms.to_string())],
        }
    }

    /// Sends it to `stream`.
    ///
    /// # Errors
    /// As any send.
    pub fn send(
        &self,
        stream: &str,
        stage: Stage,
        error: &TaskError,
        collector: &mut dyn MessageCollector,
    ) -> TaskResult {
        let error = error.to_string();
        let ours = [("samza.stage", stage.name()), ("samza.error", error.as_str())];
        let told = self.told.iter().map(|(name, value)| (*name, value.as_str()));
        let ours = ours.into_iter().chain(told).map(|(name, value)| Header::new(name, value.as_bytes()));
        let headers: Vec<Header<'_>> = self.headers.get().iter().chain(ours).collect();
        collector.send(OutgoingMessage {
            timestamp_ms: self.timestamp_ms,
            headers: Headers::new(&headers),
            ..OutgoingMessage::new(stream, self.key.as_deref(), self.value.as_deref())
        })
    }
}

/// An output of a task was refused by its system, for `why`: what follows is up to `[errors] send` and its dead-letter
/// stream, if there is one. A letter goes out through `send`; one that is refused as well is left out.
///
/// # Errors
/// The policy forgives no refusal, or `send` met an error that is none.
pub fn after_refusal(
    message: &OutgoingMessage<'_>,
    why: &str,
    policy: OnError,
    dead_letters: Option<&str>,
    send: &mut dyn FnMut(&OutgoingMessage<'_>) -> Result<(), SystemError>,
) -> Result<(), SystemError> {
    let stream = match (policy, dead_letters) {
        (OnError::Fail, _) | (OnError::DeadLetter, None) => {
            return Err(SystemError::Refused(why.to_owned()));
        }
        (OnError::Skip, _) => return Ok(()),
        (OnError::DeadLetter, Some(stream)) => stream,
    };
    if stream == message.stream {
        return Ok(());
    }
    let ours = [
        Header::new("samza.stage", b"send"),
        Header::new("samza.error", why.as_bytes()),
        Header::new("samza.stream", message.stream.as_bytes()),
    ];
    let all: Vec<Header<'_>> = message.headers.iter().chain(ours).collect();
    let whole = OutgoingMessage {
        timestamp_ms: message.timestamp_ms,
        headers: Headers::new(&all),
        ..OutgoingMessage::new(stream, message.key, message.value)
    };
    // Most are refused for their size: without the value they fit, or without their own headers; few for their time.
    let without_value = OutgoingMessage { value: None, ..whole };
    let bare = OutgoingMessage { timestamp_ms: None, headers: Headers::new(&ours), ..without_value };
    for letter in [whole, without_value, bare] {
        match send(&letter) {
            Err(SystemError::Refused(_)) => {}
            sent => return sent,
        }
    }
    Ok(())
}

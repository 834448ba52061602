//! What failed, as the dead-letter stream gets it: key, value, headers and timestamp as they were, and after its headers
//! ours, which tell where and why.

use types::{OnError, TaskName};

use crate::headers::{Header, Headers, OwnedHeaders};
use crate::metrics::{Counter, MetricsRegistry};
use crate::serde::DecodeError;
use crate::system::SystemError;
use crate::task::{OutgoingMessage, OwnedMessage, TaskError};

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

/// What followed an error, as metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What failed was left out.
    Skipped,
    /// It was sent to the dead-letter stream.
    DeadLettered,
    /// The container ended.
    Failed,
}

impl Outcome {
    /// All.
    pub const ALL: [Outcome; 3] = [Outcome::Skipped, Outcome::DeadLettered, Outcome::Failed];
}

/// For runtimes: the counter of the errors with messages of `stream` at one of the stages of `[errors]`.
#[must_use]
pub fn count_error(metrics: &MetricsRegistry, stream: &str, stage: &str, outcome: Outcome) -> Counter {
    let outcome = match outcome {
        Outcome::Skipped => "skipped",
        Outcome::DeadLettered => "dead-lettered",
        Outcome::Failed => "failed",
    };
    let labels = [("stream", stream), ("stage", stage), ("outcome", outcome)];
    metrics.with_labels(&labels).counter("samza_errors_total")
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

    /// The stream that it came from, for metrics; what failed with a timer is of none.
    #[must_use]
    pub fn stream(&self) -> &str {
        let of = self.told.iter().find(|(name, _)| *name == "samza.stream");
        of.map_or("timers", |(_, stream)| stream)
    }

    /// Sends it to `stream` through `send`, which is told which [`Form`] it has.
    ///
    /// # Errors
    /// `send` met an error, or refused it in every form.
    pub fn send(
        &self,
        stream: &str,
        stage: Stage,
        error: &TaskError,
        send: &mut dyn FnMut(&OutgoingMessage<'_>, Form) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        let error = error.to_string();
        let ours = [("samza.stage", stage.name()), ("samza.error", error.as_str())];
        let told = self.told.iter().map(|(name, value)| (*name, value.as_str()));
        let ours = ours.into_iter().chain(told).map(|(name, value)| Header::new(name, value.as_bytes()));
        let headers: Vec<Header<'_>> = self.headers.get().iter().chain(ours).collect();
        let letter = OutgoingMessage {
            timestamp_ms: self.timestamp_ms,
            headers: Headers::new(&headers),
            ..OutgoingMessage::new(stream, self.key.as_deref(), self.value.as_deref())
        };
        Form::Whole.send(&letter, send)
    }
}

/// How much of a dead letter is sent. Most that are refused are too large: without the value they fit, or without their
/// own headers; few are refused for their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// All.
    Whole,
    /// All but the value.
    WithoutValue,
    /// The key and our headers.
    Bare,
}

impl Form {
    /// The next to try.
    #[must_use]
    pub fn smaller(self) -> Option<Form> {
        match self {
            Form::Whole => Some(Form::WithoutValue),
            Form::WithoutValue => Some(Form::Bare),
            Form::Bare => None,
        }
    }

    /// Sends `letter` through `send` in this form, or in a smaller one if it is refused.
    ///
    /// # Errors
    /// `send` met an error, or refused it in every form.
    pub fn send(
        self,
        letter: &OutgoingMessage<'_>,
        send: &mut dyn FnMut(&OutgoingMessage<'_>, Form) -> Result<(), SystemError>,
    ) -> Result<(), SystemError> {
        let ours = |header: &Header<'_>| header.name.starts_with(b"samza.");
        let ours: Vec<Header<'_>> = letter.headers.iter().filter(ours).collect();
        let mut letter = *letter;
        let mut form = self;
        loop {
            match form {
                Form::Whole => {}
                Form::WithoutValue => letter.value = None,
                Form::Bare => {
                    (letter.value, letter.timestamp_ms) = (None, None);
                    letter.headers = Headers::new(&ours);
                }
            }
            match (send(&letter, form), form.smaller()) {
                (Err(SystemError::Refused(_)), Some(smaller)) => form = smaller,
                (Err(SystemError::Refused(why)), None) => {
                    let stream = letter.stream;
                    return Err(SystemError::Refused(format!("a dead letter to {stream}: {why}")));
                }
                (sent, _) => return sent,
            }
        }
    }
}

/// An output of a task was refused by its system, for `why`: what follows is up to `[errors] send` and its dead-letter
/// stream, if there is one. A letter goes out through `send`.
///
/// # Errors
/// The policy forgives no refusal, or `send` met an error, or refused the letter in every form.
pub fn after_refusal(
    message: &OutgoingMessage<'_>,
    why: &str,
    policy: OnError,
    dead_letters: Option<&str>,
    send: &mut dyn FnMut(&OutgoingMessage<'_>, Form) -> Result<(), SystemError>,
) -> Result<(), SystemError> {
    let stream = match (policy, dead_letters) {
        (OnError::Fail, _) | (OnError::DeadLetter, None) => {
            return Err(SystemError::Refused(why.to_owned()));
        }
        (OnError::Skip, _) => return Ok(()),
        (OnError::DeadLetter, Some(stream)) => stream,
    };
    let ours = [
        Header::new("samza.stage", b"send"),
        Header::new("samza.error", why.as_bytes()),
        Header::new("samza.stream", message.stream.as_bytes()),
    ];
    let headers: Vec<Header<'_>> = message.headers.iter().chain(ours).collect();
    let letter = OutgoingMessage {
        timestamp_ms: message.timestamp_ms,
        headers: Headers::new(&headers),
        ..OutgoingMessage::new(stream, message.key, message.value)
    };
    Form::Whole.send(&letter, send)
}

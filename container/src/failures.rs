//! What follows an error of a task: job.toml's `[errors]`, by stage.

use task_api::dead_letter::{DeadLetter, Outcome, Stage, count_error};
use task_api::metrics::MetricsRegistry;
use task_api::{
    FailedMessage, IncomingMessageEnvelope, OutgoingMessage, OwnedMessage, StoreError, TaskError,
};
use tracing::warn;
use types::{ErrorsSpec, JobSpec, OnError, TaskModel, TaskName};

use crate::collector::Outputs;
use crate::end::End;

/// What went wrong, with what.
pub(crate) enum Failed<'a> {
    /// A message.
    Message(&'a IncomingMessageEnvelope<'a>),
    /// A timer: its key and its time.
    Timer(&'a [u8], u64),
    /// What the error names ([`FailedMessage`]).
    Named,
}

/// One thread's policy. Counters are looked up when something has failed.
pub(crate) struct Failures {
    errors: ErrorsSpec,
    metrics: MetricsRegistry,
}

impl Failures {
    pub(crate) fn new(job: &JobSpec, models: &[TaskModel], metrics: &MetricsRegistry) -> Failures {
        // What has not happened yet is 0 and not missing: else the first error would be no increase.
        for input in models.iter().flat_map(|model| &model.inputs) {
            for stage in Stage::ALL {
                for outcome in Outcome::ALL {
                    count_error(metrics, &input.stream.to_string(), stage.name(), outcome).add(0);
                }
            }
        }
        Failures { errors: job.errors.clone(), metrics: metrics.clone() }
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
        let (letter, error) = match (error.downcast::<FailedMessage>(), failed) {
            (Ok(of), _) => (DeadLetter::of_message(task, &of.message), of.cause),
            (Err(error), Failed::Message(envelope)) => {
                (DeadLetter::of_message(task, &OwnedMessage::of(envelope)), error)
            }
            (Err(error), Failed::Timer(key, due)) => (DeadLetter::of_timer(task, key, *due), error),
            (Err(error), Failed::Named) => return Err(End::Failed(format!("{task} failed: {error}"))),
        };
        let text = format!("{task} failed: {}: {error}", letter.what);
        let stage = Stage::of(&error);
        let policy = match stage {
            Stage::Decode => self.errors.decode,
            Stage::Process => self.errors.process,
        };
        if error.downcast_ref::<StoreError>().is_some_and(|e| matches!(e, StoreError::Engine(_))) {
            return Err(End::Failed(text));
        }
        let name = stage.name();
        let count = |outcome| count_error(&self.metrics, letter.stream(), name, outcome).inc();
        match (policy, &self.errors.dead_letter) {
            (OnError::Fail, _) | (OnError::DeadLetter, None) => {
                count(Outcome::Failed);
                return Err(End::Failed(text));
            }
            (OnError::Skip, _) => {
                warn!("{text}: left out, as [errors] {name} says");
                count(Outcome::Skipped);
            }
            (OnError::DeadLetter, Some(stream)) => {
                let mut send = |letter: &OutgoingMessage<'_>, form| outputs.send_letter(letter, form);
                let sent = letter.send(stream, stage, &error, &mut send);
                sent.map_err(|error| End::from(error).during(&text))?;
                warn!("{text}: sent to {stream}, as [errors] {name} says");
                count(Outcome::DeadLettered);
            }
        }
        Ok(())
    }
}

//! What follows an error of a task: job.toml's `[errors]`, by stage.

use std::collections::BTreeMap;

use task_api::dead_letter::{DeadLetter, Stage};
use task_api::metrics::Counter;
use task_api::{
    FailedMessage, IncomingMessageEnvelope, OutgoingMessage, OwnedMessage, StoreError, TaskError, TaskMetrics,
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
    /// What the error names ([`FailedMessage`]).
    Named,
}

/// One thread's policy and its counters.
pub(crate) struct Failures {
    errors: ErrorsSpec,
    counters: BTreeMap<(TaskName, Stage), (Counter, Counter)>,
}

impl Failures {
    pub(crate) fn new(errors: ErrorsSpec, tasks: &[(TaskName, TaskMetrics)]) -> Failures {
        let mut counters = BTreeMap::new();
        for (task, metrics) in tasks {
            for stage in Stage::ALL {
                let name = stage.name();
                let skipped = metrics.counter(&format!("samza_task_{name}_errors_total"));
                let dead = metrics.counter(&format!("samza_task_{name}_dead_letters_total"));
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
        let counters = self.counters.get(&(task.clone(), stage));
        let name = stage.name();
        match (policy, &self.errors.dead_letter) {
            (OnError::Fail, _) | (OnError::DeadLetter, None) => return Err(End::Failed(text)),
            (OnError::Skip, _) => warn!("{text}: left out, as [errors] {name} says"),
            (OnError::DeadLetter, Some(stream)) => {
                let mut send = |letter: &OutgoingMessage<'_>, form| outputs.send_letter(letter, form);
                let sent = letter.send(stream, stage, &error, &mut send);
                sent.map_err(|error| End::from(error).during(&text))?;
                warn!("{text}: sent to {stream}, as [errors] {name} says");
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

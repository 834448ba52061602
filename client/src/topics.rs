//! Whether the job's topics that exist can be used, asked before anything is changed: a job that replaces a live one must
//! not end it for a topic that it is refused for then.

use job_file::JobFile;
use kafka::KafkaAdmin;
use task_api::system::{SystemAdmin, SystemError};
use task_core::topics::{another_home, by_system, look};
use types::{JobTopics, Secrets, SystemKind};

use crate::brokers;
use crate::failure::{Code, Failure};
use crate::output::say;

/// Judges the coordinator, checkpoint and changelog topics as the application master will.
///
/// # Errors
/// `BadJobFile`: one cannot be used, or the job's state is on another system. What is not answered now is left to the
/// application master, with a warning.
pub async fn check(file: &JobFile, secrets: &Secrets) -> Result<(), Failure> {
    let (spec, secrets) = (file.spec.clone(), secrets.clone());
    let asked = tokio::task::spawn_blocking(move || judge(&spec, &secrets));
    match asked.await.map_err(|error| Failure::other(error.to_string()))? {
        Ok(()) => Ok(()),
        Err(SystemError::Fatal(why)) => {
            Err(Failure::new(Code::BadJobFile, format!("{}: {why}; nothing was submitted", file.name)))
        }
        Err(error) => {
            say(&format!("warning: the job's topics were not looked at: {error}"));
            Ok(())
        }
    }
}

fn judge(spec: &types::JobSpec, secrets: &Secrets) -> Result<(), SystemError> {
    let admin = |name: &str| {
        let system = &spec.systems[name];
        let access = brokers::access(name, system, secrets)?;
        KafkaAdmin::new(&access.bootstrap, &access.consumer)
    };
    let Some(home) = types::metadata_system(spec) else { return Ok(()) };
    let coordinator = JobTopics::of(&spec.job).coordinator;
    let has_it = |name: &str| Ok(!admin(name)?.describe(std::slice::from_ref(&coordinator))?.is_empty());
    if !has_it(&home)? {
        let is_other = |(name, system): &(&String, &types::SystemSpec)| {
            **name != home && system.kind == SystemKind::Kafka
        };
        for (other, _) in spec.systems.iter().filter(is_other) {
            if has_it(other)? {
                return Err(SystemError::Fatal(another_home(&spec.job, &home, other, &coordinator)));
            }
        }
    }
    // How many partitions there must be is known to the application master, which remembers the tasks.
    let plans: Vec<_> =
        types::coordinator_topic(spec).into_iter().chain(types::job_topics(spec, 1)).collect();
    for (system, plans) in by_system(&plans) {
        look(&admin(system)?, &spec.systems[system].bootstrap, &plans)?;
    }
    Ok(())
}

//! Which job a transactional id is of, and a topic with it.

use task_api::system::SystemError;

use crate::record::{OwnerRecord, Record};

/// The printed form of the job whose owner has this transactional id (see [`crate::ownership::OwnerRecord`]); none if it
/// is none of ours. Job ids have no `-`, so it can be told from any other's.
#[must_use]
pub fn job_of_owner(id: &str) -> Option<&str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (rest, last) = id.rsplit_once('-')?;
    let (rest, before) = rest.rsplit_once('-')?;
    if !is_number(last) {
        return None;
    }
    if before == "user" {
        return Some(rest);
    }
    let (rest, role) = rest.rsplit_once('-').filter(|_| is_number(before))?;
    if matches!(role, "am" | "stop") {
        return Some(rest);
    }
    let (job, slot) = rest.rsplit_once('-')?;
    (is_number(role) && is_number(slot)).then_some(job)
}

/// The owner in `record`, if it is one of another job than `me`.
pub(crate) fn of_another_job<'r>(me: &OwnerRecord, record: &'r Record) -> Option<&'r OwnerRecord> {
    let Record::Owner(owner) = record else { return None };
    (job_of_owner(&me.id)? != job_of_owner(&owner.id)?).then_some(owner)
}

/// That `topic` belongs to another job: the one with this owner, or of this name.
#[must_use]
pub fn belongs_to_another(topic: &str, whose: &str) -> SystemError {
    let job = job_of_owner(whose).unwrap_or(whose);
    SystemError::Fatal(format!(
        "topic {topic} belongs to job `{job}`, whose name is too much like this one's: `_` and `-` are one in names of \
         topics, so that the two would share state and fence each other; give one of them another `[job] name` or `id`"
    ))
}

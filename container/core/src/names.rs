//! Which job a transactional id is of.

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

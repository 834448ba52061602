//! Which application a word on the command line means.

use types::AppReport;

use crate::failure::{Code, Failure};

/// The application that `word` names: its id, its job's `<name>-<id>`, or its job's name. A live one goes before
/// those that are over, the newest of these before the others.
///
/// # Errors
/// `NotFound`, with what there is; `Usage` if live jobs of one name have several ids.
pub fn application<'a>(apps: &'a [AppReport], word: &str) -> Result<&'a AppReport, Failure> {
    if let Some(app) = apps.iter().find(|app| app.app.0 == word) {
        return Ok(app);
    }
    let mut named: Vec<&AppReport> = apps.iter().filter(|app| app.job.to_string() == word).collect();
    if named.is_empty() {
        named = apps.iter().filter(|app| app.job.name == word).collect();
    }
    let mut live = named.iter().filter(|app| !app.state.is_over());
    match (live.next(), live.next()) {
        (Some(app), None) => Ok(app),
        (Some(first), Some(second)) => {
            let choices = std::iter::once(first).chain(std::iter::once(second)).chain(live);
            let choices = choices.map(|app| app.job.to_string()).collect::<Vec<_>>().join(", ");
            Err(Failure::new(Code::Usage, format!("`{word}` is several jobs; name one: {choices}")))
        }
        (None, _) => named
            .into_iter()
            .max_by_key(|app| (app.submitted_unix_ms, &app.app))
            .ok_or_else(|| Failure::new(Code::NotFound, not_found(apps, word))),
    }
}

fn not_found(apps: &[AppReport], word: &str) -> String {
    let live: Vec<String> =
        apps.iter().filter(|app| !app.state.is_over()).map(|app| app.job.to_string()).collect();
    if live.is_empty() {
        return format!(
            "there is no job `{word}`, and no job is running; `samza list` shows those that are over"
        );
    }
    format!("there is no job `{word}`; running: {}", live.join(", "))
}

#[cfg(test)]
mod tests {
    use types::{AppState, JobId};

    use super::*;

    fn app(id: &str, name: &str, job_id: &str, state: AppState, submitted_unix_ms: u64) -> AppReport {
        AppReport {
            app: id.into(),
            job: JobId { name: name.into(), id: job_id.into() },
            state,
            diagnostics: String::new(),
            queue: "default".into(),
            submitted_unix_ms,
            ended_unix_ms: None,
            attempt: 1,
            master_address: None,
            containers_wanted: 1,
            containers_running: 1,
            containers: Vec::new(),
            waiting: Vec::new(),
            status: None,
            status_age_ms: None,
        }
    }

    fn apps() -> Vec<AppReport> {
        vec![
            app("application_1_0001", "flights", "1", AppState::Failed, 1),
            app("application_1_0002", "flights", "1", AppState::Running, 2),
            app("application_1_0003", "flights", "1", AppState::Killed, 3),
            app("application_1_0004", "clicks", "1", AppState::Running, 4),
            app("application_1_0005", "clicks", "2", AppState::Running, 5),
            app("application_1_0006", "old", "1", AppState::Finished, 6),
            app("application_1_0007", "old", "1", AppState::Failed, 7),
        ]
    }

    fn found(word: &str) -> Result<String, Failure> {
        application(&apps(), word).map(|app| app.app.0.clone())
    }

    #[test]
    fn a_job_is_found_by_id_by_name_and_by_both() {
        assert_eq!(found("application_1_0001").as_deref(), Ok("application_1_0001"));
        assert_eq!(found("flights").as_deref(), Ok("application_1_0002"), "the live one");
        assert_eq!(found("clicks-2").as_deref(), Ok("application_1_0005"));
        assert_eq!(found("old").as_deref(), Ok("application_1_0007"), "the newest");
    }

    #[test]
    fn a_name_of_two_live_jobs_is_refused_with_both() {
        let failure = found("clicks").expect_err("ambiguous");
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (Code::Usage, "`clicks` is several jobs; name one: clicks-1, clicks-2")
        );
    }

    #[test]
    fn a_name_of_no_job_is_told_with_those_that_run() {
        let failure = found("flight").expect_err("unknown");
        assert_eq!(failure.code, Code::NotFound);
        assert_eq!(failure.message, "there is no job `flight`; running: flights-1, clicks-1, clicks-2");
    }
}

//! Finding applications and containers in a view by the names that users type.

use rm_core::View;
use types::{AppContainer, AppReport, ContainerId};

/// The application that `name` means: an id; else the live, else the newest one of job `<name>-<id>`; else that of
/// the job's name alone.
pub(crate) fn find_app<'a>(view: &'a View, name: &str) -> Option<&'a AppReport> {
    let newest = |matches: &dyn Fn(&AppReport) -> bool| {
        let mut found = view.apps.iter().filter(|app| matches(app));
        let first = found.next()?;
        // Newest first: a live one, if there is one, is among the newest.
        Some(std::iter::once(first).chain(found).find(|app| !app.state.is_over()).unwrap_or(first))
    };
    view.apps
        .iter()
        .find(|app| app.app.0 == name)
        .or_else(|| newest(&|app| app.job.to_string() == name))
        .or_else(|| newest(&|app| app.job.name == name))
}

/// The address of the log service of the node that has or had `container`.
pub(crate) fn log_address(view: &View, container: &AppContainer) -> Option<String> {
    let node = view.cluster.nodes.iter().find(|node| node.node == container.node)?;
    (!node.address.is_empty()).then(|| node.address.clone())
}

/// A container by its id, in any application.
pub(crate) fn find_container(view: &View, id: ContainerId) -> Option<&AppContainer> {
    view.apps.iter().flat_map(|app| &app.containers).find(|it| it.container == id)
}

#[cfg(test)]
mod tests {
    use types::{AppState, JobId};

    use super::*;

    fn app(id: &str, name: &str, state: AppState) -> AppReport {
        AppReport {
            app: id.into(),
            job: JobId { name: name.into(), id: "1".into() },
            state,
            diagnostics: String::new(),
            queue: String::new(),
            submitted_unix_ms: 0,
            ended_unix_ms: None,
            attempt: 1,
            master_address: None,
            containers_wanted: 1,
            containers_running: 0,
            containers: vec![],
            waiting: vec![],
            status: None,
            status_age_ms: None,
        }
    }

    #[test]
    fn a_live_application_is_meant_before_newer_ones_that_are_over() {
        let apps = vec![
            app("app3", "flights", AppState::Failed),
            app("app2", "flights", AppState::Running),
            app("app1", "flights", AppState::Finished),
        ];
        let view = View { apps, ..View::default() };
        let id = |name| find_app(&view, name).map(|app| app.app.0.as_str());
        assert_eq!(id("flights-1"), Some("app2"));
        assert_eq!(id("flights"), Some("app2"));
        assert_eq!(id("app1"), Some("app1"));
        assert_eq!(id("flight"), None);
    }
}

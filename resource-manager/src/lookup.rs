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

/// Whose logs a user means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This container's.
    Container(ContainerId),
    /// The newest container's of this slot.
    Slot(u32),
    /// The newest container's of each slot.
    EverySlot,
    /// The newest application master's.
    Master,
}

/// The containers whose logs a user means. `previous`: the last one that ended before the newest.
pub(crate) fn logs_of(app: &AppReport, whose: Whose, previous: bool) -> Vec<&AppContainer> {
    let mut slots: Vec<Option<u32>> = app.containers.iter().map(|it| it.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    match whose {
        Whose::Container(id) => return app.containers.iter().filter(|it| it.container == id).collect(),
        Whose::Slot(slot) => slots.retain(|it| *it == Some(slot)),
        Whose::EverySlot => slots.retain(Option::is_some),
        Whose::Master => slots.retain(Option::is_none),
    }
    let nth = usize::from(previous);
    slots.iter().filter_map(|slot| app.containers.iter().filter(|it| it.slot == *slot).nth(nth)).collect()
}

#[cfg(test)]
mod tests {

    use types::{AppState, ContainerState, Epoch, Incarnation, JobId, NodeId, Resource};

    use super::*;

    fn container(seq: u64, slot: Option<u32>) -> AppContainer {
        AppContainer {
            container: ContainerId(Incarnation { epoch: Epoch(1), seq }),
            role: String::new(),
            slot,
            node: NodeId::from("a"),
            state: ContainerState::Running,
            resource: Resource::default(),
            pid: None,
            started_unix_ms: None,
            ended_unix_ms: None,
            memory_bytes: None,
            cpu_millis: None,
        }
    }

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
            containers_wanted: 1,
            containers_running: 0,
            containers: vec![
                container(5, Some(0)),
                container(4, Some(1)),
                container(3, Some(0)),
                container(1, None),
            ],
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

    #[test]
    fn logs_are_of_the_newest_container_of_each_slot_or_the_one_before_it() {
        let app = app("app", "flights", AppState::Running);
        let seqs = |found: Vec<&AppContainer>| found.iter().map(|it| it.container.0.seq).collect::<Vec<_>>();
        assert_eq!(seqs(logs_of(&app, Whose::EverySlot, false)), [5, 4]);
        assert_eq!(seqs(logs_of(&app, Whose::Master, false)), [1]);
        assert_eq!(seqs(logs_of(&app, Whose::Slot(0), true)), [3]);
        assert_eq!(seqs(logs_of(&app, Whose::Slot(1), true)), [] as [u64; 0]);
    }
}

//! The last quarter of an hour of each slot, for the web UI's curves: rate, lag, CPU and memory, one point each ten
//! seconds. It is kept in memory only and begins anew with the resource manager.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::Shutdown;
use rm_core::View;
use serde::Serialize;
use tokio::sync::watch;
use types::{AppId, AppReport, ContainerId, ContainerState};

/// Between two points.
const EVERY: Duration = Duration::from_secs(10);
/// So many are kept: a quarter of an hour.
const KEPT: usize = 90;

/// What one slot did at one moment; none of what was not known then.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub(crate) struct Point {
    /// Unix seconds.
    at: u64,
    /// Messages a second since the point before.
    rate: Option<f32>,
    /// Messages not yet read.
    lag: Option<u64>,
    /// Thousandths of a core.
    cpu_millis: Option<u32>,
    /// In use.
    memory_bytes: Option<u64>,
}

/// One slot's points, and what the next one needs to know.
#[derive(Debug, Default)]
struct Curve {
    points: VecDeque<Point>,
    /// The container, what it had processed, and when, unix ms.
    before: Option<(ContainerId, u64, u64)>,
}

/// The curves of every live application.
#[derive(Debug, Clone, Default)]
pub(crate) struct History(Arc<Mutex<BTreeMap<AppId, BTreeMap<u32, Curve>>>>);

impl History {
    /// Takes a point each ten seconds until shutdown.
    pub(crate) async fn keep(self, view: watch::Receiver<Arc<View>>, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                _ = ticks.tick() => {}
            }
            let now = view.borrow().clone();
            self.take(&now, daemon::unix_ms());
        }
    }

    /// Takes a point of every slot; applications that are over are forgotten.
    fn take(&self, view: &View, unix_ms: u64) {
        let mut curves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        curves.retain(|id, _| view.apps.iter().any(|app| app.app == *id && !app.state.is_over()));
        for app in view.apps.iter().filter(|app| !app.state.is_over()) {
            let slots = curves.entry(app.app.clone()).or_default();
            for slot in 0..app.containers_wanted {
                slots.entry(slot).or_default().take(app, slot, unix_ms);
            }
        }
    }

    /// By slot, the oldest point first.
    pub(crate) fn of(&self, app: &AppId) -> BTreeMap<u32, Vec<Point>> {
        let curves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |slots: &BTreeMap<u32, Curve>| {
            slots.iter().map(|(slot, curve)| (*slot, curve.points.iter().copied().collect())).collect()
        };
        curves.get(app).map(of).unwrap_or_default()
    }
}

impl Curve {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // a curve needs few digits
    fn take(&mut self, app: &AppReport, slot: u32, unix_ms: u64) {
        let running =
            |it: &&types::AppContainer| it.slot == Some(slot) && it.state == ContainerState::Running;
        let run = app.containers.iter().find(running);
        let said = app.status.iter().flat_map(|status| &status.slots).find(|of| of.slot == slot);
        // What the master last said of a container that is not there any more is no news.
        let status = said.filter(|said| run.is_some_and(|run| said.container == Some(run.container)));
        let now = status.and_then(|said| Some((said.container?, said.status.processed, unix_ms)));
        let rate = now.zip(self.before).and_then(|((container, processed, at), (of, before, since))| {
            let ms = at.checked_sub(since).filter(|ms| *ms > 0 && of == container)?;
            Some((processed.saturating_sub(before) as f64 * 1000.0 / ms as f64) as f32)
        });
        self.before = now;
        let lag = status.and_then(|said| said.status.tasks.iter().map(|task| task.lag).sum());
        if self.points.len() == KEPT {
            self.points.pop_front();
        }
        self.points.push_back(Point {
            at: unix_ms / 1000,
            rate,
            lag,
            cpu_millis: run.and_then(|run| run.cpu_millis),
            memory_bytes: run.and_then(|run| run.memory_bytes),
        });
    }
}

#[cfg(test)]
mod tests {
    use types::{
        AppContainer, AppState, ContainerStatus, JobId, JobStatus, Resource, SlotStatus, TaskStatus,
    };

    use super::*;

    fn view(container: u64, processed: u64, state: AppState) -> View {
        let id = ContainerId(types::Incarnation { epoch: types::Epoch(1), seq: container });
        let task = TaskStatus { lag: Some(3), ..TaskStatus::default() };
        let status =
            ContainerStatus { processed, tasks: vec![task.clone(), task], ..ContainerStatus::default() };
        let slot = SlotStatus { slot: 0, container: Some(id), status, ..SlotStatus::default() };
        let app = AppReport {
            app: "app".into(),
            job: JobId { name: "j".into(), id: "1".into() },
            state,
            diagnostics: String::new(),
            queue: String::new(),
            submitted_unix_ms: 0,
            ended_unix_ms: None,
            attempt: 1,
            master_address: None,
            containers_wanted: 1,
            containers_running: 1,
            containers: vec![AppContainer {
                container: id,
                role: "slot 0".into(),
                slot: Some(0),
                node: "n".into(),
                state: ContainerState::Running,
                resource: Resource::default(),
                pid: None,
                started_unix_ms: None,
                ended_unix_ms: None,
                memory_bytes: Some(5),
                cpu_millis: Some(7),
                pressure: None,
            }],
            waiting: vec![],
            status: Some(JobStatus { slots: vec![slot], ..JobStatus::default() }),
            status_age_ms: None,
        };
        View { apps: vec![app], ..View::default() }
    }

    #[test]
    fn a_rate_is_of_one_container_and_a_curve_goes_on_over_a_restart() {
        let history = History::default();
        history.take(&view(1, 100, AppState::Running), 10_000);
        history.take(&view(1, 600, AppState::Running), 20_000);
        history.take(&view(2, 50, AppState::Running), 30_000);
        history.take(&view(2, 60, AppState::Running), 40_000);
        let points = history.of(&"app".into()).remove(&0).expect("one slot");
        let rates: Vec<Option<f32>> = points.iter().map(|point| point.rate).collect();
        assert_eq!(rates, [None, Some(50.0), None, Some(1.0)]);
        assert_eq!(
            points[3],
            Point { at: 40, rate: Some(1.0), lag: Some(6), cpu_millis: Some(7), memory_bytes: Some(5) }
        );
    }

    #[test]
    fn a_quarter_of_an_hour_is_kept_and_nothing_of_what_is_over() {
        let history = History::default();
        for at in 0..200_u64 {
            history.take(&view(1, at, AppState::Running), at * 10_000);
        }
        let points = history.of(&"app".into()).remove(&0).expect("one slot");
        assert_eq!((points.len(), points[0].at, points[KEPT - 1].at), (KEPT, 1_100, 1_990));
        history.take(&view(1, 0, AppState::Finished), 3_000_000);
        assert!(history.of(&"app".into()).is_empty());
    }
}

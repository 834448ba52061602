//! What users may see, as plain data.

use types::{
    AppContainer, AppReport, AppState, ClusterReport, ContainerState, NodeReport, Timestamp, WaitingAsk,
};

use crate::app::{App, Attempt};
use crate::container::Container;
use crate::node::Node;
use crate::{RmCore, View};

impl RmCore {
    /// Everything users may see. Ages count to `now`.
    #[must_use]
    pub fn view(&self, now: Timestamp) -> View {
        let apps = self.orders.values().rev().filter_map(|id| self.apps.get(id));
        View {
            cluster: ClusterReport {
                epoch: self.epoch.0,
                version: self.config.version.clone(),
                started_unix_ms: self.started_unix_ms,
                nodes: self.nodes.iter().map(|(_, node)| self.node_report(now, node)).collect(),
            },
            apps: apps.map(|app| self.app_report(now, app)).collect(),
            recovering: self.recovering(),
        }
    }

    fn node_report(&self, now: Timestamp, node: &Node) -> NodeReport {
        NodeReport {
            node: node.id.clone(),
            state: node.state_name(),
            unhealthy: node.unhealthy.clone(),
            hosts: node.hosts.clone(),
            rack: node.rack.clone(),
            labels: node.labels.clone(),
            total: node.total,
            used: node.used,
            lease_age_ms: now.since(node.heard),
            containers: node.holding.len() as u32,
            address: node.address.clone(),
        }
    }

    fn app_report(&self, now: Timestamp, app: &App) -> AppReport {
        let containers: Vec<&Container> =
            app.containers.iter().rev().filter_map(|id| self.containers.get(id)).collect();
        let runs = |it: &&&Container| it.slot().is_some() && it.state == ContainerState::Running;
        let mut waiting: Vec<WaitingAsk> = Vec::new();
        for (request, open) in &app.asks {
            let waited_ms = now.since(open.since);
            waiting.push(WaitingAsk { slot: request.slot, waited_ms, reasons: open.told.clone() });
        }
        // What AM's report says of its slots is its own; that a preferred host is no node, only we know.
        let mut status = app.status.as_ref().map(|(status, _)| status.as_ref().clone());
        for slot in status.iter_mut().flat_map(|status| &mut status.slots) {
            if let Some(unmatched) = app.unmatched.get(&slot.slot).filter(|_| slot.unmatched.is_empty()) {
                slot.unmatched.clone_from(unmatched);
            }
        }
        AppReport {
            app: app.id.clone(),
            job: app.job().clone(),
            state: app.state,
            diagnostics: diagnostics(app),
            queue: app.spec.queue.clone(),
            submitted_unix_ms: app.submitted_unix_ms,
            ended_unix_ms: app.ended_unix_ms,
            attempt: app.attempt_no,
            master_address: app.address.clone().filter(|_| !app.state.is_over()),
            containers_wanted: app.spec.containers.count,
            containers_running: containers.iter().filter(runs).count() as u32,
            containers: containers.into_iter().map(|it| self.app_container(it)).collect(),
            waiting,
            status,
            status_age_ms: app.status.as_ref().map(|(_, at)| now.since(*at)),
        }
    }

    fn app_container(&self, it: &Container) -> AppContainer {
        let usage = it.usage.filter(|_| it.is_live());
        AppContainer {
            container: it.id,
            role: it.slot().map_or_else(|| "app-master".to_owned(), |slot| format!("slot {slot}")),
            slot: it.slot(),
            node: self.nodes.get(it.node).id.clone(),
            state: it.state.clone(),
            resource: it.resource,
            pid: it.pid,
            started_unix_ms: it.started_unix_ms,
            ended_unix_ms: it.ended_unix_ms,
            memory_bytes: usage.map(|usage| usage.memory_bytes),
            cpu_millis: usage.map(|usage| usage.cpu_millis),
            pressure: usage.and_then(|usage| usage.pressure),
        }
    }
}

fn diagnostics(app: &App) -> String {
    let waits = app.attempt == Attempt::Scheduling && !app.master_waits.is_empty();
    if !waits || !matches!(app.state, AppState::Accepted | AppState::Running | AppState::Stopping) {
        return app.diagnostics.clone();
    }
    let waits = format!("its application master waits: {}", app.master_waits.join("; "));
    if app.diagnostics.is_empty() { waits } else { format!("{}; {waits}", app.diagnostics) }
}

//! Reports as tables for people.

use std::collections::BTreeSet;
use std::fmt::Write;

use types::{
    AppContainer, AppReport, ClusterReport, ContainerPhase, ContainerState, NodeReport, Pressure, SlotStatus,
};

use crate::output::{Rows, bytes, cores, duration};

/// `samza list`.
#[must_use]
pub fn applications(apps: &[AppReport], now_unix_ms: u64, headers: bool) -> String {
    let columns = ["APPLICATION", "JOB", "STATE", ">RUNNING", ">LAG", ">ATTEMPT", ">SUBMITTED", "NOTE"];
    let mut rows = Rows::new(&columns, headers);
    for app in apps {
        rows.add(vec![
            app.app.to_string(),
            app.job.to_string(),
            word(&app.state),
            format!("{}/{}", app.containers_running, app.containers_wanted),
            slots(app)
                .iter()
                .filter_map(Slot::lag)
                .reduce(|a, b| a + b)
                .map_or_else(String::new, |lag| lag.to_string()),
            app.attempt.to_string(),
            ago(now_unix_ms, app.submitted_unix_ms),
            note(app),
        ]);
    }
    rows.text()
}

/// What to know about an application in one line: why it ended or waits.
#[must_use]
pub fn note(app: &AppReport) -> String {
    if !app.diagnostics.is_empty() {
        return app.diagnostics.clone();
    }
    let waits = slots(app).into_iter().find_map(|slot| {
        let why = slot.waiting();
        (!why.is_empty()).then(|| format!("slot {} waits: {}", slot.slot, why.join("; ")))
    });
    let warns = app.status.iter().filter(|_| !app.state.is_over()).find_map(|status| status.warnings.first());
    waits.or_else(|| warns.cloned()).unwrap_or_default()
}

/// `samza nodes`.
#[must_use]
pub fn nodes(nodes: &[NodeReport], headers: bool) -> String {
    let columns = [
        "NODE",
        "STATE",
        "RACK",
        ">MEMORY-FREE",
        ">MEMORY",
        ">CPU-FREE",
        ">CPU",
        ">CONTAINERS",
        ">LAST-BEAT",
        "HOSTS",
        "NOTE",
    ];
    let mut rows = Rows::new(&columns, headers);
    for node in nodes {
        let free = node.total.minus(&node.used);
        rows.add(vec![
            node.node.to_string(),
            word(&node.state),
            node.rack.clone(),
            bytes(free.memory_bytes),
            bytes(node.total.memory_bytes),
            cores(free.cpu_millis),
            cores(node.total.cpu_millis),
            node.containers.to_string(),
            duration(node.lease_age_ms),
            node.hosts.join(","),
            node.unhealthy.clone().unwrap_or_default(),
        ]);
    }
    rows.text()
}

/// The line under `samza nodes`' table, for stderr.
#[must_use]
pub fn cluster_line(cluster: &ClusterReport) -> String {
    format!("resource manager {}, epoch {}, {} nodes", cluster.version, cluster.epoch, cluster.nodes.len())
}

/// `samza status`.
#[must_use]
pub fn status(app: &AppReport, now_unix_ms: u64, headers: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            writeln!(text, "{name:<12}{value}").expect("writing to a string");
        }
    };
    line("application", &app.app.0);
    line("job", &app.job.to_string());
    line("state", &word(&app.state));
    line("note", &app.diagnostics);
    line("queue", &app.queue);
    line("attempt", &app.attempt.to_string());
    line("submitted", &format!("{} ago", ago(now_unix_ms, app.submitted_unix_ms)));
    line("ended", &app.ended_unix_ms.map_or_else(String::new, |at| format!("{} ago", ago(now_unix_ms, at))));
    line("containers", &format!("{} of {} running", app.containers_running, app.containers_wanted));
    if let (Some(status), Some(age)) = (&app.status, app.status_age_ms) {
        line("report", &format!("{} ({} old)", status.message, duration(age)));
        let copies =
            status.topics.iter().filter(|topic| topic.replication > 0).map(|topic| topic.replication);
        if let Some(fewest) = copies.min() {
            let of = if fewest == 1 { "copy" } else { "copies" };
            line(
                "topics",
                &format!("{} of the job's own, {fewest} {of} of each at least", status.topics.len()),
            );
        }
        if !status.at_least_once.is_empty() {
            line(
                "delivery",
                &format!("exactly-once; outputs to {} are at-least-once", status.at_least_once.join(", ")),
            );
        }
        status.topics.iter().flat_map(|topic| &topic.notes).for_each(|note| line("warning", note));
    }
    for warning in app.status.iter().filter(|_| !app.state.is_over()).flat_map(|status| &status.warnings) {
        line("warning", warning);
    }
    let table = slot_table(app, now_unix_ms, headers);
    if !table.is_empty() {
        text.push('\n');
        text.push_str(&table);
    }
    for (slot, wait) in app.status.iter().flat_map(|status| status.open_transactions()) {
        writeln!(text, "slot {slot}: {wait}").expect("writing to a string");
    }
    for slot in app.status.iter().flat_map(|status| &status.slots) {
        for unmatched in &slot.unmatched {
            writeln!(text, "slot {}: preference without a match: {unmatched}", slot.slot)
                .expect("writing to a string");
        }
    }
    text
}

fn slot_table(app: &AppReport, now_unix_ms: u64, headers: bool) -> String {
    let columns = [
        ">SLOT",
        "STATE",
        "NODE",
        "PREFERRED",
        "TASKS",
        ">LAG",
        ">BEHIND",
        ">MEMORY",
        ">CPU",
        "WAITED",
        ">STARTED",
        ">RESTARTS",
        "LAST-EXIT",
        "WAITS",
        "CONTAINER",
    ];
    let mut rows = Rows::new(&columns, headers);
    for slot in slots(app) {
        let run = slot.live();
        let said = slot.said.as_ref();
        let of = |used: Option<String>, limit: String| {
            used.map_or_else(String::new, |used| format!("{used}/{limit}"))
        };
        rows.add(vec![
            slot.slot.to_string(),
            slot.state(),
            run.map_or_else(String::new, |run| run.node.to_string()),
            said.and_then(|said| said.on_preferred)
                .filter(|_| run.is_some())
                .map_or_else(String::new, |on| if on { "yes".into() } else { "no".into() }),
            said.map_or_else(String::new, tasks),
            slot.lag().map_or_else(String::new, |lag| lag.to_string()),
            slot.lag_ms().map_or_else(String::new, duration),
            run.map_or_else(String::new, |run| {
                of(run.memory_bytes.map(bytes), bytes(run.resource.memory_bytes)).replace(' ', "")
            }),
            run.map_or_else(String::new, |run| of(run.cpu_millis.map(cores), cores(run.resource.cpu_millis))),
            run.and_then(|run| run.pressure).map_or_else(String::new, waited),
            run.and_then(|run| run.started_unix_ms).map_or_else(String::new, |at| ago(now_unix_ms, at)),
            said.map_or_else(String::new, |said| said.restarts.to_string()),
            said.and_then(|said| said.last_exit.as_ref()).map_or_else(String::new, ToString::to_string),
            slot.waiting().join("; "),
            run.map_or_else(String::new, |run| run.container.to_string()),
        ]);
    }
    if rows.is_empty() { String::new() } else { rows.text() }
}

/// What a container waited for, without what it did not.
fn waited(pressure: Pressure) -> String {
    let parts = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    let some: Vec<String> = parts
        .iter()
        .filter(|(_, percent)| *percent > 0)
        .map(|(what, percent)| format!("{what}:{percent}%"))
        .collect();
    if some.is_empty() { "0%".to_owned() } else { some.join(",") }
}

fn tasks(said: &SlotStatus) -> String {
    let numbers: Option<Vec<&str>> =
        said.tasks.iter().map(|task| task.0.strip_prefix("Partition ")).collect();
    match numbers {
        Some(numbers) if !numbers.is_empty() => format!("Partition {}", numbers.join(",")),
        _ => said.tasks.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// One slot as both the master and the resource manager see it.
pub struct Slot<'a> {
    /// Its number.
    pub slot: u32,
    said: Option<SlotStatus>,
    run: Option<&'a AppContainer>,
    asked: &'a [String],
}

/// The slots of an application, in their order.
#[must_use]
pub fn slots(app: &AppReport) -> Vec<Slot<'_>> {
    let said = app.status.as_ref().map_or(&[][..], |status| &status.slots);
    let numbers: BTreeSet<u32> = said
        .iter()
        .map(|slot| slot.slot)
        .chain(app.containers.iter().filter_map(|run| run.slot))
        .chain(app.waiting.iter().map(|ask| ask.slot))
        .collect();
    let slot = |number: u32| {
        let said = said.iter().find(|said| said.slot == number).cloned();
        let mut runs = app.containers.iter().filter(|run| run.slot == Some(number));
        let current = said.as_ref().and_then(|said| said.container);
        let run = runs
            .clone()
            .find(|run| current == Some(run.container) && !run.state.is_exited())
            .or_else(|| runs.clone().find(|run| !run.state.is_exited()))
            .or_else(|| runs.next());
        let asked = app.waiting.iter().find(|ask| ask.slot == number).map_or(&[][..], |ask| &ask.reasons);
        Slot { slot: number, said, run, asked }
    };
    numbers.into_iter().map(slot).collect()
}

impl Slot<'_> {
    fn live(&self) -> Option<&AppContainer> {
        self.run.filter(|run| !run.state.is_exited())
    }

    /// The newest container of the slot, dead or alive.
    #[must_use]
    pub fn newest(&self) -> Option<&AppContainer> {
        self.run
    }

    /// What the master says of the container that runs now.
    fn current(&self) -> Option<&SlotStatus> {
        self.said.as_ref().filter(|said| self.live().is_some_and(|run| said.container == Some(run.container)))
    }

    /// Messages between the tasks' positions and their inputs' ends, as far as known.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        self.current()?.status.tasks.iter().filter_map(|task| task.lag).reduce(|a, b| a.saturating_add(b))
    }

    /// How old the last message is that was processed of the input furthest behind in time, as far as known, ms.
    #[must_use]
    pub fn lag_ms(&self) -> Option<u64> {
        self.current()?.status.tasks.iter().filter_map(|task| task.lag_ms).max()
    }

    /// Why it has no container.
    #[must_use]
    pub fn waiting(&self) -> Vec<&str> {
        let said = self.said.iter().filter(|_| self.live().is_none()).flat_map(|said| &said.waiting);
        let mut reasons: Vec<&str> = Vec::new();
        for reason in self.asked.iter().chain(said) {
            if !reasons.contains(&reason.as_str()) {
                reasons.push(reason);
            }
        }
        reasons
    }

    /// One word, and how far a restore is, or which call of a task has not returned for a while.
    #[must_use]
    pub fn state(&self) -> String {
        let Some(run) = self.live() else { return "waiting".to_owned() };
        if run.state != ContainerState::Running {
            return word(&run.state);
        }
        let Some(said) = self.current() else { return "running".to_owned() };
        if said.status.phase != ContainerPhase::Restoring {
            let phase = word(&said.status.phase);
            let calls = said.status.tasks.iter().filter_map(|task| task.call.as_ref());
            return match calls.max_by_key(|call| call.age_ms).filter(|call| call.age_ms >= LONG_CALL_MS) {
                Some(call) => format!("{phase}, in {} for {} s", call.what, call.age_ms / 1_000),
                None => phase,
            };
        }
        let restores = || said.status.tasks.iter().filter_map(|task| task.restore.as_ref());
        let (done, total) = restores().fold((0, 0), |(done, total), r| (done + r.done, total + r.total));
        let percent = (done * 100u64).checked_div(total).unwrap_or(100);
        // Tasks restore side by side, so the longest says when all are done.
        match restores().filter_map(|restore| restore.eta_ms).max() {
            Some(eta_ms) => format!("restoring {percent} %, {} s left", eta_ms.div_ceil(1000)),
            None => format!("restoring {percent} %"),
        }
    }
}

/// A call that takes so long is worth a word.
const LONG_CALL_MS: u64 = 10_000;

/// The word that JSON has for a state.
#[must_use]
pub fn word(state: &impl serde::Serialize) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(value) => value.get("state").and_then(|state| state.as_str()).unwrap_or_default().to_owned(),
        Err(_) => String::new(),
    }
}

fn ago(now_unix_ms: u64, then_unix_ms: u64) -> String {
    duration(now_unix_ms.saturating_sub(then_unix_ms))
}

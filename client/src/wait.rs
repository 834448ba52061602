//! Waiting for an application to get somewhere, telling every step.

use std::time::{Duration, Instant};

use types::{AppId, AppReport, AppState};

use crate::failure::{Code, Failure};
use crate::output::say;
use crate::resource_manager::ResourceManager;
use crate::tables::{slots, word};

/// How long a resource manager may be away while we wait.
const AWAY: Duration = Duration::from_secs(120);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// All its containers run and process.
    Running,
    /// It is over.
    Over,
}

/// Waits, and says every change to stderr. Returns the report that ended the wait.
///
/// # Errors
/// `Failure` if the application ended in a way that is not the goal, `Unreachable` if the resource manager stays
/// away or `limit` passes first.
pub async fn wait(
    rm: &mut ResourceManager,
    app: &AppId,
    goal: Goal,
    limit: Option<Duration>,
) -> Result<AppReport, Failure> {
    let Some(limit) = limit else { return follow(rm, app, goal).await };
    match tokio::time::timeout(limit, follow(rm, app, goal)).await {
        Ok(result) => result,
        Err(_) => {
            let what = if goal == Goal::Running { "running" } else { "over" };
            Err(Failure::new(
                Code::Unreachable,
                format!("{app} is not {what} after {} s; it goes on", limit.as_secs()),
            ))
        }
    }
}

async fn follow(rm: &mut ResourceManager, app: &AppId, goal: Goal) -> Result<AppReport, Failure> {
    let mut said = Vec::new();
    let mut heard = Instant::now();
    loop {
        let failure = match watch(rm, app, goal, &mut said, &mut heard).await {
            Ok(report) => return verdict(report, goal),
            Err(failure) if failure.code == Code::Unreachable && heard.elapsed() < AWAY => failure,
            Err(failure) => return Err(failure),
        };
        if said.last().is_none_or(|last: &String| !last.starts_with("connection lost")) {
            said.push("connection lost".to_owned());
            say(&format!("{failure}; trying again"));
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let _ = rm.reconnect().await;
    }
}

async fn watch(
    rm: &mut ResourceManager,
    app: &AppId,
    goal: Goal,
    said: &mut Vec<String>,
    heard: &mut Instant,
) -> Result<AppReport, Failure> {
    let mut reports = rm.watch(app).await?;
    while let Some(report) = reports.next().await? {
        *heard = Instant::now();
        let now = lines(&report);
        for line in &now {
            if !said.contains(line) {
                say(line);
            }
        }
        *said = now;
        if reached(&report, goal) {
            return Ok(report);
        }
    }
    Err(Failure::new(Code::Unreachable, "the resource manager ended the watch"))
}

/// What there is to say about a report: its state, and why slots wait.
fn lines(report: &AppReport) -> Vec<String> {
    let state = word(&report.state);
    let mut lines = vec![match report.state {
        AppState::Running => {
            format!(
                "{}: {state}, {} of {} containers",
                report.job, report.containers_running, report.containers_wanted
            )
        }
        _ if report.diagnostics.is_empty() => format!("{}: {state}", report.job),
        _ => format!("{}: {state}: {}", report.job, report.diagnostics),
    }];
    for slot in slots(report) {
        let why = slot.waiting();
        if !why.is_empty() {
            lines.push(format!("  slot {} waits: {}", slot.slot, why.join("; ")));
        } else if slot.state() != "running" && report.state == AppState::Running {
            let state = slot.state();
            lines.push(format!("  slot {}: {}", slot.slot, state.split(' ').next().unwrap_or(&state)));
        }
    }
    lines
}

fn reached(report: &AppReport, goal: Goal) -> bool {
    if report.state.is_over() {
        return true;
    }
    let slots = slots(report);
    let wanted = usize::try_from(report.containers_wanted).unwrap_or(usize::MAX);
    goal == Goal::Running
        && report.state == AppState::Running
        && report.containers_running >= report.containers_wanted
        && slots.iter().filter(|slot| slot.state() == "running").count() >= wanted
}

fn verdict(report: AppReport, goal: Goal) -> Result<AppReport, Failure> {
    let well = match (report.state, goal) {
        (AppState::Failed, _) => false,
        (AppState::Killed, Goal::Running) => false,
        (AppState::Killed, Goal::Over) | (AppState::Finished, _) => true,
        (AppState::Accepted | AppState::Running | AppState::Stopping, _) => true,
    };
    if well {
        return Ok(report);
    }
    let why = if report.diagnostics.is_empty() { "no reason given" } else { &report.diagnostics };
    Err(Failure::other(format!("{} ({}) {}: {why}", report.job, report.app, word(&report.state))))
}

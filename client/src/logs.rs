//! `samza logs`: which containers are meant, and their lines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use types::{AppContainer, AppReport, ContainerId};

use crate::failure::{Code, Failure};
use crate::output::{print, print_bytes, say};
use crate::resource_manager::{LogQuery, ResourceManager};

/// Which containers' logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// One, by its id.
    Container(ContainerId),
    /// The newest of a slot.
    Slot(u32),
    /// The newest application master.
    AppMaster,
    /// The newest of every slot.
    Everyone,
}

/// What of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct What {
    /// stderr instead of stdout.
    pub stderr: bool,
    /// Go on as lines come.
    pub follow: bool,
    /// Of the run before.
    pub previous: bool,
    /// Only that many last lines.
    pub tail: Option<u64>,
}

/// Before another try.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a followed container's node, or the resource manager, may be away.
const AWAY: Duration = Duration::from_secs(60);

/// Prints the logs to stdout; those of several slots each line under its slot's number. Following goes on with the
/// containers that take the place of those that end, wherever they run, until the application is over.
///
/// # Errors
/// `NotFound` if there is no such container.
pub async fn show(
    rm: &mut ResourceManager,
    app: &AppReport,
    whose: Whose,
    what: What,
) -> Result<(), Failure> {
    let chosen = choose(app, whose, what.previous)?;
    let single = matches!(whose, Whose::Container(_)) || what.previous;
    if what.follow && !single {
        return follow(rm, app, whose, what).await;
    }
    for run in &chosen {
        let printed =
            print_log(rm.clone(), run.container, (chosen.len() > 1).then(|| run.role.clone()), what).await;
        match printed {
            Err(failure) if chosen.len() > 1 => say(&format!("warning: {failure}")),
            other => other?,
        }
    }
    Ok(())
}

/// Follows the newest container of each slot that is meant, and each that comes after it.
async fn follow(rm: &mut ResourceManager, app: &AppReport, whose: Whose, what: What) -> Result<(), Failure> {
    let named = whose == Whose::Everyone && app.containers_wanted > 1;
    // By slot, the newest that is followed.
    let mut newest: BTreeMap<Option<u32>, ContainerId> = BTreeMap::new();
    let mut readers = tokio::task::JoinSet::new();
    let mut heard = Instant::now();
    loop {
        let watched: Result<bool, Failure> = async {
            let mut reports = rm.watch(&app.app).await?;
            while let Some(report) = reports.next().await? {
                heard = Instant::now();
                for run in fresh(&report, whose, &newest) {
                    let first = newest.insert(run.slot, run.container).is_none();
                    if !first {
                        say(&format!("{}: {} on {}", run.role, run.container, run.node));
                    }
                    let what = What { tail: what.tail.filter(|_| first), ..what };
                    let name = named.then(|| run.role.clone());
                    readers.spawn(print_log(rm.clone(), run.container, name, what));
                }
                if report.state.is_over() {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        .await;
        match watched {
            Ok(true) => break,
            Ok(false) => {}
            Err(failure) if failure.code == Code::Unreachable && heard.elapsed() < AWAY => {}
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(PAUSE).await;
        // Whether it is back shows at the next watch.
        let _ = rm.reconnect().await;
    }
    while let Some(ended) = readers.join_next().await {
        if let Err(failure) = ended.map_err(|error| Failure::other(error.to_string()))? {
            say(&format!("warning: {failure}"));
        }
    }
    Ok(())
}

/// What has begun to run since, the oldest first; of a slot that is not followed yet only the newest.
fn fresh<'a>(
    report: &'a AppReport,
    whose: Whose,
    newest: &BTreeMap<Option<u32>, ContainerId>,
) -> Vec<&'a AppContainer> {
    let began = |run: &&AppContainer| is_meant(run, whose) && run.started_unix_ms.is_some();
    let mut runs: Vec<&AppContainer> = report.containers.iter().filter(began).collect();
    runs.sort_by_key(|run| run.container);
    let last: BTreeMap<Option<u32>, ContainerId> = runs.iter().map(|run| (run.slot, run.container)).collect();
    runs.retain(|run| match newest.get(&run.slot) {
        Some(followed) => run.container > *followed,
        None => last[&run.slot] == run.container,
    });
    runs
}

/// Prints one container's log, each line under a name if there is one. A node that is away for a while, with its
/// node manager or the network, is waited for and read on where it stopped.
async fn print_log(
    mut rm: ResourceManager,
    container: ContainerId,
    name: Option<String>,
    what: What,
) -> Result<(), Failure> {
    let (stderr, follow, tail) = (what.stderr, what.follow, what.tail);
    let mut query = LogQuery { container, stderr, follow, offset: None, tail };
    let mut lines = Lines::default();
    let mut heard = Instant::now();
    loop {
        let read: Result<(), Failure> = async {
            let mut log = rm.logs(query.clone()).await?;
            while let Some((data, next)) = log.next().await? {
                (query.offset, heard) = (Some(next), Instant::now());
                match &name {
                    Some(name) => print(&lines.take(name, &data))?,
                    None => print_bytes(&data)?,
                }
            }
            Ok(())
        }
        .await;
        match read {
            Err(failure) if what.follow && failure.code == Code::Unreachable && heard.elapsed() < AWAY => {
                tokio::time::sleep(PAUSE).await;
                let _ = rm.reconnect().await;
            }
            other => {
                print(&name.map(|name| lines.rest(&name)).unwrap_or_default())?;
                return other;
            }
        }
    }
}

fn is_meant(run: &AppContainer, whose: Whose) -> bool {
    match whose {
        Whose::Container(id) => run.container == id,
        Whose::Slot(slot) => run.slot == Some(slot),
        Whose::AppMaster => run.slot.is_none(),
        Whose::Everyone => run.slot.is_some(),
    }
}

/// The newest container of each slot that is meant, or the one before it; in the order of slots.
fn choose(app: &AppReport, whose: Whose, previous: bool) -> Result<Vec<&AppContainer>, Failure> {
    let mut runs: Vec<&AppContainer> = app.containers.iter().filter(|run| is_meant(run, whose)).collect();
    runs.sort_by_key(|run| (run.slot, std::cmp::Reverse(run.container)));
    let nth = if matches!(whose, Whose::Container(_)) { 0 } else { usize::from(previous) };
    let chosen: Vec<&AppContainer> =
        runs.chunk_by(|a, b| a.slot == b.slot).filter_map(|of_slot| of_slot.get(nth).copied()).collect();
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let of = match whose {
        Whose::Container(id) => id.to_string(),
        Whose::Slot(slot) => format!("of slot {slot}"),
        Whose::AppMaster => "of its application master".to_owned(),
        Whose::Everyone => "yet (--app-master shows its master's log)".to_owned(),
    };
    let run = if previous { "no earlier run" } else { "no container" };
    let told = format!("{} has {run} {of}; `samza status {}` shows what it has", app.job, app.job);
    Err(Failure::new(Code::NotFound, told))
}

/// Cuts what comes in pieces into whole lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn take(&mut self, name: &str, data: &[u8]) -> String {
        self.0.extend_from_slice(data);
        let Some(end) = self.0.iter().rposition(|byte| *byte == b'\n') else { return String::new() };
        let whole: Vec<u8> = self.0.drain(..=end).collect();
        let text = String::from_utf8_lossy(&whole);
        text.lines().map(|line| format!("{name} | {line}\n")).collect()
    }

    fn rest(&mut self, name: &str) -> String {
        if self.0.is_empty() { String::new() } else { self.take(name, b"\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_whole_lines_under_a_name() {
        let mut lines = Lines::default();
        assert_eq!(lines.take("slot 1", b"one\ntw"), "slot 1 | one\n");
        assert_eq!(lines.take("slot 1", b"o\n"), "slot 1 | two\n");
        assert_eq!(lines.take("slot 1", b"end"), "");
        assert_eq!(lines.rest("slot 1"), "slot 1 | end\n");
        assert_eq!(lines.rest("slot 1"), "");
    }
}

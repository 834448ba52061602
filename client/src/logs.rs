//! `samza logs`: which containers are meant, and their lines.

use types::{AppContainer, AppReport};

use crate::failure::{Code, Failure};
use crate::output::{print, print_bytes, say};
use crate::resource_manager::{LogQuery, ResourceManager};
use crate::tables::slots;

/// Which containers' logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// One, by its id.
    Container(String),
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

/// Prints the logs to stdout; those of several containers each line under its slot's number.
///
/// # Errors
/// `NotFound` if there is no such container.
pub async fn show(
    rm: &mut ResourceManager,
    app: &AppReport,
    whose: &Whose,
    what: What,
) -> Result<(), Failure> {
    let chosen = choose(app, whose, what.previous)?;
    if let [(_, container)] = &chosen[..] {
        let mut log = rm.logs(query(app, container, what)).await?;
        while let Some(data) = log.next().await? {
            print_bytes(&data)?;
        }
        return Ok(());
    }
    let mut readers = tokio::task::JoinSet::new();
    for (name, container) in chosen {
        let mut log = rm.logs(query(app, &container, what)).await?;
        let read = async move {
            let mut lines = Lines::default();
            while let Some(data) = log.next().await? {
                print(&lines.take(&name, &data))?;
            }
            print(&lines.rest(&name))
        };
        if what.follow {
            readers.spawn(read);
        } else if let Err(failure) = read.await {
            say(&format!("warning: {failure}"));
        }
    }
    while let Some(ended) = readers.join_next().await {
        ended.map_err(|error| Failure::other(error.to_string()))??;
    }
    Ok(())
}

fn query(app: &AppReport, container: &str, what: What) -> LogQuery {
    LogQuery {
        app: app.app.clone(),
        container: container.to_owned(),
        stderr: what.stderr,
        follow: what.follow,
        tail: what.tail,
    }
}

/// The names and ids of the containers that are meant.
fn choose(app: &AppReport, whose: &Whose, previous: bool) -> Result<Vec<(String, String)>, Failure> {
    let missing = |what: &str| {
        let run = if previous { "no earlier run" } else { "no container" };
        Err(Failure::new(
            Code::NotFound,
            format!("{} has {run} {what}; `samza status {}` shows what it has", app.job, app.job),
        ))
    };
    let newest = |of: &dyn Fn(&AppContainer) -> bool| {
        let mut runs: Vec<&AppContainer> = app.containers.iter().filter(|run| of(run)).collect();
        runs.sort_by_key(|run| std::cmp::Reverse(run.container));
        runs.get(usize::from(previous)).map(|run| (run.role.clone(), run.container.to_string()))
    };
    match whose {
        Whose::Container(id) => match app.containers.iter().find(|run| run.container.to_string() == *id) {
            Some(run) => Ok(vec![(run.role.clone(), id.clone())]),
            None => missing(id),
        },
        Whose::Slot(slot) => match newest(&|run| run.slot == Some(*slot)) {
            Some(found) => Ok(vec![found]),
            None => missing(&format!("of slot {slot}")),
        },
        Whose::AppMaster => match newest(&|run| run.slot.is_none()) {
            Some(found) => Ok(vec![found]),
            None => missing("of its application master"),
        },
        Whose::Everyone => {
            let numbers: Vec<u32> = slots(app).iter().map(|slot| slot.slot).collect();
            let all: Vec<_> =
                numbers.iter().filter_map(|slot| newest(&|run| run.slot == Some(*slot))).collect();
            if all.is_empty() { missing("yet (--app-master shows its master's log)") } else { Ok(all) }
        }
    }
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

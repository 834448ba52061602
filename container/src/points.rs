//! Test only: named points in a container's life, at which it can be told to stop or to kill itself.
//!
//! `SAMZA_TEST_PAUSE_AT=<point>` makes the process stop itself (SIGSTOP), once, when it comes to that point; it goes
//! on when it gets SIGCONT. `SAMZA_TEST_CRASH_AT=<point>:<n>` makes it kill itself (SIGKILL) when it comes there for
//! the n-th time. The points:
//! - of the start order, before the step of that name: `init`, `read`, `append`, `read-back`, `fence`, `tombstone`,
//!   `watermarks`, `wait-stable`;
//! - of the restore: `restore` (before it), `restore-chunk` (a chunk is on disk, its offsets row is not);
//! - `run` (before the first message), `process` (a task has processed a message);
//! - of a commit: `outputs-flushed`, `begun`, `drained` (changelog rows are sent), `checkpointed`, `ends-read`,
//!   `commit` (before the transaction is committed), `committed`, `rows-written` (a task's rows are handed to its
//!   database), `offsets-written`, `flushed`.
//!
//! Nothing is armed in production: a point then costs one look at a static.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};
use task_core::commit::CommitStep;
use tracing::warn;

/// What the environment says.
struct Armed {
    point: String,
    /// At which visit, from 1.
    visit: u64,
    signal: Signal,
    visits: AtomicU64,
}

impl Armed {
    fn read() -> Vec<Armed> {
        let variable = |name: &str| std::env::var(name).ok();
        let armed = |point: &str, visit, signal| Armed {
            point: point.to_owned(),
            visit,
            signal,
            visits: AtomicU64::new(0),
        };
        let pause = variable("SAMZA_TEST_PAUSE_AT").map(|point| armed(&point, 1, Signal::STOP));
        let crash = variable("SAMZA_TEST_CRASH_AT").and_then(|text| {
            let parsed = text.rsplit_once(':').and_then(|(point, n)| Some((point, n.parse().ok()?)));
            if parsed.is_none() {
                warn!(text, "SAMZA_TEST_CRASH_AT is not <point>:<n>");
            }
            parsed.map(|(point, visit)| armed(point, visit, Signal::KILL))
        });
        pause.into_iter().chain(crash).collect()
    }
}

fn armed() -> &'static [Armed] {
    static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
    ARMED.get_or_init(Armed::read)
}

/// The process comes to `point` as often as this.
pub(crate) fn each(point: &str, times: usize) {
    if armed().iter().any(|armed| armed.point == point) {
        (0..times).for_each(|_| at(point));
    }
}

/// The process comes to `point`.
pub(crate) fn at(point: &str) {
    for armed in armed().iter().filter(|armed| armed.point == point) {
        if armed.visits.fetch_add(1, Ordering::Relaxed) + 1 != armed.visit {
            continue;
        }
        let Armed { visit, signal, .. } = armed;
        warn!(point, visit, ?signal, "signals itself, as the environment says");
        if let Err(error) = kill_process(getpid(), *signal) {
            warn!(%error, "cannot signal itself");
        }
    }
}

/// The process comes to the point before a step of a commit, if there is one.
pub(crate) fn before(step: CommitStep) {
    if step == CommitStep::Commit {
        at("commit");
    }
}

/// The process comes to the point after a step of a commit.
pub(crate) fn after(step: CommitStep) {
    at(match step {
        CommitStep::FlushOutputs => "outputs-flushed",
        CommitStep::Begin => "begun",
        CommitStep::DrainCaches => "drained",
        CommitStep::Checkpoints => "checkpointed",
        CommitStep::ChangelogEnds => "ends-read",
        CommitStep::Commit => "committed",
        CommitStep::FlushStores => "flushed",
    });
}

//! Runs the start order of `task_core::ownership` for one task thread.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use task_api::system::{Isolation, Message, SystemAdmin, SystemError, TopicPartition};
use task_core::ownership::{self, Claim, Claimant, Claimed, OwnerRecord, Partitions, Phase, Purpose};
use task_core::record::{self, Checkpoint, Record};
use tracing::{debug, info, warn};
use types::{JobSpec, JobTopics, TaskModel, TaskName};

use crate::board::Board;
use crate::collector::Outputs;
use crate::end::End;
use crate::engine::Engine;
use crate::points;

/// How long a start order may go without getting on.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it may take to find out who has fenced a thread.
const RIVAL_PATIENCE: Duration = Duration::from_secs(15);

/// How many reads, or fences, run at once.
const SIDE_BY_SIDE: usize = 8;

/// The partitions of a task: its checkpoints, and the changelog of each store that has one, by the stores' names.
pub(crate) fn partitions(job: &JobSpec, task: &TaskModel) -> Partitions {
    let of = |topic: &str| TopicPartition { topic: topic.to_owned(), partition: task.changelog_partition };
    Partitions {
        owners: of(&JobTopics::of(&job.job).checkpoint),
        follow: job.stores.values().filter_map(|store| store.changelog.as_deref()).map(of).collect(),
    }
}

/// What a task's restore begins with.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// The watermarks to restore to, the checkpoints' first.
    pub(crate) highs: Vec<u64>,
    /// The task's last committed checkpoint below `read_to`.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// How far its checkpoint partition was read.
    pub(crate) read_to: u64,
}

/// Becomes the only writer for `tasks`. Returns what each restore begins with.
pub(crate) fn claim(
    me: OwnerRecord,
    job: &JobSpec,
    tasks: &[TaskModel],
    admin: &dyn SystemAdmin,
    outputs: &mut Outputs,
    board: &Board,
) -> Result<Vec<Start>, End> {
    let start = Instant::now();
    let partitions = tasks.iter().map(|task| partitions(job, task)).collect();
    let id = me.id.clone();
    let mut found: Vec<Start> = tasks.iter().map(|_| Start::default()).collect();
    let mut starting = Starting { outputs, board, tasks, found: &mut found, since: Instant::now() };
    match ownership::drive(Claim::new(me, Purpose::Run, partitions), admin, &mut starting)? {
        Claimed::Owned(watermarks) => {
            info!(id, tasks = tasks.len(), took_ms = start.elapsed().as_millis() as u64, "owns its tasks");
            found.iter_mut().zip(watermarks).for_each(|(of, highs)| of.highs = highs);
            Ok(found)
        }
        Claimed::Fenced { by } => Err(End::Fenced(format!("a newer owner is there: {}", by.id))),
    }
}

struct Starting<'a> {
    outputs: &'a mut Outputs,
    board: &'a Board,
    tasks: &'a [TaskModel],
    /// By task.
    found: &'a mut [Start],
    since: Instant,
}

impl Claimant for Starting<'_> {
    fn init(&mut self) -> Result<(), SystemError> {
        self.outputs.init()
    }

    fn found(&mut self, at: usize, checkpoints: Vec<(TaskName, Checkpoint)>, until: u64) {
        let mut of_task = checkpoints.into_iter().filter(|(task, _)| *task == self.tasks[at].name);
        self.found[at].checkpoint = of_task.next_back().map(|(_, checkpoint)| checkpoint);
        self.found[at].read_to = until;
    }

    fn entering(&mut self, phase: Phase) {
        debug!(phase = phase.name(), "start order");
        self.since = Instant::now();
        points::at(phase.name());
    }

    fn wait(&mut self, again: u32, error: Option<&SystemError>) -> Result<(), SystemError> {
        if self.board.is_stopping() {
            return Err(SystemError::Fatal("told to stop before it owned its tasks".into()));
        }
        if self.since.elapsed() > PATIENCE {
            let why = error.map_or("open transactions below the watermarks".to_owned(), ToString::to_string);
            return Err(SystemError::Fatal(format!("the start order does not get on: {why}")));
        }
        if let Some(error) = error {
            warn!(%error, "start order: trying again");
        }
        // 2 ms doubling to 128 ms, then 250 ms.
        std::thread::sleep(Duration::from_millis(if again < 7 { 2 << again } else { 250 }));
        Ok(())
    }

    fn all(&mut self, count: usize, run: &(dyn Fn(usize) + Sync)) {
        if count == 1 {
            return run(0);
        }
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..count.min(SIDE_BY_SIDE) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= count {
                            return;
                        }
                        run(at);
                    }
                });
            }
        });
    }
}

/// What it means that a broker no longer takes the producer of `engine`, which it said by `why`: that somebody else owns
/// its tasks only if there is such an owner. Brokers say the same of a transaction that was open for too long.
pub(crate) fn who_fenced<T>(engine: &Engine<T>, why: String) -> End {
    let partitions = engine
        .tasks
        .iter()
        .map(|task| TopicPartition { topic: engine.checkpoint_topic.clone(), partition: task.partition });
    let (since, mut again) = (Instant::now(), 0);
    let rival = loop {
        let found = partitions.clone().find_map(|at| rival(&engine.owner, &at, &*engine.admin).transpose());
        match found.transpose() {
            Err(SystemError::Retriable(_)) if since.elapsed() < RIVAL_PATIENCE => {
                std::thread::sleep(Duration::from_millis(50 << again.min(4)));
                again += 1;
            }
            found => break found,
        }
    };
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    match (rival, engine.outputs.overtime()) {
        (Ok(Some(rival)), _) => End::Fenced(format!("{why}; {rival} owns its tasks now")),
        (Err(unread), _) => End::Failed(format!(
            "{why}; whether somebody else owns its tasks cannot be told, their owners are not readable: {unread}"
        )),
        (Ok(None), Some((open, most))) => End::TransactionTimeout(format!(
            "the transaction was open for {}, longer than transaction.timeout.ms = {}, so the broker has aborted it \
             ({why}); nobody else owns the tasks. A call of a task, a commit or a pause of the whole process took too \
             long",
            seconds(open),
            most.as_millis()
        )),
        (Ok(None), None) => End::Failed(format!(
            "the broker no longer takes this producer ({why}), but nobody else owns the tasks: somebody has aborted its \
             transaction or used its transactional id"
        )),
    }
}

/// The owner of a partition that is above `me`, or whoever has fenced it.
fn rival(
    me: &OwnerRecord,
    at: &TopicPartition,
    admin: &dyn SystemAdmin,
) -> Result<Option<String>, SystemError> {
    let high = admin.high_watermarks(std::slice::from_ref(at), RIVAL_PATIENCE)?;
    let mut found = None;
    let mut take = |messages: &[Message<'_>]| {
        for message in messages {
            match record::decode(message.key, message.value) {
                Some(Record::Owner(owner)) if (owner.incarnation, &owner.id) > (me.incarnation, &me.id) => {
                    found = Some(owner.id);
                }
                // Only who has fenced an owner says that it is gone.
                Some(Record::OwnerGone(id)) if id == me.id => {
                    found.get_or_insert_with(|| "a newer owner".to_owned());
                }
                Some(Record::Owner(_) | Record::OwnerGone(_) | Record::Checkpoint(..)) | None => {}
            }
        }
        Ok(())
    };
    let until = high.first().map_or(0, |end| end.offset);
    admin.read_range(at, 0, until, Isolation::ReadUncommitted, &mut take)?;
    Ok(found)
}

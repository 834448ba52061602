//! The thread that talks to Kafka: one request at a time, blocking; answers go to the driver as events.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use am_core::place::{Facts, SlotPlace};
use am_core::plan::{self, Plan, TopicPlan};
use am_core::{Event, Failure};
use task_api::system::{Isolation, Message, SystemError, TopicPartition};
use task_core::ownership::{Claim, Claimant, Claimed, OwnerRecord, Partitions, Purpose, drive};
use task_core::record::{self, Record};
use task_core::topics::{self, Unready};
use types::{ContainerId, Incarnation, JobSpec, JobTopics, TopicStatus};

use crate::coordinator::{Coordinator, Writer, wait_a_little};
use crate::facts::{Unread, read_topology, read_whole_topology};
use crate::systems::Systems;

/// One thing to do.
#[derive(Debug)]
pub enum Request {
    /// [`am_core::Command::ReadFacts`].
    ReadFacts,
    /// [`am_core::Command::Prepare`].
    Prepare(Box<Plan>),
    /// [`am_core::Command::ReadTopology`].
    ReadTopology,
    /// [`am_core::Command::ReadOwners`].
    ReadOwners {
        /// The slot.
        slot: u32,
        /// Its container.
        container: ContainerId,
        /// Its partitions.
        partitions: Vec<i32>,
    },
    /// [`am_core::Command::Fence`].
    Fence {
        /// Under this.
        incarnation: Incarnation,
        /// These.
        partitions: Vec<i32>,
    },
    /// [`am_core::Command::Remember`], several in one transaction.
    Remember(Vec<(u32, SlotPlace)>),
}

/// One thing to tell.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// For the core.
    Event(Event),
    /// A newer master owns the job's metadata: end as fenced.
    Fenced(String),
    /// What was written last may or may not have been: end, so that another attempt reads it.
    Broken(String),
}

/// The Kafka side's own state.
pub struct KafkaSide {
    spec: JobSpec,
    writer: Writer,
    systems: Box<dyn Systems>,
    coordinator: Option<Coordinator>,
    /// The model as the topic has it.
    written: Option<am_core::place::RememberedModel>,
    /// Since when there have been too few brokers for a topic's copies.
    short_since: Option<Instant>,
    patience: Duration,
    /// The job's topics that are ready, by name.
    topics: BTreeMap<String, TopicStatus>,
}

/// For so long brokers that are needed for a topic's copies are waited for: a restart of one takes minutes at most.
const BROKERS_PATIENCE: Duration = Duration::from_secs(600);

impl KafkaSide {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(spec: JobSpec, writer: Writer, systems: Box<dyn Systems>) -> KafkaSide {
        KafkaSide {
            spec,
            writer,
            systems,
            coordinator: None,
            written: None,
            short_since: None,
            patience: BROKERS_PATIENCE,
            topics: BTreeMap::new(),
        }
    }

    /// Serves requests until their sender is gone.
    pub fn serve(mut self, requests: &mpsc::Receiver<Request>, answer: &dyn Fn(Answer)) {
        while let Ok(first) = requests.recv() {
            let mut batch = vec![first];
            batch.extend(requests.try_iter());
            for request in without_repeats(batch) {
                if let Some(found) = self.handle(request) {
                    answer(found);
                }
            }
        }
    }

    /// Does one request; none if there is nothing to tell.
    pub fn handle(&mut self, request: Request) -> Option<Answer> {
        match request {
            Request::ReadFacts => Some(match self.read_facts() {
                Ok(facts) => Answer::Event(Event::FactsRead(Box::new(Ok(facts)))),
                Err(Trouble::Fenced(why)) => Answer::Fenced(why),
                Err(Trouble::Failure(failure)) => Answer::Event(Event::FactsRead(Box::new(Err(failure)))),
            }),
            Request::Prepare(plan) => Some(self.prepare(&plan)),
            Request::ReadTopology => match read_topology(&self.spec, &mut *self.systems) {
                Ok((topology, _)) => Some(Answer::Event(Event::TopologyRead(Box::new(topology)))),
                Err(why) => {
                    tracing::warn!(?why, "the inputs' places could not be read again");
                    None
                }
            },
            Request::ReadOwners { slot, container, partitions } => {
                let newest = self.newest_owner(&partitions).map_err(|e| e.to_string());
                Some(Answer::Event(Event::OwnersRead { slot, container, newest }))
            }
            Request::Fence { incarnation, partitions } => {
                let done = self.fence(incarnation, &partitions).map_err(|e| e.to_string());
                Some(Answer::Event(Event::TasksFenced(done)))
            }
            Request::Remember(places) => self.remember(&places),
        }
    }

    fn read_facts(&mut self) -> Result<Facts, Trouble> {
        let topology = read_whole_topology(&self.spec, &mut *self.systems).map_err(Trouble::from)?;
        let Some(system) = plan::metadata_system(&self.spec) else {
            return Err(Trouble::Failure(Failure::Fatal("the job has no inputs".into())));
        };
        let of = |e: SystemError| Trouble::from(Unread::System(system.clone(), e));
        let topic = plan::coordinator_topic(&self.spec).expect("it has an input");
        self.refuse_another_home(&system, &topic.topic)?;
        self.ensure(&system, &[&topic])?;
        let admin = self.systems.admin(&system).map_err(of)?;
        let producer = self.systems.producer(&system, &self.writer.owner.id).map_err(of)?;
        let (coordinator, remembered) =
            Coordinator::claim(self.writer.clone(), &topic.topic, &admin, producer).map_err(of)?;
        self.coordinator = Some(coordinator);
        self.written = remembered.model.clone();
        Ok(Facts { topology, remembered })
    }

    /// Makes topics of one system ready.
    fn ensure(&mut self, system: &str, plans: &[&TopicPlan]) -> Result<(), Trouble> {
        let of = |e: SystemError| Trouble::from(Unread::System(system.to_owned(), e));
        let admin = self.systems.admin(system).map_err(of)?;
        let bootstrap = self.spec.systems.get(system).map_or("", |s| s.bootstrap.as_str());
        match topics::ensure(admin.as_ref(), bootstrap, plans) {
            Ok(ready) => {
                self.short_since = None;
                for note in ready.iter().flat_map(|topic| &topic.notes) {
                    tracing::warn!("{note}");
                }
                self.topics.extend(ready.into_iter().map(|topic| (topic.topic.clone(), topic)));
                Ok(())
            }
            Err(Unready::TooFewBrokers(why)) => {
                let since = *self.short_since.get_or_insert_with(Instant::now);
                Err(Trouble::Failure(if since.elapsed() < self.patience {
                    Failure::Waiting(format!("waiting for brokers: {why}"))
                } else {
                    Failure::Fatal(why)
                }))
            }
            Err(Unready::System(error)) => Err(of(error)),
        }
    }

    /// A job that has its positions on another of its systems would begin anew on this one.
    fn refuse_another_home(&mut self, home: &str, topic: &str) -> Result<(), Trouble> {
        let of = |system: &str| {
            let system = system.to_owned();
            move |e: SystemError| Trouble::from(Unread::System(system, e))
        };
        let wanted = [topic.to_owned()];
        let here = self.systems.admin(home).and_then(|a| a.describe(&wanted)).map_err(of(home))?;
        if !here.is_empty() {
            return Ok(());
        }
        let others: Vec<String> = self.spec.systems.keys().filter(|name| *name != home).cloned().collect();
        for other in others {
            let there = self.systems.admin(&other).and_then(|a| a.describe(&wanted)).map_err(of(&other))?;
            if !there.is_empty() {
                let why = topics::another_home(&self.spec.job, home, &other, topic);
                return Err(Trouble::Failure(Failure::Fatal(why)));
            }
        }
        Ok(())
    }

    /// Gives topics that exist with fewer partitions than the plan's what they lack.
    fn extend(&mut self, system: &str, plans: &[&TopicPlan]) -> Result<(), Trouble> {
        let of = |e: SystemError| Trouble::from(Unread::System(system.to_owned(), e));
        let admin = self.systems.admin(system).map_err(of)?;
        let names: Vec<String> = plans.iter().map(|plan| plan.topic.clone()).collect();
        for there in admin.describe(&names).map_err(of)? {
            let wanted =
                plans.iter().find(|plan| plan.topic == there.topic).map_or(0, |plan| plan.partitions);
            if i32::try_from(there.partitions.len()).unwrap_or(i32::MAX) < wanted {
                tracing::info!(topic = there.topic, partitions = wanted, "extended for new tasks");
                admin.extend(&there.topic, wanted).map_err(of)?;
            }
        }
        Ok(())
    }

    fn prepare(&mut self, plan: &Plan) -> Answer {
        for (system, topics) in topics::by_system(&plan.topics) {
            let extended = if plan.extend { self.extend(system, &topics) } else { Ok(()) };
            match extended.and_then(|()| self.ensure(system, &topics)) {
                Ok(()) => {}
                Err(Trouble::Fenced(why)) => return Answer::Fenced(why),
                Err(Trouble::Failure(failure)) => return Answer::Event(Event::Prepared(Err(failure))),
            }
        }
        if self.written.as_ref() != Some(&plan.model) {
            let Some(coordinator) = &mut self.coordinator else {
                return Answer::Broken("the coordinator topic is not owned".into());
            };
            match coordinator.remember_model(&plan.model) {
                Ok(()) => self.written = Some(plan.model.clone()),
                Err(SystemError::Fenced(why)) => return Answer::Fenced(why),
                Err(error) => return Answer::Broken(format!("writing the job model: {error}")),
            }
        }
        Answer::Event(Event::Prepared(Ok(self.topics.values().cloned().collect())))
    }

    fn remember(&mut self, places: &[(u32, SlotPlace)]) -> Option<Answer> {
        match self.coordinator.as_mut()?.remember_places(places) {
            Ok(()) => None,
            Err(SystemError::Fenced(why)) => Some(Answer::Fenced(why)),
            Err(error) => Some(Answer::Broken(format!("writing where containers run: {error}"))),
        }
    }

    fn checkpoint_partitions(&self, partitions: &[i32]) -> Vec<TopicPartition> {
        let topic = JobTopics::of(&self.spec.job).checkpoint;
        partitions.iter().map(|p| TopicPartition { topic: topic.clone(), partition: *p }).collect()
    }

    fn metadata_admin(&mut self) -> Result<std::sync::Arc<dyn task_api::system::SystemAdmin>, SystemError> {
        let none = || SystemError::Fatal("the job has no inputs".into());
        self.systems.admin(&plan::metadata_system(&self.spec).ok_or_else(none)?)
    }

    fn newest_owner(&mut self, partitions: &[i32]) -> Result<Option<Incarnation>, SystemError> {
        let partitions = self.checkpoint_partitions(partitions);
        let admin = self.metadata_admin()?;
        let mut newest = None;
        for (partition, ends) in partitions.iter().zip(admin.watermarks(&partitions)?) {
            let mut standing: BTreeMap<String, Incarnation> = BTreeMap::new();
            let mut take = |messages: &[Message<'_>]| {
                for message in messages {
                    match record::decode(message.key, message.value) {
                        Some(Record::Owner(owner)) => drop(standing.insert(owner.id, owner.incarnation)),
                        Some(Record::OwnerGone(id)) => drop(standing.remove(&id)),
                        Some(Record::Checkpoint(..)) | None => {}
                    }
                }
                Ok(())
            };
            admin.read_range(partition, ends.low, ends.high, Isolation::ReadUncommitted, &mut take)?;
            newest = newest.max(standing.into_values().max());
        }
        Ok(newest)
    }

    fn fence(&mut self, incarnation: Incarnation, partitions: &[i32]) -> Result<(), SystemError> {
        let partitions = self
            .checkpoint_partitions(partitions)
            .into_iter()
            .map(|owners| Partitions { owners, follow: Vec::new() })
            .collect();
        let admin = self.metadata_admin()?;
        let me = OwnerRecord::of_stop(&self.spec.job, incarnation);
        match drive(Claim::new(me, Purpose::Stop, partitions), admin.as_ref(), &mut Stopper)? {
            Claimed::Owned(_) => Ok(()),
            Claimed::Fenced { by } => {
                tracing::warn!(by = by.id, "the job's tasks have a newer owner already; they are left to it");
                Ok(())
            }
        }
    }
}

/// How many tasks are looked up or fenced at once.
const AT_ONCE: usize = 8;

/// Stops a job's tasks: bears few errors, for the core tries again and minds the time.
struct Stopper;

impl Claimant for Stopper {
    fn init(&mut self) -> Result<(), SystemError> {
        Ok(())
    }
    fn wait(&mut self, again: u32, error: Option<&SystemError>) -> Result<(), SystemError> {
        wait_a_little(again, error, 5)
    }
    fn all(&mut self, count: usize, run: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            for first in 0..count.min(AT_ONCE) {
                scope.spawn(move || (first..count).step_by(AT_ONCE).for_each(run));
            }
        });
    }
}

/// Why facts could not be read.
enum Trouble {
    Fenced(String),
    Failure(Failure),
}

impl From<Unread> for Trouble {
    fn from(why: Unread) -> Trouble {
        match why {
            Unread::MissingInputs(topics) => {
                let what = if topics.len() == 1 { "topic" } else { "topics" };
                Trouble::Failure(Failure::Waiting(format!("waiting for input {what} {}", topics.join(", "))))
            }
            Unread::System(_, SystemError::Fenced(why)) => Trouble::Fenced(why),
            Unread::System(system, SystemError::Retriable(why)) => {
                Trouble::Failure(Failure::Waiting(format!("waiting for system {system}: {why}")))
            }
            Unread::System(system, SystemError::Fatal(why) | SystemError::Refused(why)) => {
                Trouble::Failure(Failure::Doubtful(format!("system {system}: {why}")))
            }
        }
    }
}

/// Several wishes to read the topology again are one; places to remember go together, after all else.
fn without_repeats(batch: Vec<Request>) -> Vec<Request> {
    let (mut all, mut places, mut topology) = (Vec::new(), Vec::new(), false);
    for request in batch {
        match request {
            Request::Remember(some) => places.extend(some),
            Request::ReadTopology => topology = true,
            Request::ReadFacts | Request::Prepare(_) | Request::ReadOwners { .. } | Request::Fence { .. } => {
                all.push(request);
            }
        }
    }
    all.extend(topology.then_some(Request::ReadTopology));
    all.extend((!places.is_empty()).then_some(Request::Remember(places)));
    all
}

#[cfg(test)]
mod tests {
    use am_core::place::RememberedModel;
    use am_core::{AmCore, AmIdentity, Command};
    use task_api::system::{NewTopic, PlainMessage, SystemAdmin};
    use types::{Epoch, JobId, Timestamp};

    use super::*;
    use crate::testing::{Memory, spec};

    fn incarnation(seq: u64) -> Incarnation {
        Incarnation { epoch: Epoch(7), seq }
    }

    fn side(memory: &Memory, seq: u64) -> KafkaSide {
        let owner = OwnerRecord::of_app_master(&spec().job, incarnation(seq));
        let writer = Writer { job: spec().job, attempt: 1, owner };
        KafkaSide::new(spec(), writer, Box::new(memory.clone()))
    }

    fn with_input(partitions: i32) -> Memory {
        let memory = Memory::default();
        let config = BTreeMap::new();
        memory
            .create(&[NewTopic { topic: "in".into(), partitions, replication: 1, config }])
            .expect("created");
        memory
    }

    fn facts(side: &mut KafkaSide) -> Result<Facts, Failure> {
        match side.handle(Request::ReadFacts) {
            Some(Answer::Event(Event::FactsRead(read))) => *read,
            other => panic!("{other:?}"),
        }
    }

    /// Reads the facts and carries out the plan that the core makes of them.
    fn prepare(side: &mut KafkaSide) -> RememberedModel {
        let facts = facts(side).expect("readable");
        let identity = AmIdentity { app: "app".into(), attempt: 1, spec: spec(), unix_offset_ms: 0 };
        let (mut core, mut out) = (AmCore::new(identity), Vec::new());
        core.facts_read(Timestamp(0), Ok(facts), &mut out);
        let Some(Command::Prepare(plan)) = out.pop() else { panic!("no plan: {out:?}") };
        let made = plan.model.clone();
        let done = side.handle(Request::Prepare(plan));
        assert!(matches!(done, Some(Answer::Event(Event::Prepared(Ok(_))))), "{done:?}");
        made
    }

    #[test]
    fn a_missing_input_is_waited_for_by_name() {
        let memory = Memory::default();
        let failure = facts(&mut side(&memory, 1)).expect_err("there is no topic");
        assert_eq!(failure, Failure::Waiting("waiting for input topic in".into()));
        memory.set_down(true);
        let Err(Failure::Waiting(why)) = facts(&mut side(&memory, 1)) else { panic!("brokers are down") };
        assert!(why.contains("127.0.0.1:9092"), "{why}");
    }

    #[test]
    fn topics_are_created_and_the_model_is_there_for_the_next_attempt() {
        let memory = with_input(4);
        let made = prepare(&mut side(&memory, 1));
        let of = |name: &str| memory.topic(name).map(|t| (t.partitions, t.replication));
        assert_eq!(of("__samza_coordinator_j_1"), Some((1, 3)));
        assert_eq!(of("__samza_checkpoint_ver_1_for_j_1"), Some((4, 3)));
        assert_eq!(of("j-1-seen-changelog"), Some((4, 3)));
        let mut next = side(&memory, 2);
        let known = facts(&mut next).expect("readable");
        assert_eq!(known.remembered.model, Some(made.clone()));
        assert_eq!(known.remembered.changelog.len(), 4);
        assert_eq!(prepare(&mut next), made);
    }

    #[test]
    fn topics_that_are_there_need_no_right_to_create_or_to_alter() {
        let memory = with_input(2);
        prepare(&mut side(&memory, 1));
        memory.set_locked(true);
        let before = memory.orders();
        prepare(&mut side(&memory, 2));
        assert_eq!(memory.orders(), before, "nothing is created or altered again");
    }

    #[test]
    fn a_topic_that_would_lose_state_is_mended_and_without_the_right_to_is_refused_with_the_command() {
        let memory = with_input(2);
        let changelog = NewTopic {
            topic: "j-1-seen-changelog".into(),
            partitions: 2,
            replication: 3,
            config: BTreeMap::new(),
        };
        memory.create(&[changelog]).expect("created with Kafka's defaults");
        let mut first = side(&memory, 1);
        let read = facts(&mut first).expect("readable");
        memory.set_locked(true);
        let identity = AmIdentity { app: "app".into(), attempt: 1, spec: spec(), unix_offset_ms: 0 };
        let (mut core, mut out) = (AmCore::new(identity), Vec::new());
        core.facts_read(Timestamp(0), Ok(read), &mut out);
        let Some(Command::Prepare(plan)) = out.pop() else { panic!("no plan: {out:?}") };
        // The checkpoint topic is missing too, and may not be created now.
        let done = first.handle(Request::Prepare(plan.clone()));
        let Some(Answer::Event(Event::Prepared(Err(Failure::Doubtful(why))))) = done else {
            panic!("{done:?}")
        };
        assert!(why.contains("Create"), "{why}");
        memory.set_locked(false);
        let done = first.handle(Request::Prepare(plan));
        let Some(Answer::Event(Event::Prepared(Ok(topics)))) = done else { panic!("{done:?}") };
        assert_eq!(topics.len(), 3, "{topics:?}");
        let mended = memory.topic("j-1-seen-changelog").expect("there").config;
        assert_eq!(mended["cleanup.policy"], "compact");
    }

    #[test]
    fn brokers_that_are_down_are_waited_for_and_then_the_job_is_refused_by_the_key() {
        let memory = with_input(2);
        memory.set_brokers_down(1);
        let mut first = side(&memory, 1);
        let Err(Failure::Waiting(why)) = facts(&mut first) else { panic!("a broker is down") };
        assert!(why.contains("3 copies") && why.contains("[systems.kafka] replication = 2"), "{why}");
        assert_eq!(memory.topic("__samza_coordinator_j_1"), None, "nothing is made with fewer copies");
        first.patience = Duration::ZERO;
        assert!(matches!(facts(&mut first), Err(Failure::Doubtful(_) | Failure::Fatal(_))));
        memory.set_brokers_down(0);
        prepare(&mut first);
        assert_eq!(memory.topic("__samza_coordinator_j_1").map(|t| t.replication), Some(3));
    }

    #[test]
    fn a_job_with_a_name_too_much_alike_is_refused_and_told_whose_the_topic_is() {
        let memory = with_input(2);
        let of = |name: &str, seq| {
            let job = JobSpec { job: JobId { name: name.into(), id: "1".into() }, ..spec() };
            let owner = OwnerRecord::of_app_master(&job.job, incarnation(seq));
            let writer = Writer { job: job.job.clone(), attempt: 1, owner };
            KafkaSide::new(job, writer, Box::new(memory.clone()))
        };
        facts(&mut of("a_b", 1)).expect("the first");
        let before = memory.epoch("a_b-1-am-7-1");
        let Err(Failure::Doubtful(why)) = facts(&mut of("a-b", 2)) else { panic!("it is another's") };
        assert!(why.contains("__samza_coordinator_a-b_1 belongs to job `a_b-1`"), "{why}");
        assert_eq!(memory.epoch("a_b-1-am-7-1"), before, "the other is not fenced");
        facts(&mut of("a_b", 3)).expect("its own");
    }

    #[test]
    fn an_older_master_is_fenced_by_a_newer_and_never_writes_again() {
        let memory = with_input(2);
        let mut old = side(&memory, 1);
        prepare(&mut old);
        let place = SlotPlace { container: ContainerId(incarnation(5)), node: "n".into(), host: "h".into() };
        assert_eq!(old.handle(Request::Remember(vec![(0, place.clone())])), None);
        let mut new = side(&memory, 9);
        let known = facts(&mut new).expect("readable");
        assert_eq!(known.remembered.places.get(&0), Some(&place));
        let stale = old.handle(Request::Remember(vec![(0, place)]));
        assert!(matches!(stale, Some(Answer::Fenced(_))), "{stale:?}");
        let late = side(&memory, 3).handle(Request::ReadFacts);
        assert!(matches!(late, Some(Answer::Fenced(_))), "{late:?}");
    }

    #[test]
    fn a_stop_fences_every_owner_of_every_task() {
        let memory = with_input(2);
        let mut side = side(&memory, 1);
        prepare(&mut side);
        let topic = JobTopics::of(&spec().job).checkpoint;
        for (partition, slot) in [(0, 0), (1, 1)] {
            let owner = OwnerRecord::of_thread(&spec().job, slot, 0, incarnation(5));
            memory.fence(&owner.id).expect("registered");
            let to = TopicPartition { topic: topic.clone(), partition };
            let (key, value) = (record::owner_key(&owner.id), Some(record::owner_value(&owner)));
            memory.append(&[PlainMessage { to, key, value }]).expect("appended");
        }
        let found = side.handle(Request::ReadOwners {
            slot: 0,
            container: ContainerId(incarnation(4)),
            partitions: vec![0],
        });
        let expected = Event::OwnersRead {
            slot: 0,
            container: ContainerId(incarnation(4)),
            newest: Ok(Some(incarnation(5))),
        };
        assert_eq!(found, Some(Answer::Event(expected)));
        let done = side.handle(Request::Fence { incarnation: incarnation(8), partitions: vec![0, 1] });
        assert_eq!(done, Some(Answer::Event(Event::TasksFenced(Ok(())))));
        assert_eq!([memory.epoch("j-1-0-0-7-5"), memory.epoch("j-1-1-0-7-5")], [2, 2]);
        let late = Claim::new(
            OwnerRecord::of_thread(&spec().job, 0, 0, incarnation(6)),
            Purpose::Stop,
            vec![Partitions { owners: TopicPartition { topic, partition: 0 }, follow: vec![] }],
        );
        let woken = drive(late, &memory, &mut Stopper).expect("driven");
        assert!(
            matches!(woken, Claimed::Fenced { .. }),
            "what slept through the stop never starts: {woken:?}"
        );
    }
}

//! How a running job takes up what was added to its inputs: the grown model is written to the coordinator topic, then
//! the containers that it concerns are stopped with a commit and started again with their new tasks, one after the
//! other. A container's tasks never change while it runs. What a container works on it says in its Hello, so the next
//! application master knows whom it has still to restart.

use types::{ContainerId, ContainerPhase, ExitCause, TopicStatus};

use crate::core::{AmCore, Phase, Slot};
use crate::ending::STOP_GRACE_MS;
use crate::event::{Command, Failure};
use crate::growth::{self, Running};
use crate::plan::{self, Plan};
use crate::slot::SlotState;

impl AmCore {
    /// Looks whether the inputs are what the tasks read.
    pub(crate) fn look_at_inputs(&mut self, out: &mut Vec<Command>) {
        let Some(model) = self.model.as_ref().filter(|_| self.phase == Phase::Running) else { return };
        if self.growing.is_some() {
            return;
        }
        let open: Vec<u32> = self.slots.iter().filter(|(_, s)| !s.state.is_over()).map(|(n, _)| *n).collect();
        let (spec, topology) = (&self.identity.spec, &self.topology);
        let growth =
            growth::look(&Running { spec, model, changelog: &self.changelog, topology, open: &open });
        self.warnings = growth.warnings;
        if let Some(grown) = growth.model {
            let topics = plan::job_topics(spec, &grown.model);
            self.growing = Some(grown.clone());
            out.push(Command::Prepare(Box::new(Plan { topics, extend: true, model: grown })));
        }
    }

    /// The grown model is written, or cannot be. Then it is tried again when the inputs are read next.
    pub(crate) fn grown(&mut self, done: Result<Vec<TopicStatus>, Failure>, out: &mut Vec<Command>) {
        let Some(grown) = self.growing.take() else { return };
        let topics = match done {
            Ok(topics) => topics,
            Err(Failure::Waiting(why) | Failure::Doubtful(why) | Failure::Fatal(why)) => {
                self.not_grown =
                    Some(format!("partitions that were added to the inputs are not read yet: {why}"));
                return;
            }
        };
        (self.topics, self.not_grown) = (topics, None);
        self.changelog.extend(crate::job_model::changelog_mapping(&grown.model));
        let old = self.model.replace(grown);
        for tracked in self.containers.values_mut().filter(|t| t.is_live() && t.ever_connected) {
            let of = |model: &Option<crate::place::RememberedModel>| {
                model.as_ref().and_then(|m| m.model.containers.get(&tracked.slot)).cloned()
            };
            // One that was stale before is not made current by what it never had.
            tracked.stale |= of(&old) != of(&self.model);
        }
        self.roll_on(out);
    }

    /// The container to stop next for its newer model; none while another slot is on its way.
    pub(crate) fn next_to_roll(&self) -> Option<ContainerId> {
        if self.phase != Phase::Running || self.session_since.is_none() {
            return None;
        }
        let stale = |slot: &Slot| match slot.state {
            SlotState::Running { container } => {
                self.containers.get(&container).filter(|t| t.stale && t.stop.is_none()).map(|_| container)
            }
            SlotState::Waiting
            | SlotState::Asked { .. }
            | SlotState::Placed { .. }
            | SlotState::Stopping { .. }
            | SlotState::Checking { .. }
            | SlotState::Backoff { .. }
            | SlotState::Done
            | SlotState::GaveUp => None,
        };
        let next = self.slots.values().find_map(stale)?;
        (!self.slots.values().any(Slot::is_on_its_way)).then_some(next)
    }

    /// Stops the next container that has an older model than its slot.
    pub(crate) fn roll_on(&mut self, out: &mut Vec<Command>) {
        let Some(id) = self.next_to_roll() else { return };
        for slot in self.slots.values_mut() {
            slot.rolled = slot.state.container() == Some(id);
        }
        self.end_in_slot(id, "starts again with what was added to its inputs");
        self.stop_container(id, STOP_GRACE_MS, ExitCause::KilledByAm, out);
    }

    /// How many containers have an older model than their slots.
    pub(crate) fn stale_count(&self) -> usize {
        self.containers.values().filter(|t| t.stale && t.is_live()).count()
    }
}

impl Slot {
    /// Whether it is between two containers, or was started again and does not process yet.
    fn is_on_its_way(&self) -> bool {
        match self.state {
            SlotState::Placed { .. } | SlotState::Stopping { .. } | SlotState::Checking { .. } => true,
            SlotState::Running { .. } => self.rolled && self.status.phase != ContainerPhase::Running,
            SlotState::Waiting | SlotState::Asked { .. } | SlotState::Backoff { .. } => self.rolled,
            SlotState::Done | SlotState::GaveUp => false,
        }
    }
}

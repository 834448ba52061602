//! All containers of a node, and what finds some of them without a look at the others: that most of them merely run
//! costs nothing. Changed only through [`Edit`], which keeps what finds them true.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use types::{AppId, ContainerId, JobId, Role, StartContainer, Timestamp};

use crate::containers::Container;

/// A logical container of a job: its number, none for the application master. Two of one slot never run at once here.
pub(crate) type Slot = (JobId, Option<u32>);

/// The slot of what is to be started.
pub(crate) fn slot(start: &StartContainer) -> Slot {
    let number = match start.role {
        Role::AppMaster { .. } => None,
        Role::Worker { request } => Some(request.slot),
    };
    (start.job.clone(), number)
}

/// All of them, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Containers {
    all: BTreeMap<ContainerId, Container>,
    /// Those of which something is due, by when.
    due: BTreeSet<(Timestamp, ContainerId)>,
    slots: BTreeMap<Slot, BTreeSet<ContainerId>>,
    /// How many each application has.
    apps: BTreeMap<AppId, usize>,
}

impl Containers {
    pub(crate) fn get(&self, id: ContainerId) -> Option<&Container> {
        self.all.get(&id)
    }

    /// One of them, to change it.
    pub(crate) fn edit(&mut self, id: ContainerId) -> Option<Edit<'_>> {
        let container = self.all.get_mut(&id)?;
        Some(Edit { id, before: container.due(), container, due: &mut self.due })
    }

    pub(crate) fn insert(&mut self, container: Container) {
        let id = container.start.id;
        self.due.extend(container.due().map(|at| (at, id)));
        self.slots.entry(slot(&container.start)).or_default().insert(id);
        *self.apps.entry(container.start.app.clone()).or_default() += 1;
        self.all.insert(id, container);
    }

    pub(crate) fn remove(&mut self, id: ContainerId) {
        let Some(container) = self.all.remove(&id) else { return };
        if let Some(at) = container.due() {
            self.due.remove(&(at, id));
        }
        let slot = slot(&container.start);
        if let Some(ids) = self.slots.get_mut(&slot) {
            ids.remove(&id);
            if ids.is_empty() {
                self.slots.remove(&slot);
            }
        }
        if let Some(count) = self.apps.get_mut(&container.start.app) {
            *count -= 1;
            if *count == 0 {
                self.apps.remove(&container.start.app);
            }
        }
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Container> {
        self.all.values()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ContainerId, &Container)> {
        self.all.iter()
    }

    pub(crate) fn ids(&self) -> Vec<ContainerId> {
        self.all.keys().copied().collect()
    }

    /// Those of a slot, the oldest first.
    pub(crate) fn of_slot<'a>(
        &'a self,
        slot: &Slot,
    ) -> impl DoubleEndedIterator<Item = &'a Container> + use<'a> {
        self.slots.get(slot).into_iter().flatten().filter_map(|id| self.all.get(id))
    }

    pub(crate) fn has_app(&self, app: &AppId) -> bool {
        self.apps.contains_key(app)
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn due_by(&self, now: Timestamp) -> Vec<ContainerId> {
        self.due.iter().take_while(|(at, _)| *at <= now).map(|(_, id)| *id).collect()
    }

    /// Whether what finds them is what it would be were it made anew.
    pub(crate) fn is_sound(&self) -> bool {
        let of_slots = self.slots.iter().flat_map(|(slot, ids)| ids.iter().map(move |id| (slot, id)));
        let in_slots = of_slots.filter(|(of, id)| self.all.get(id).is_some_and(|c| slot(&c.start) == **of));
        let due = self.all.values().filter_map(|container| Some((container.due()?, container.start.id)));
        let of_app = |app: &AppId| self.all.values().filter(|container| container.start.app == *app).count();
        in_slots.count() == self.all.len()
            && self.slots.values().all(|ids| !ids.is_empty())
            && due.collect::<BTreeSet<_>>() == self.due
            && self.apps.iter().all(|(app, count)| *count > 0 && *count == of_app(app))
            && self.apps.values().sum::<usize>() == self.all.len()
    }
}

/// A container that is being changed.
pub(crate) struct Edit<'a> {
    id: ContainerId,
    before: Option<Timestamp>,
    container: &'a mut Container,
    due: &'a mut BTreeSet<(Timestamp, ContainerId)>,
}

impl Deref for Edit<'_> {
    type Target = Container;

    fn deref(&self) -> &Container {
        self.container
    }
}

impl DerefMut for Edit<'_> {
    fn deref_mut(&mut self) -> &mut Container {
        self.container
    }
}

impl Drop for Edit<'_> {
    fn drop(&mut self) {
        let after = self.container.due();
        if after != self.before {
            self.before.map(|at| self.due.remove(&(at, self.id)));
            self.due.extend(after.map(|at| (at, self.id)));
        }
    }
}

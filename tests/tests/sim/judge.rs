//! What must hold after each step, and what must have come to rest at the end.

use types::{AppId, AppState, ContainerId, NodeId, Resource, Role, StartContainer};

use crate::node::What;
use crate::world::World;

/// What a container is for: two with one of these are the same thing twice.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Master(AppId),
    Slot(AppId, u32),
}

impl Place {
    fn of(start: &StartContainer) -> Place {
        match start.role {
            Role::AppMaster { .. } => Place::Master(start.app.clone()),
            Role::Worker { request } => Place::Slot(start.app.clone(), request.slot),
        }
    }
}

impl World {
    /// After each step.
    pub fn judge(&self) -> Result<(), String> {
        if let Some(core) = &self.rm.core {
            core.check().map_err(|e| format!("resource manager: {e}"))?;
        }
        for machine in &self.machines {
            if let Some(core) = &machine.core {
                core.check().map_err(|e| format!("node {}: {e:?}", machine.id))?;
            }
            let used =
                machine.running.values().fold(Resource::default(), |sum, it| sum.plus(&it.start.resource));
            if !machine.total.fits(&used) {
                return Err(format!("node {} runs {used} and has {}", machine.id, machine.total));
            }
            for running in machine.running.values() {
                if let What::Master(master) = &running.what {
                    master.core.check().map_err(|e| format!("application master: {e}"))?;
                }
            }
        }
        if let Some((id, n)) = self.launches.iter().find(|(_, n)| **n > 1) {
            return Err(format!("{id} was launched {n} times"));
        }
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// When the resource manager first orders a start: the one that was ordered before it for the same slot (or as
    /// the same application's master) may only still run if the lease of its node is over. What that one replaced
    /// may still run anywhere: it is being swept, and fenced.
    pub fn judge_start(&mut self, start: &StartContainer) {
        let place = Place::of(start);
        let former = self.ordered.get(&place).copied();
        if former >= Some(start.id) {
            return;
        }
        self.ordered.insert(place.clone(), start.id);
        let Some(twin) = former.filter(|former| !self.given_up.contains(former)) else { return };
        self.judge_lease(twin, || format!("{place:?}: {} is ordered", start.id));
    }

    /// When the resource manager calls a node lost: its lease must be over. From then on whatever runs there may be
    /// replaced, whether this resource manager knows of it or not, even if the node comes back in time to be told to
    /// sweep it.
    pub fn judge_lost(&mut self, node: &NodeId) {
        let Some(machine) = self.machines.iter().find(|machine| machine.id == *node) else { return };
        for container in machine.running.keys().copied().collect::<Vec<_>>() {
            if self.given_up.insert(container) {
                self.judge_lease(container, || format!("{container} is called lost"));
            }
        }
    }

    fn judge_lease(&mut self, container: ContainerId, what: impl FnOnce() -> String) {
        let Some(node) = self.machine_of(container) else { return };
        let machine = &self.machines[node];
        if self.now < machine.lease_until {
            let what = what();
            self.broken =
                Some(format!("{what} while the lease of {} holds, where {container} still runs", machine.id));
        }
    }

    /// Long after the last fault.
    pub fn judge_rest(&self) -> Result<(), String> {
        let core = self.rm.core.as_ref().ok_or("the resource manager is down")?;
        let view = core.view(self.time());
        for app in &view.apps {
            if app.state != AppState::Running {
                return Err(format!("{} is {:?}: {}", app.app, app.state, app.diagnostics));
            }
            for slot in 0..app.containers_wanted {
                let here = self.workers_of(&app.app, slot);
                if here.len() != 1 || !here[0].1 {
                    return Err(format!("at rest, slot {slot} of {} has {here:?} (id, claimed)", app.app));
                }
            }
        }
        self.judge_models()?;
        let live: usize =
            view.apps.iter().map(|app| app.containers.iter().filter(|c| !c.state.is_exited()).count()).sum();
        let running: usize = self.machines.iter().map(|machine| machine.running.len()).sum();
        if live != running {
            return Err(format!("at rest, {running} processes run and the resource manager knows {live}"));
        }
        Ok(())
    }

    /// Every partition has a task, and every container works on what its job remembers.
    fn judge_models(&self) -> Result<(), String> {
        for running in self.machines.iter().flat_map(|machine| machine.running.values()) {
            let What::Worker(worker) = &running.what else { continue };
            let made =
                self.memory.get(&running.start.job).and_then(|memory| memory.remembered.model.as_ref());
            let made = made.ok_or("a container runs and its job remembers no model")?;
            let tasks: usize = made.model.containers.values().map(|c| c.tasks.len()).sum();
            if i32::try_from(tasks) != Ok(self.partitions) {
                return Err(format!("at rest, {tasks} tasks read {} partitions", self.partitions));
            }
            if worker.model.as_ref() != made.model.containers.get(&worker.slot) {
                return Err(format!("at rest, slot {} works on {:?}", worker.slot, worker.model));
            }
        }
        Ok(())
    }

    fn workers_of(&self, app: &AppId, slot: u32) -> Vec<(ContainerId, bool)> {
        let running = self.machines.iter().flat_map(|machine| &machine.running);
        running
            .filter(|(_, running)| running.start.app == *app)
            .filter_map(|(id, running)| match &running.what {
                What::Worker(worker) if worker.slot == slot => Some((*id, worker.claimed)),
                What::Worker(_) | What::Master(_) => None,
            })
            .collect()
    }

    /// Long after the stop.
    pub fn judge_end(&self) -> Result<(), String> {
        let core = self.rm.core.as_ref().ok_or("the resource manager is down")?;
        for app in core.view(self.time()).apps {
            if app.state != AppState::Finished {
                return Err(format!("after the stop {} is {:?}: {}", app.app, app.state, app.diagnostics));
            }
        }
        for machine in &self.machines {
            if let Some(id) = machine.running.keys().next() {
                return Err(format!("after the stop {id} runs on {}", machine.id));
            }
            if let Some(id) = machine.records.keys().next() {
                return Err(format!("after the stop {} still keeps the record of {id}", machine.id));
            }
        }
        Ok(())
    }
}

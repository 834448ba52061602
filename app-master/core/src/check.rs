//! The core's invariants.

use std::collections::BTreeSet;

use crate::core::{AmCore, Phase};
use crate::slot::SlotState;

/// An invariant that does not hold: a bug of the core.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invariant broken: {0}")]
pub struct Violation(pub String);

impl AmCore {
    /// Checks what must hold between any two verbs.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self) -> Result<(), Violation> {
        let bad = |text: String| Err(Violation(text));
        let mut seen = BTreeSet::new();
        for (number, slot) in &self.slots {
            if let Some(container) = slot.state.container() {
                if !seen.insert(container) {
                    return bad(format!("{container} is in two slots"));
                }
                if !self.containers.get(&container).is_some_and(|t| t.is_live() && t.slot == *number) {
                    return bad(format!(
                        "slot {number} has {container}, which is not a live container of it"
                    ));
                }
                if slot.newest != Some(container) {
                    return bad(format!("slot {number} has {container} but {:?} is newer", slot.newest));
                }
            }
            if let SlotState::Asked { request } = slot.state {
                if request.slot != *number
                    || request.attempt != self.identity.attempt
                    || request.try_no != slot.tries
                {
                    return bad(format!("slot {number} asks as {request}, its try is {}", slot.tries));
                }
                if self.phase != Phase::Running {
                    return bad(format!("slot {number} asks while the job does not run"));
                }
            }
        }
        if matches!(self.phase, Phase::Running | Phase::Ending(_)) {
            for (id, tracked) in &self.containers {
                let current = self.slots.get(&tracked.slot).is_some_and(|s| s.state.container() == Some(*id));
                let ending = matches!(self.phase, Phase::Ending(_));
                if tracked.is_live() && tracked.stop.is_none() && (!current || ending) {
                    return bad(format!("{id} is live, in no slot, and not being stopped"));
                }
            }
        }
        if let Phase::Over(_) = self.phase
            && self.containers.values().any(|t| t.is_live() && t.stop.is_none())
        {
            return bad("the job is over and a container lives".into());
        }
        Ok(())
    }
}

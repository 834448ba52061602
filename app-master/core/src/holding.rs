//! Slots that a user keeps empty for a moment, while where their tasks go on is moved. A hold that is not ended ends by
//! itself, so nothing stays down when the user's tool has died; a later move then finds newer owners and changes nothing.

use types::{ExitCause, Timestamp};

use crate::core::{AmCore, Phase, Slot};
use crate::ending::STOP_GRACE_MS;
use crate::event::Command;
use crate::slot::{SlotInput, SlotState};

/// The longest hold, ms.
const LONGEST_MS: u64 = 120_000;

impl AmCore {
    /// Has the containers of `slots` commit and stop, and starts none in them for `for_ms`; 0 ends it.
    pub fn hold(&mut self, now: Timestamp, slots: &[u32], for_ms: u64, out: &mut Vec<Command>) {
        if self.phase != Phase::Running {
            return;
        }
        for number in slots {
            let Some(slot) = self.slots.get_mut(number).filter(|s| !s.state.is_over()) else { continue };
            slot.held_until = (for_ms > 0).then(|| now.plus(for_ms.min(LONGEST_MS)));
            if for_ms == 0 {
                continue;
            }
            if let SlotState::Asked { request } = slot.state {
                slot.step(&SlotInput::Retry);
                out.push(Command::CancelAsk(request));
            }
            slot.waiting = vec!["held while a user moves where its tasks go on".into()];
            if let Some(id) = slot.state.container() {
                self.end_in_slot(id, "stops: a user moves where its tasks go on");
                self.stop_container(id, STOP_GRACE_MS, ExitCause::KilledByUser, out);
            }
        }
        self.ask_where_needed(now, out);
    }

    /// Ends the holds whose time has come.
    pub(crate) fn end_holds(&mut self, now: Timestamp) {
        for slot in self.slots.values_mut() {
            slot.held_until = slot.held_until.filter(|until| *until > now);
        }
    }
}

impl Slot {
    /// Whether it is to be asked for.
    pub(crate) fn is_needing(&self) -> bool {
        self.state == SlotState::Waiting && self.held_until.is_none()
    }
}

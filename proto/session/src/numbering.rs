//! Sequence numbers and cumulative acknowledgements of one session's two directions.
//!
//! Items are numbered from 1 in each direction of each session. An acknowledgement names the last item taken.
//! Nothing is replayed after a reconnect; the numbers tell a sender that its peer is stuck, and a receiver that
//! the stream below is broken.

/// So many items are unacknowledged that the peer must be stuck; the session is to be ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{unacked} items are not acknowledged; the peer is stuck")]
pub struct Stuck {
    /// How many.
    pub unacked: u64,
}

/// An item is missing or came twice: the session is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected item {expected} and got {got}")]
pub struct Gap {
    /// What should have come.
    pub expected: u64,
    /// What came.
    pub got: u64,
}

/// What was sent.
#[derive(Debug, Clone)]
pub struct Outbound {
    queued: u64,
    sent: u64,
    acked: u64,
    limit: u64,
}

impl Outbound {
    /// A direction in which at most `limit` items may be unacknowledged.
    #[must_use]
    pub fn new(limit: u64) -> Outbound {
        Outbound { queued: 0, sent: 0, acked: 0, limit }
    }

    /// Counts one further item that waits to be numbered. What waits counts as unacknowledged: a peer that does
    /// not read stops the stream below long before `limit` items could be numbered.
    ///
    /// # Errors
    /// The peer is stuck.
    pub fn queue(&mut self) -> Result<(), Stuck> {
        let unacked = self.queued + 1 - self.acked;
        if unacked > self.limit {
            return Err(Stuck { unacked });
        }
        self.queued += 1;
        Ok(())
    }

    /// Numbers the next `count` of the queued items; returns the first one's number.
    pub fn number(&mut self, count: u64) -> u64 {
        let first = self.sent + 1;
        self.sent += count;
        first
    }

    /// The peer took everything up to `seq`. Old news and numbers never sent change nothing.
    pub fn acknowledged(&mut self, seq: u64) {
        if seq <= self.sent {
            self.acked = self.acked.max(seq);
        }
    }
}

/// What was taken.
#[derive(Debug, Clone, Default)]
pub struct Inbound {
    taken: u64,
    told: u64,
}

impl Inbound {
    /// Takes `count` items of which the first has number `first`.
    ///
    /// # Errors
    /// It is not the next one.
    pub fn take(&mut self, first: u64, count: u64) -> Result<(), Gap> {
        let expected = self.taken + 1;
        if count > 0 && first != expected {
            return Err(Gap { expected, got: first });
        }
        self.taken += count;
        Ok(())
    }

    /// How many items were taken and not acknowledged.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.taken - self.told
    }

    /// The number to acknowledge with the frame that leaves now.
    pub fn acknowledge(&mut self) -> u64 {
        self.told = self.taken;
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn queue(out: &mut Outbound, count: u64) -> Result<(), Stuck> {
        (0..count).try_for_each(|_| out.queue())
    }

    #[test]
    fn a_sender_that_is_never_acknowledged_finds_its_peer_stuck() {
        let mut out = Outbound::new(10);
        queue(&mut out, 10).expect("up to the limit");
        assert_eq!(out.number(6), 1);
        assert_eq!(out.queue(), Err(Stuck { unacked: 11 }));
        out.acknowledged(4);
        queue(&mut out, 4).expect("four were acknowledged");
        assert_eq!(out.number(8), 7);
    }

    #[test]
    fn items_that_only_wait_count_too() {
        let mut out = Outbound::new(2);
        queue(&mut out, 2).expect("up to the limit");
        assert_eq!(out.queue(), Err(Stuck { unacked: 3 }));
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_changes_nothing() {
        let mut out = Outbound::new(2);
        out.acknowledged(u64::MAX);
        queue(&mut out, 2).expect("up to the limit");
        assert!(out.queue().is_err());
    }

    #[test]
    fn a_missing_item_breaks_the_session() {
        let mut taken = Inbound::default();
        taken.take(1, 3).expect("in order");
        assert_eq!(taken.take(5, 1), Err(Gap { expected: 4, got: 5 }));
        assert_eq!(taken.take(3, 1), Err(Gap { expected: 4, got: 3 }));
    }

    proptest! {
        #[test]
        fn what_is_taken_in_order_is_acknowledged_and_never_stuck(batches in prop::collection::vec(1u64..50, 1..50)) {
            let mut out = Outbound::new(50);
            let mut taken = Inbound::default();
            for count in batches {
                queue(&mut out, count).expect("everything before was acknowledged");
                let first = out.number(count);
                taken.take(first, count).expect("in order");
                prop_assert_eq!(taken.owed(), count);
                out.acknowledged(taken.acknowledge());
                prop_assert_eq!(taken.owed(), 0);
            }
        }
    }
}

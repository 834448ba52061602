//! Lease arithmetic: the node may rely on its place in the cluster until the send time of the newest beat that
//! the resource manager acknowledged plus the lease's length. The resource manager counts from a later moment
//! (the beat's arrival), so it never replaces a node that still believes in its lease.

use types::Timestamp;

/// The node's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// No session yet in this life of the node manager.
    None,
    /// It holds until this moment (exclusive).
    Until(Timestamp),
    /// It ended, and no session was opened since.
    Lapsed,
}

impl Lease {
    /// Whether it holds at `now`.
    #[must_use]
    pub fn holds(self, now: Timestamp) -> bool {
        matches!(self, Lease::Until(end) if now < end)
    }

    /// After the acknowledgement of something sent at `sent_at`. Never shortens; an acknowledgement of the future
    /// is not ours and changes nothing.
    #[must_use]
    pub fn acknowledged(self, now: Timestamp, sent_at: Timestamp, lease_ms: u64) -> Lease {
        if sent_at > now {
            return self;
        }
        let end = sent_at.plus(lease_ms);
        match self {
            Lease::Until(old) => Lease::Until(old.max(end)),
            Lease::None | Lease::Lapsed => Lease::Until(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_send_time_of_the_newest_acked_beat() {
        let lease = Lease::None.acknowledged(Timestamp(130), Timestamp(100), 5_000);
        assert_eq!(lease, Lease::Until(Timestamp(5_100)));
        assert_eq!(lease.acknowledged(Timestamp(140), Timestamp(50), 5_000), lease);
        assert_eq!(lease.acknowledged(Timestamp(700), Timestamp(600), 5_000), Lease::Until(Timestamp(5_600)));
        assert!(lease.holds(Timestamp(5_099)));
        assert!(!lease.holds(Timestamp(5_100)));
    }

    #[test]
    fn an_ack_of_a_beat_from_the_future_is_ignored() {
        assert_eq!(Lease::None.acknowledged(Timestamp(10), Timestamp(11), 5_000), Lease::None);
    }
}

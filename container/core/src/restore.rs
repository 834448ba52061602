//! What of a store must be restored: whether the rows on this disk are still a prefix of the changelog.
//!
//! An interrupted restore is one too: it has left its rows with the offset that it had come to, and with the time from
//! which tombstones beyond that offset are needed, which is when its first row was read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Written into a store's database in the same batch as the rows: how far of the changelog they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetsRow {
    /// The changelog topic's id; a recreated topic has another.
    pub topic_id: String,
    /// The first changelog offset that the rows do not hold.
    pub offset: u64,
    /// When that was true, unix ms.
    pub flushed_unix_ms: u64,
    /// For how long the topic kept tombstones then, ms. Where that was made longer since, what came after the rows was
    /// still kept by the shorter time. None: a row of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps_tombstones_ms: Option<u64>,
}

impl OffsetsRow {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers always serialise")
    }
    /// Reads it; none if it is not one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<OffsetsRow> {
        serde_json::from_slice(bytes).ok()
    }
}

/// The changelog as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changelog {
    /// The topic's id.
    pub topic_id: String,
    /// The partition's first offset.
    pub low: u64,
    /// The high watermark of the start order's last step: restore to exactly there.
    pub high: u64,
    /// For how long the topic keeps tombstones, ms (`delete.retention.ms`).
    pub keeps_tombstones_ms: u64,
    /// It was cut below what is remembered of it, and may have grown again since.
    pub was_cut: bool,
}

impl Changelog {
    /// For how long after they were written rows with this offsets row may be trusted to miss no tombstone, ms.
    #[must_use]
    pub fn trusts_ms(&self, local: &OffsetsRow) -> u64 {
        // An earlier version did not look at the topic: no more is certain than Kafka's default.
        self.keeps_tombstones_ms.min(local.keeps_tombstones_ms.unwrap_or(types::DELETE_RETENTION_MS))
    }
}

/// Where a restore reads from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Keep the local rows, read from here on.
    FromLocal {
        /// The first offset to read.
        from: u64,
    },
    /// Empty the store, read the whole changelog.
    Full(Why),
}

/// Why local rows are of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There are none, or they were left in the middle of a full restore.
    NoLocalState,
    /// They are of another topic, since deleted and made again.
    TopicRecreated,
    /// The changelog no longer has what comes next.
    Truncated,
    /// The changelog ends before them.
    AheadOfChangelog,
    /// So old that a tombstone after them may be compacted away.
    TooOld,
    /// Written at a time that is yet to come: how old they are is not known.
    ClockWentBack,
    /// Their database is damaged.
    Corrupt,
    /// The store is one in memory.
    InMemory,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::NoLocalState => "no local state",
            Why::TopicRecreated => "the changelog topic was recreated",
            Why::Truncated => "the changelog starts after the local state",
            Why::AheadOfChangelog => "the changelog ends before the local state",
            Why::TooOld => "local state is older than the changelog keeps tombstones",
            Why::ClockWentBack => "the clock went back, so the age of local state is not known",
            Why::Corrupt => "local state was damaged and is set aside",
            Why::InMemory => "a store in memory",
        })
    }
}

/// Decides from the local offsets row, if there is one, and the changelog; `now_unix_ms` is the wall clock.
#[must_use]
pub fn plan(local: Option<&OffsetsRow>, changelog: &Changelog, now_unix_ms: u64) -> Plan {
    let Some(local) = local else { return Plan::Full(Why::NoLocalState) };
    if local.topic_id != changelog.topic_id {
        return Plan::Full(Why::TopicRecreated);
    }
    if local.offset < changelog.low {
        return Plan::Full(Why::Truncated);
    }
    if local.offset > changelog.high {
        return Plan::Full(Why::AheadOfChangelog);
    }
    // A small step back of the clock is taken for none: it is small beside what is kept.
    let trusts_ms = changelog.trusts_ms(local);
    if local.flushed_unix_ms.saturating_sub(now_unix_ms) > trusts_ms / 8 {
        return Plan::Full(Why::ClockWentBack);
    }
    if now_unix_ms.saturating_sub(local.flushed_unix_ms) >= trusts_ms {
        return Plan::Full(Why::TooOld);
    }
    Plan::FromLocal { from: local.offset }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400_000;

    fn changelog() -> Changelog {
        Changelog { topic_id: "a".into(), low: 10, high: 100, keeps_tombstones_ms: DAY, was_cut: false }
    }
    fn row(topic_id: &str, offset: u64, flushed_unix_ms: u64) -> OffsetsRow {
        let keeps_tombstones_ms = Some(DAY);
        OffsetsRow { topic_id: topic_id.into(), offset, flushed_unix_ms, keeps_tombstones_ms }
    }

    #[test]
    fn tombstones_that_are_kept_for_longer_since_do_not_make_older_rows_good() {
        let week = Changelog { keeps_tombstones_ms: 7 * DAY, ..changelog() };
        let hour = Changelog { keeps_tombstones_ms: DAY / 24, ..changelog() };
        assert_eq!(plan(Some(&row("a", 50, 0)), &week, DAY - 1), Plan::FromLocal { from: 50 });
        assert_eq!(plan(Some(&row("a", 50, 0)), &week, DAY), Plan::Full(Why::TooOld));
        assert_eq!(plan(Some(&row("a", 50, 0)), &hour, DAY / 24), Plan::Full(Why::TooOld));
        let since = OffsetsRow { keeps_tombstones_ms: Some(7 * DAY), ..row("a", 50, 0) };
        assert_eq!(plan(Some(&since), &week, 6 * DAY), Plan::FromLocal { from: 50 });
        let earlier = br#"{"topic_id":"a","offset":50,"flushed_unix_ms":0}"#;
        let earlier = OffsetsRow::decode(earlier).expect("a row of an earlier version");
        assert_eq!(plan(Some(&earlier), &week, DAY), Plan::Full(Why::TooOld));
    }

    #[test]
    fn valid_local_state_is_used_from_its_offset_on() {
        assert_eq!(plan(Some(&row("a", 10, 0)), &changelog(), DAY - 1), Plan::FromLocal { from: 10 });
        assert_eq!(plan(Some(&row("a", 100, 5)), &changelog(), 0), Plan::FromLocal { from: 100 });
    }

    #[test]
    fn every_reason_against_local_state_is_told() {
        assert_eq!(plan(None, &changelog(), 0), Plan::Full(Why::NoLocalState));
        assert_eq!(plan(Some(&row("b", 50, 0)), &changelog(), 0), Plan::Full(Why::TopicRecreated));
        assert_eq!(plan(Some(&row("a", 9, 0)), &changelog(), 0), Plan::Full(Why::Truncated));
        assert_eq!(plan(Some(&row("a", 101, 0)), &changelog(), 0), Plan::Full(Why::AheadOfChangelog));
        assert_eq!(plan(Some(&row("a", 50, 0)), &changelog(), DAY), Plan::Full(Why::TooOld));
        let from_the_future = |ms| plan(Some(&row("a", 50, 5 + ms)), &changelog(), 5);
        assert_eq!(from_the_future(DAY / 8), Plan::FromLocal { from: 50 });
        assert_eq!(from_the_future(DAY / 8 + 1), Plan::Full(Why::ClockWentBack));
    }

    proptest! {
        #[test]
        fn an_offsets_row_is_read_as_written_and_foreign_bytes_are_none(
            topic_id in ".*", offset: u64, at: u64, foreign in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let row = row(&topic_id, offset, at);
            prop_assert_eq!(OffsetsRow::decode(&row.encode()), Some(row));
            prop_assert_eq!(OffsetsRow::decode(&foreign), None);
        }

        #[test]
        fn a_plan_never_reads_outside_the_changelog(
            offset in 0u64..200, low in 0u64..100, len in 0u64..100, age in 0u64..2 * DAY,
        ) {
            let changelog = Changelog { low, high: low + len, ..changelog() };
            if let Plan::FromLocal { from } = plan(Some(&row("a", offset, 0)), &changelog, age) {
                prop_assert!(from >= low && from <= low + len && age < DAY);
            }
        }
    }
}

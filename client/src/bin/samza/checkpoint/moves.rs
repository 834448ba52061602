//! Start points that are to be moved: `kafka.flights=oldest`, `kafka.flights:3=offset:100`.

use std::str::FromStr;

use job_file::start_point;
use types::{OffsetDefault, SystemStream, SystemStreamPartition};

/// One `--set`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) stream: SystemStream,
    /// None: all.
    pub(crate) partition: Option<i32>,
    pub(crate) to: OffsetDefault,
}

impl FromStr for Move {
    type Err = String;

    fn from_str(text: &str) -> Result<Move, String> {
        const FORM: &str = "valid: <system>.<stream>[:<partition>]=<start point>, such as kafka.flights=oldest or \
                            kafka.flights:3=offset:100";
        let (what, to) = text.split_once('=').ok_or_else(|| format!("it has no `=`; {FORM}"))?;
        let (name, partition) =
            what.rsplit_once(':').map_or((what, None), |(name, number)| (name, Some(number)));
        let stream = SystemStream::parse(name).ok_or_else(|| format!("`{name}` is not a stream; {FORM}"))?;
        let partition = match partition {
            None => None,
            Some(number) => match number.parse::<i32>() {
                Ok(number) if number >= 0 => Some(number),
                Ok(_) | Err(_) => return Err(format!("`{number}` is not a partition; {FORM}")),
            },
        };
        Ok(Move { stream, partition, to: start_point(to)? })
    }
}

/// Where `partition` is to start, if one of `moves` says; the last that does goes first.
pub(crate) fn target(moves: &[Move], partition: &SystemStreamPartition) -> Option<OffsetDefault> {
    let names = |m: &&Move| {
        m.stream == partition.stream && m.partition.is_none_or(|number| number == partition.partition)
    };
    moves.iter().rev().find(names).map(|m| m.to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(partition: i32) -> SystemStreamPartition {
        let stream = SystemStream { system: "kafka".into(), stream: "flights".into() };
        SystemStreamPartition { stream, partition }
    }

    #[test]
    fn a_move_names_a_stream_or_one_partition_of_it() {
        let all: Move = "kafka.flights=oldest".parse().expect("valid");
        let one: Move = "kafka.flights:3=offset:100".parse().expect("valid");
        assert_eq!((all.partition, all.to), (None, OffsetDefault::Oldest));
        assert_eq!((one.partition, one.to), (Some(3), OffsetDefault::Offset(100)));
        let moves = [all, one];
        assert_eq!(target(&moves, &of(3)), Some(OffsetDefault::Offset(100)), "the last that names it");
        assert_eq!(target(&moves, &of(2)), Some(OffsetDefault::Oldest));
        assert_eq!(target(&moves[1..], &of(2)), None);
    }

    #[test]
    fn what_is_no_move_is_told_with_what_would_be() {
        let says = |text: &str| text.parse::<Move>().expect_err("not valid");
        assert!(says("kafka.flights").starts_with("it has no `=`; valid: "), "{}", says("kafka.flights"));
        assert!(says("flights=oldest").starts_with("`flights` is not a stream"));
        assert!(says("kafka.flights:x=oldest").starts_with("`x` is not a partition"));
        assert!(says("kafka.flights:-1=oldest").starts_with("`-1` is not a partition"));
        assert!(says("kafka.flights=newset").contains("did you mean \"newest\"?"));
        let time: Move = "kafka.flights=timestamp:2026-01-31T12:00:00Z".parse().expect("valid");
        assert_eq!(time.to, OffsetDefault::Timestamp(1_769_860_800_000));
    }
}

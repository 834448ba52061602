//! What a topic of Kafka can be configured to do: names, values and Kafka's defaults.

/// What values a setting takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingKind {
    /// An integer, at least this.
    Integer(i64),
    /// A number from 0 to 1.
    Ratio,
    /// `true` or `false`.
    Boolean,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// A list of these, comma separated.
    ListOf(&'static [&'static str]),
    /// Any text.
    Text,
}

/// One setting of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSetting {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: SettingKind,
    /// Kafka's default; none: Kafka 4 no longer has the setting.
    pub default: Option<&'static str>,
}

const fn of(name: &'static str, kind: SettingKind, default: &'static str) -> TopicSetting {
    TopicSetting { name, kind, default: Some(default) }
}

const fn old(name: &'static str, kind: SettingKind) -> TopicSetting {
    TopicSetting { name, kind, default: None }
}

use SettingKind::{Boolean, Integer, ListOf, OneOf, Ratio, Text};

const EVER: &str = "9223372036854775807";

/// Every setting of a topic, those of Kafka 4 and a few that it has left behind.
pub const TOPIC_SETTINGS: &[TopicSetting] = &[
    of("cleanup.policy", ListOf(&["compact", "delete"]), "delete"),
    of("compression.gzip.level", Integer(-1), "-1"),
    of("compression.lz4.level", Integer(1), "9"),
    of("compression.type", OneOf(&["uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"]), "producer"),
    of("compression.zstd.level", Integer(-131_072), "3"),
    of("delete.retention.ms", Integer(0), "86400000"),
    of("file.delete.delay.ms", Integer(0), "60000"),
    of("flush.messages", Integer(1), EVER),
    of("flush.ms", Integer(0), EVER),
    of("follower.replication.throttled.replicas", Text, ""),
    of("index.interval.bytes", Integer(0), "4096"),
    of("leader.replication.throttled.replicas", Text, ""),
    of("local.retention.bytes", Integer(-2), "-2"),
    of("local.retention.ms", Integer(-2), "-2"),
    of("max.compaction.lag.ms", Integer(1), EVER),
    of("max.message.bytes", Integer(0), "1048588"),
    of("message.timestamp.after.max.ms", Integer(0), "3600000"),
    of("message.timestamp.before.max.ms", Integer(0), EVER),
    of("message.timestamp.type", OneOf(&["CreateTime", "LogAppendTime"]), "CreateTime"),
    of("min.cleanable.dirty.ratio", Ratio, "0.5"),
    of("min.compaction.lag.ms", Integer(0), "0"),
    of("min.insync.replicas", Integer(1), "1"),
    of("preallocate", Boolean, "false"),
    of("remote.log.copy.disable", Boolean, "false"),
    of("remote.log.delete.on.disable", Boolean, "false"),
    of("remote.storage.enable", Boolean, "false"),
    of("retention.bytes", Integer(-1), "-1"),
    of("retention.ms", Integer(-1), "604800000"),
    of("segment.bytes", Integer(1_048_576), "1073741824"),
    of("segment.index.bytes", Integer(4), "10485760"),
    of("segment.jitter.ms", Integer(0), "0"),
    of("segment.ms", Integer(1), "604800000"),
    of("unclean.leader.election.enable", Boolean, "false"),
    old("message.downconversion.enable", Boolean),
    old("message.format.version", Text),
    old("message.timestamp.difference.max.ms", Integer(0)),
];

/// The setting of this name.
#[must_use]
pub fn topic_setting(name: &str) -> Option<&'static TopicSetting> {
    TOPIC_SETTINGS.iter().find(|setting| setting.name == name)
}

impl TopicSetting {
    /// Whether it takes `value`.
    ///
    /// # Errors
    /// What would be valid.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let (valid, form) = match self.kind {
            Integer(least) => {
                (value.parse::<i64>().is_ok_and(|n| n >= least), format!("an integer of at least {least}"))
            }
            Ratio => {
                let is_ratio = value.parse::<f64>().is_ok_and(|n| (0.0..=1.0).contains(&n));
                (is_ratio, "a number from 0 to 1".to_owned())
            }
            Boolean => (matches!(value, "true" | "false"), "true or false".to_owned()),
            OneOf(words) => (words.contains(&value), words.join(", ")),
            ListOf(words) => {
                let known = value.split(',').all(|word| words.contains(&word.trim()));
                (known, format!("{}, or both with a comma between", words.join(", ")))
            }
            Text => (true, String::new()),
        };
        if valid { Ok(()) } else { Err(form) }
    }
}

/// Whether every setting is one of Kafka's with a value that it takes, as a broker would say.
///
/// # Errors
/// What a broker would answer.
pub fn check_topic_settings<'s>(
    settings: impl IntoIterator<Item = (&'s String, &'s String)>,
) -> Result<(), String> {
    for (name, value) in settings {
        let known = topic_setting(name).ok_or_else(|| format!("unknown topic config name: {name}"))?;
        known.check(value).map_err(|form| format!("invalid value {value} for {name}: {form}"))?;
    }
    Ok(())
}

//! `[systems.<name>]` and `[streams."<system>.<stream>"]`. Which keys and values a stream may have follows from its
//! system's type.

use std::collections::BTreeMap;

use toml::de::DeValue;
use types::{OffsetLost, StreamSpec, SystemKind, SystemSpec};

use crate::client_settings::{Client, client_setting};
use crate::sections::priority;
use crate::security::security;
use crate::start_point::start_point;
use crate::table::Section;
use crate::value::{
    boolean, bootstrap, field, file_path, folder, input, integer, one_of, serde_name, topic, wrong_type,
};

/// The systems; the files that secrets of theirs are read from are added to `files`.
pub(crate) fn systems(
    root: &Section<'_, '_>,
    files: &mut BTreeMap<String, String>,
) -> BTreeMap<String, SystemSpec> {
    let mut systems = BTreeMap::new();
    for (system, mut section) in root.named("systems", "systems.*") {
        if !system.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') || system.is_empty() {
            section.file.bad(&section.path, "a system's name has letters, digits, `_` and `-` only");
        }
        let kinds = [("kafka", SystemKind::Kafka), ("jsonl", SystemKind::Jsonl)];
        let kind = section.required("type", "type = \"kafka\"", |value| one_of(value, &kinds).map(Some));
        let spec = match kind {
            Some(SystemKind::Jsonl) => jsonl(&section),
            // Without a type it is read as Kafka's: what is wrong with its other keys is told in the same go.
            Some(SystemKind::Kafka) | None => kafka(&mut section, kind, &system, files),
        };
        section.finish();
        systems.insert(system, spec);
    }
    systems
}

fn kafka(
    section: &mut Section<'_, '_>,
    kind: Option<SystemKind>,
    system: &str,
    files: &mut BTreeMap<String, String>,
) -> SystemSpec {
    if kind.is_some() {
        not_of_this_type(section, "path", "folder of files", SystemKind::Kafka);
    }
    let settings = |section: &Section<'_, '_>, key, client| {
        section.settings(key, &|name, value, all| client_setting(client, system, (name, value), all))
    };
    SystemSpec {
        kind: SystemKind::Kafka,
        bootstrap: section.required("bootstrap", "bootstrap = \"127.0.0.1:9092\"", bootstrap),
        consumer: settings(section, "consumer", Client::Consumer),
        producer: settings(section, "producer", Client::Producer),
        replication: section
            .optional("replication", |value| integer(value, 1, 1_000))
            .map(|value| u16::try_from(value).expect("the reader's range fits")),
        path: None,
        security: security(section, system, files),
    }
}

fn jsonl(section: &Section<'_, '_>) -> SystemSpec {
    for key in ["bootstrap", "security", "consumer", "producer", "replication"] {
        not_of_this_type(section, key, "brokers", SystemKind::Jsonl);
    }
    SystemSpec {
        kind: SystemKind::Jsonl,
        bootstrap: String::new(),
        consumer: BTreeMap::new(),
        producer: BTreeMap::new(),
        replication: None,
        path: section.optional("path", folder),
        security: None,
    }
}

/// Reports `key` if it is there, for the system has no such thing.
fn not_of_this_type(section: &Section<'_, '_>, key: &'static str, thing: &str, kind: SystemKind) {
    let refusal = format!("a system of type \"{kind}\" has no {thing}; leave it out");
    let _: Option<()> = section.optional(key, |_| Err(refusal));
}

pub(crate) fn streams(
    root: &Section<'_, '_>,
    systems: &BTreeMap<String, SystemSpec>,
) -> BTreeMap<String, StreamSpec> {
    let mut streams = BTreeMap::new();
    for (name, section) in root.named("streams", "streams.*") {
        if let (false, Some(inner)) = (name.contains('.'), section.holds_only_tables()) {
            let message = format!("is not a stream; stream names are quoted: [streams.\"{name}.{inner}\"]");
            section.file.bad(&section.path, &message);
            continue;
        }
        let stream = match input(&name) {
            Ok(stream) => stream,
            Err(refusal) => {
                section.file.bad(&section.path, &refusal);
                continue;
            }
        };
        let kind = systems.get(&stream.system).map_or(SystemKind::Kafka, |system| system.kind);
        if stream.pattern().is_some() {
            let refusal = "a pattern stands for topics by their names; leave it out";
            let _: Option<()> = section.optional("topic", |_| Err(refusal.to_owned()));
        }
        streams.insert(name, one(&section, kind, &stream.stream));
        section.finish();
    }
    streams
}

fn one(section: &Section<'_, '_>, kind: SystemKind, name: &str) -> StreamSpec {
    let default = StreamSpec::default_on(kind, name);
    let read_topic = match kind {
        SystemKind::Kafka => topic,
        SystemKind::Jsonl => file_path,
    };
    let of_lines = |what: &str| match kind {
        SystemKind::Kafka => {
            Err(format!("it is for systems of type \"jsonl\"; messages of Kafka have {what} of their own"))
        }
        SystemKind::Jsonl => Ok(()),
    };
    let losses = [("fail", OffsetLost::Fail), ("oldest", OffsetLost::Oldest), ("newest", OffsetLost::Newest)];
    let is_pattern = name.starts_with('/');
    let own_topic = if is_pattern { None } else { section.optional("topic", read_topic) };
    StreamSpec {
        topic: own_topic.unwrap_or(default.topic),
        key_serde: section.optional("key-serde", serde_name),
        serde: section.optional("serde", serde_name),
        key: section.optional("key", |value| of_lines("keys").and_then(|()| field(value))),
        timestamp: section.optional("timestamp", |value| of_lines("times").and_then(|()| field(value))),
        envelope: section.optional("envelope", |value| of_lines("parts").and_then(|()| boolean(value))),
        offset_default: section
            .optional("offset-default", |value| match value {
                DeValue::String(text) => start_point(text),
                DeValue::Datetime(date) => Err(format!("did you mean \"timestamp:{date}\"?")),
                other => Err(wrong_type(other, "a string, such as \"oldest\"")),
            })
            .unwrap_or(default.offset_default),
        reset_offset: section.optional("reset-offset", boolean).unwrap_or(default.reset_offset),
        offset_lost: section
            .optional("offset-lost", |value| one_of(value, &losses))
            .unwrap_or(default.offset_lost),
        bounded: section.optional("bounded", boolean).unwrap_or(default.bounded),
        bootstrap: section.optional("bootstrap", boolean).unwrap_or(default.bootstrap),
        priority: priority(section),
        broadcast: section.optional("broadcast", boolean).unwrap_or(default.broadcast),
    }
}

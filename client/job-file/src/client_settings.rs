//! `[systems.<name>] consumer, producer`: settings of librdkafka, known by name and by what they may be.

use std::collections::BTreeMap;

use types::{ClientSetting, is_same_setting, not_the_jobs, security_key};

use crate::keys::nearest;
use crate::value::{Refusal, shown};

/// Whose settings a table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Consumer,
    Producer,
}

/// Names that Java's clients have and librdkafka has under another name.
const JAVA: &[(&str, &str)] = &[
    ("fetch.max.wait.ms", "fetch.wait.max.ms"),
    ("buffer.memory", "queue.buffering.max.kbytes"),
    ("max.request.size", "message.max.bytes"),
    ("max.block.ms", "message.timeout.ms"),
    ("send.buffer.bytes", "socket.send.buffer.bytes"),
    ("receive.buffer.bytes", "socket.receive.buffer.bytes"),
];

/// Whether the job may set `name` to `value` for its clients of this kind, all of whose settings are `all`.
pub(crate) fn client_setting(
    client: Client,
    system: &str,
    (name, value): (&str, &str),
    all: &BTreeMap<String, String>,
) -> Result<(), Refusal> {
    if let Some(instead) = not_the_jobs(name) {
        return Err(format!("is set by the runtime: {instead}"));
    }
    if let Some(key) = security_key(name) {
        return Err(format!(
            "security is given once for all clients: `{key}` in [systems.{system}.security] (docs/job-file.md)"
        ));
    }
    let (ours, other) = match client {
        Client::Consumer => ("consumer", "producer"),
        Client::Producer => ("producer", "consumer"),
    };
    let of_kind = |setting: &ClientSetting| match client {
        Client::Consumer => setting.consumer,
        Client::Producer => setting.producer,
    };
    let settable = |name: &str| ClientSetting::find(name).is_some_and(|s| of_kind(&s) && is_the_jobs(&s));
    let Some(setting) = ClientSetting::find(name) else { return Err(no_such_setting(name, &settable)) };
    if !of_kind(&setting) {
        return Err(format!(
            "is a setting of {other}s; give it in `systems.{system}.{other}`, not in `{ours}`"
        ));
    }
    if let Some(twin) = all.keys().find(|other| *other != name && is_same_setting(other, name)) {
        return Err(format!("and `{twin}` are the same setting; give one of them"));
    }
    valid_value(name, value, &settable)?;
    with_the_others(setting.canonical(), value, all)
}

/// What one setting may be beside the others.
fn with_the_others(name: &str, value: &str, all: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let number = |name: &str| {
        let found = all.iter().find(|(other, _)| is_same_setting(other, name));
        found.and_then(|(_, value)| value.trim().parse::<i64>().ok())
    };
    let most = match name {
        // Of transactions: one that is still being sent cannot be committed.
        "message.timeout.ms" => {
            Some(("transaction.timeout.ms", number("transaction.timeout.ms").unwrap_or(60_000)))
        }
        "reconnect.backoff.ms" => {
            Some(("reconnect.backoff.max.ms", number("reconnect.backoff.max.ms").unwrap_or(10_000)))
        }
        "retry.backoff.ms" => Some(("retry.backoff.max.ms", number("retry.backoff.max.ms").unwrap_or(1_000))),
        "fetch.max.bytes" => {
            number("receive.message.max.bytes").map(|most| ("receive.message.max.bytes", most - 512))
        }
        "fetch.wait.max.ms" => {
            Some(("socket.timeout.ms", number("socket.timeout.ms").unwrap_or(60_000) - 1_000))
        }
        _ => None,
    };
    let least = i64::from(name == "message.timeout.ms");
    match (most, value.trim().parse::<i64>()) {
        (Some((other, most)), Ok(value)) if !(least..=most).contains(&value) => Err(format!(
            "{value} does not go with `{other}`; valid: {least} to {most}, or set `{other}` higher"
        )),
        _ => Ok(()),
    }
}

fn is_the_jobs(setting: &ClientSetting) -> bool {
    setting.is_text() && not_the_jobs(setting.name).is_none() && security_key(setting.name).is_none()
}

/// Whether `value` is one that the setting `name` takes; `settable` tells which names could be meant.
pub(crate) fn valid_value(name: &str, value: &str, settable: &dyn Fn(&str) -> bool) -> Result<(), Refusal> {
    let Some(setting) = ClientSetting::find(name) else { return Err(no_such_setting(name, settable)) };
    if !setting.is_text() {
        return Err("is set by a program, not by a file; leave it out".to_owned());
    }
    match setting.invalid(value) {
        Some(valid) => Err(format!("\"{}\" is not a value for it; valid: {valid}", shown(value))),
        None => Ok(()),
    }
}

/// That there is no `name`, and what may have been meant.
pub(crate) fn no_such_setting(name: &str, settable: &dyn Fn(&str) -> bool) -> Refusal {
    let java = JAVA.iter().find(|(java, _)| *java == name).map(|(_, ours)| *ours);
    let names = ClientSetting::all().map(|setting| setting.name).filter(|name| settable(name));
    let hint = java.filter(|name| settable(name)).or_else(|| nearest(name, names));
    let hint = hint.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    format!("librdkafka has no such setting{hint}")
}

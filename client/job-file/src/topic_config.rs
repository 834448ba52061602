//! Settings of the job's own topics: known names, valid values, and none that would lose state.

use std::collections::BTreeMap;

use toml::de::DeValue;
use types::{JobSpec, StoreSpec, TOPIC_SETTINGS, topic_setting};

use crate::keys::nearest;
use crate::table::File;
use crate::value::{Refusal, hinted, settings, shown};

/// Names of settings that brokers of other makers have beside Kafka's.
const OTHER_MAKERS: [&str; 2] = ["confluent.", "redpanda."];

/// Settings of a topic of the job's own.
pub(crate) fn topic_config(value: &DeValue<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let settings = settings(value)?;
    for (name, value) in &settings {
        if OTHER_MAKERS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let Some(setting) = topic_setting(name) else {
            let names = TOPIC_SETTINGS.iter().map(|setting| setting.name);
            let hint = nearest(name, names).map(|name| format!("`{name}`"));
            let what = format!("`{}` is not a setting of a topic", shown(name));
            return Err(hinted(&what, hint, ": the topic settings of Kafka, such as `segment.bytes`"));
        };
        setting
            .check(value)
            .map_err(|form| format!("`{name}`: \"{}\" is not valid; valid: {form}", shown(value)))?;
        if name == "unclean.leader.election.enable" && value == "true" {
            return Err(format!("`{name} = true` would lose committed rows with a broker; leave it out"));
        }
    }
    Ok(settings)
}

/// Of the topics for positions, owners and the job model.
pub(crate) fn metadata_config(value: &DeValue<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let settings = topic_config(value)?;
    match settings.get("cleanup.policy") {
        Some(policy) if policy.trim() != "compact" => Err(format!(
            "`cleanup.policy = \"{}\"` would lose positions and owners of tasks; valid: \"compact\", or leave it out",
            shown(policy)
        )),
        _ => Ok(settings),
    }
}

/// Reports settings of a store's changelog that its other keys do not bear.
pub(crate) fn changelog(file: &File<'_>, name: &str, store: &StoreSpec) {
    let key = format!("stores.{name}.changelog-config");
    let set = |name: &str| store.changelog_config.get(name);
    let number = |name: &str| set(name).and_then(|value| value.parse::<i64>().ok());
    let deletes = set("cleanup.policy").map(|policy| policy.contains("delete"));
    if let Some(policy) = set("cleanup.policy").filter(|policy| !policy.contains("compact")) {
        file.bad(
            &key,
            &format!("`cleanup.policy = \"{policy}\"` would lose rows by their age; valid: \"compact\", or leave it out"),
        );
    } else if deletes == Some(true) && store.ttl_ms.is_none() {
        let told = "`cleanup.policy` with \"delete\" would lose rows of a store that is to keep them; give the store a \
                    `ttl`, which sets it, or leave it out";
        file.bad(&key, told);
    }
    let ttl = store.ttl_ms.and_then(|ttl| i64::try_from(ttl).ok()).filter(|_| deletes != Some(false));
    if let (Some(ttl), Some(ms)) = (ttl, number("retention.ms"))
        && ms != -1
        && ms < ttl
    {
        file.bad(
            &key,
            &format!("`retention.ms = {ms}` would lose rows before the store's ttl of {ttl} ms is over; valid: {ttl} or more, or leave it out"),
        );
    }
    if let (Some(_), Some(bytes)) = (ttl, number("retention.bytes").filter(|bytes| *bytes != -1)) {
        file.bad(
            &key,
            &format!(
                "`retention.bytes = {bytes}` would lose rows before the store's ttl is over; leave it out"
            ),
        );
    }
    let least = i64::try_from(store.max_value_bytes).unwrap_or(i64::MAX);
    if let Some(bytes) = number("max.message.bytes").filter(|bytes| *bytes <= least) {
        file.bad(
            &key,
            &format!(
                "`max.message.bytes = {bytes}` refuses rows that `stores.{name}.max-value` allows; valid: more than {least}, \
                 or leave it out"
            ),
        );
    }
}

/// Reports topics that would wait for more copies than they have.
pub(crate) fn in_sync(file: &File<'_>, spec: &JobSpec) {
    let home = types::metadata_system(spec).unwrap_or_default();
    let metadata = &spec.metadata;
    let mut all = vec![
        ("job.coordinator-config".to_owned(), &home, &metadata.coordinator_config),
        ("task.checkpoint-config".to_owned(), &home, &metadata.checkpoint_config),
    ];
    all.extend(spec.stores.iter().map(|(name, store)| {
        let key = format!("stores.{name}.changelog-config");
        (key, &store.changelog_system, &store.changelog_config)
    }));
    for (key, system, config) in all {
        let copies = spec.systems.get(system).and_then(|system| system.replication);
        let least = config.get("min.insync.replicas").and_then(|value| value.parse::<u32>().ok());
        if let (Some(copies), Some(least)) = (copies, least)
            && least > u32::from(copies)
        {
            file.bad(
                &key,
                &format!(
                    "`min.insync.replicas = {least}` is more than the copies that `systems.{system}.replication` asks for, so \
                     that no commit would succeed; valid: 1 to {copies}"
                ),
            );
        }
    }
}

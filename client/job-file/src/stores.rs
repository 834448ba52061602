//! `[stores.<name>]`, and the store that timers are kept in.

use std::collections::BTreeMap;

use toml::de::DeValue;
use types::{
    Compression, JobSpec, OnLargeValue, StateLost, StoreKind, StoreSpec, TIMERS_STORE, changelog_topic,
};

use crate::table::Section;
use crate::topic_config;
use crate::value::{
    boolean, integer, one_of, serde_name, size, some_duration, state_lost, text, topic, valid_name,
    wrong_type,
};

pub(crate) fn stores(root: &Section<'_, '_>, spec: &JobSpec) -> BTreeMap<String, StoreSpec> {
    let mut stores = BTreeMap::new();
    let system = default_system(spec);
    for (store, section) in root.named("stores", "stores.*") {
        if let Err(refusal) = valid_name(&store) {
            section.file.bad(&section.path, &refusal);
        }
        if store == "default" {
            section.file.bad(&section.path, "the name \"default\" is taken; choose another");
        }
        if store == TIMERS_STORE && spec.task.timers {
            section.file.bad(
                &section.path,
                "the name is taken: `task.timers = true` keeps the job's timers in a store of that name; choose \
                 another",
            );
        }
        let spec = one(&section, changelog_topic(&spec.job, &store), &system, spec.task.state_lost);
        topic_config::changelog(section.file, &store, &spec);
        section.finish();
        stores.insert(store, spec);
    }
    if spec.task.timers {
        let changelog = changelog_topic(&spec.job, TIMERS_STORE);
        let timers = StoreSpec::with_changelog(Some(changelog), &system);
        let timers = StoreSpec { state_lost: spec.task.state_lost, ..timers };
        stores.insert(TIMERS_STORE.to_owned(), timers);
    }
    stores
}

/// Where changelogs are unless a store says otherwise: with the checkpoints, on the first input's system.
fn default_system(spec: &JobSpec) -> String {
    let first_input = spec.task.inputs.first().and_then(|input| input.split_once('.'));
    first_input
        .map(|(system, _)| system)
        .filter(|system| spec.systems.contains_key(*system))
        .or_else(|| spec.systems.keys().next().map(String::as_str))
        .unwrap_or_default()
        .to_owned()
}

fn one(section: &Section<'_, '_>, changelog: String, system: &str, lost: StateLost) -> StoreSpec {
    let own = section.optional("changelog", |value| match value {
        DeValue::Boolean(_) => boolean(value).map(|wanted| wanted.then(|| changelog.clone())),
        DeValue::String(_) => topic(value).map(Some),
        other => Err(wrong_type(other, "true, false or the name of a topic")),
    });
    let default = StoreSpec::with_changelog(own.unwrap_or(Some(changelog)), system);
    let kinds = [("rocksdb", StoreKind::RocksDb), ("memory", StoreKind::Memory)];
    let large = [("fail", OnLargeValue::Fail), ("drop", OnLargeValue::Drop)];
    let compressions = [("none", Compression::None), ("lz4", Compression::Lz4), ("zstd", Compression::Zstd)];
    StoreSpec {
        kind: section.optional("type", |value| one_of(value, &kinds)).unwrap_or(default.kind),
        changelog: default.changelog,
        changelog_system: section.optional("changelog-system", text).unwrap_or(default.changelog_system),
        key_serde: section.optional("key-serde", serde_name),
        serde: section.optional("serde", serde_name),
        cache_rows: section
            .optional("cache-rows", |value| integer(value, 1, 100_000_000))
            .map_or(default.cache_rows, |rows| u64::try_from(rows).expect("the reader's range fits")),
        ttl_ms: section.optional("ttl", some_duration),
        max_value_bytes: section
            .optional("max-value", |value| size(value, 1, 1 << 30))
            .unwrap_or(default.max_value_bytes),
        on_large_value: section
            .optional("on-large-value", |value| one_of(value, &large))
            .unwrap_or(default.on_large_value),
        compression: section
            .optional("compression", |value| one_of(value, &compressions))
            .unwrap_or(default.compression),
        block_bytes: section
            .optional("block-size", |value| size(value, 1 << 10, 16 << 20))
            .unwrap_or(default.block_bytes),
        state_lost: section.optional("state-lost", state_lost).unwrap_or(lost),
        changelog_config: section
            .optional("changelog-config", topic_config::topic_config)
            .unwrap_or_default(),
    }
}

//! What no single key can say: that names used in one section exist in another.

use std::collections::BTreeMap;

use types::JobSpec;

use crate::keys::nearest;
use crate::table::File;
use crate::value::{hinted, shown, stream, valid_topic};

/// Reports names that lead nowhere, and topics that two stores would share.
pub(crate) fn references(file: &File<'_>, spec: &JobSpec) {
    inputs(file, spec);
    for name in spec.streams.keys() {
        if let Some((system, _)) = name.split_once('.') {
            known_system(file, spec, system, &format!("streams.{name}"));
        }
    }
    let mut owners: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for (name, store) in &spec.stores {
        known_system(file, spec, &store.changelog_system, &format!("stores.{name}.changelog-system"));
        let Some(topic) = &store.changelog else { continue };
        let key = format!("stores.{name}.changelog");
        if let Err(refusal) = valid_topic(topic) {
            file.bad(&key, &refusal);
        }
        if let Some(other) = owners.insert((&store.changelog_system, topic), name) {
            file.bad(
                &key,
                &format!("\"{topic}\" is the changelog of store `{other}` already; give each its own"),
            );
        }
    }
}

fn inputs(file: &File<'_>, spec: &JobSpec) {
    for (index, input) in spec.task.inputs.iter().enumerate() {
        let key = format!("task.inputs[{index}]");
        match stream(input) {
            Err(refusal) => file.bad(&key, &refusal),
            Ok(_) if spec.task.inputs[..index].contains(input) => {
                file.bad(&key, &format!("\"{}\" is named twice", shown(input)));
            }
            Ok(stream) => known_system(file, spec, &stream.system, &key),
        }
    }
}

fn known_system(file: &File<'_>, spec: &JobSpec, system: &str, key: &str) {
    if spec.systems.contains_key(system) || file.has_problem_under("systems") {
        return;
    }
    if spec.systems.is_empty() {
        let write = format!("[systems.{}]", if system.is_empty() { "kafka" } else { system });
        if !file.has_problem_with("systems.") {
            file.problem(None, "systems.", format!("missing section `{write}`: no system is defined"));
        }
        return;
    }
    let names = spec.systems.keys().map(String::as_str);
    let hint = nearest(system, names.clone()).map(|name| format!("`{name}`"));
    let valid = names.collect::<Vec<_>>().join(", ");
    let what = format!("there is no system `{}`", shown(system));
    file.bad(key, &hinted(&what, hint, &format!("systems: {valid}")));
}

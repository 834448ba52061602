//! What no single key can say: that names used in one section exist in another.

use types::{JobSpec, Meeting, OnError};

use crate::keys::nearest;
use crate::table::File;
use crate::topic_config;
use crate::value::{hinted, shown, stream, valid_topic};

/// Reports names that lead nowhere, and topics that two stores would share.
pub(crate) fn references(file: &File<'_>, spec: &JobSpec) {
    inputs(file, spec);
    for name in spec.streams.keys() {
        if let Some((system, _)) = name.split_once('.') {
            known_system(file, spec, system, &format!("streams.{name}"));
        }
    }
    dead_letter(file, spec);
    topic_config::in_sync(file, spec);
    for (name, store) in &spec.stores {
        known_system(file, spec, &store.changelog_system, &format!("stores.{name}.changelog-system"));
        if let Some(Err(refusal)) = store.changelog.as_deref().map(valid_topic) {
            file.bad(&format!("stores.{name}.changelog"), &refusal);
        }
    }
    for Meeting { own, topic, what } in types::meetings(spec) {
        let told = if own.topic == topic {
            format!("\"{topic}\" is {what} already")
        } else {
            format!("\"{}\" is for Kafka the same as \"{topic}\", {what}", own.topic)
        };
        match &own.key {
            Some(key) => file.bad(key, &format!("{told}; give each its own")),
            None => file.bad("job.name", &format!("{}: {told}; give the job another name", own.what)),
        }
    }
}

/// The dead-letter stream is there if it is used, and only then; and it is no input, or a message would come round
/// for ever.
fn dead_letter(file: &File<'_>, spec: &JobSpec) {
    const KEY: &str = "errors.dead-letter";
    let errors = &spec.errors;
    let stages = [("decode", errors.decode), ("process", errors.process), ("send", errors.send)];
    let user = stages.into_iter().find(|(_, then)| *then == OnError::DeadLetter).map(|(stage, _)| stage);
    if file.has_problem_under("errors") {
        return;
    }
    match (&errors.dead_letter, user) {
        (None, None) => {}
        (None, Some(stage)) => file.problem(
            file.line_of(&format!("errors.{stage}")),
            KEY,
            format!(
                "missing key `{KEY}`, which `errors.{stage}` needs; write, for example, `dead-letter = \"{}-dead\"`",
                shown(spec.task.inputs.first().map_or("kafka.flights", String::as_str))
            ),
        ),
        (Some(_), None) => file.bad(
            KEY,
            "no stage sends anything there; write, for example, `process = \"dead-letter\"`, or leave it out",
        ),
        (Some(stream), Some(_)) if spec.task.inputs.contains(stream) => {
            file.bad(KEY, &format!("\"{}\" is an input of the job; name another stream", shown(stream)));
        }
        (Some(stream), Some(_)) => {
            let system = stream.split_once('.').map_or("", |(system, _)| system);
            known_system(file, spec, system, KEY);
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

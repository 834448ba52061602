//! What no single key can say: that names used in one section exist in another.

use types::{Given, JobSpec, Meeting, OnError, SystemKind, SystemStream, whole_name};

use crate::keys::nearest;
use crate::table::File;
use crate::topic_config;
use crate::value::{hinted, input, shown, valid_topic};

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
    patterns(file, spec);
    former_inputs(file, spec);
    secrets(file, spec);
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

/// The secrets that systems name are the package's.
fn secrets(file: &File<'_>, spec: &JobSpec) {
    for (system, of) in &spec.systems {
        for (key, given) in of.security.iter().flat_map(|security| &security.values) {
            let Given::Secret(name) = given else { continue };
            if !spec.package.secrets.contains_key(name) {
                let names = spec.package.secrets.keys().map(String::as_str);
                let hint = nearest(name, names).map(|name| format!("`{name}`"));
                let what = format!("there is no secret `{}`", shown(name));
                let valid = "are those of [package.secrets]; `{ file = \"…\" }` names a file here";
                file.bad(&format!("systems.{system}.security.{key}"), &hinted(&what, hint, valid));
            }
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
    for (index, name) in spec.task.inputs.iter().enumerate() {
        let key = format!("task.inputs[{index}]");
        match input(name) {
            Err(refusal) => file.bad(&key, &refusal),
            Ok(_) if spec.task.inputs[..index].contains(name) => {
                file.bad(&key, &format!("\"{}\" is named twice", shown(name)));
            }
            Ok(stream) => known_system(file, spec, &stream.system, &key),
        }
    }
}

/// Patterns are of topics, and stand for nothing that the job writes: its messages would come round for ever.
fn patterns(file: &File<'_>, spec: &JobSpec) {
    for (index, name) in spec.task.inputs.iter().enumerate() {
        let Some(stream) = SystemStream::parse(name).filter(|stream| stream.pattern().is_some()) else {
            continue;
        };
        let key = format!("task.inputs[{index}]");
        let kind = spec.systems.get(&stream.system).map(|system| system.kind);
        if kind == Some(SystemKind::Jsonl) {
            file.bad(
                &key,
                "patterns are for systems of type \"kafka\"; of files, name a folder: `topic = \"<folder>/\"` in \
                 [streams.\"<system>.<stream>\"] reads all files in it",
            );
        }
        let Some(Ok(regex)) = stream.pattern().map(whole_name) else { continue };
        let clashes =
            |other: &SystemStream, topic: &str| other.system == stream.system && regex.is_match(topic);
        if let Some(dead) = spec.errors.dead_letter.as_deref().and_then(SystemStream::parse)
            && clashes(&dead, &spec.stream(&dead).topic)
        {
            let told = format!("it matches the dead-letter stream \"{dead}\"; name another stream there");
            file.bad(&key, &told);
        }
        for (other, settings) in &spec.streams {
            let Some(parsed) = SystemStream::parse(other).filter(|other| other.pattern().is_none()) else {
                continue;
            };
            if !spec.task.inputs.contains(other) && clashes(&parsed, &settings.topic) {
                let told = format!(
                    "it matches \"{}\", the topic of [streams.\"{other}\"], which is no input: what the job writes \
                     there would come round for ever; write a pattern that does not match it, or add \"{other}\" to \
                     the inputs",
                    settings.topic
                );
                file.bad(&key, &told);
            }
        }
    }
    for name in spec.streams.keys() {
        let is_pattern = SystemStream::parse(name).is_some_and(|stream| stream.pattern().is_some());
        if is_pattern && !spec.task.inputs.contains(name) {
            let told = "is a pattern that is none of [task] inputs; add it there, letter for letter";
            file.bad(&format!("streams.{name}"), told);
        }
    }
}

/// What is named as read no longer is not read.
fn former_inputs(file: &File<'_>, spec: &JobSpec) {
    for (index, name) in spec.task.former_inputs.iter().enumerate() {
        let key = format!("task.former-inputs[{index}]");
        match crate::value::stream(name) {
            Err(refusal) => file.bad(&key, &refusal),
            Ok(_) if spec.task.inputs.contains(name) => {
                file.bad(&key, &format!("\"{}\" is an input; take it out of one of the two", shown(name)));
            }
            Ok(_) => {}
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

//! The sections of a job file, one function each: keys, types and defaults.
//!
//! What is refused is replaced by a default and reported; a spec is only handed out when nothing was.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};
use types::{
    ContainersSpec, Delivery, Grouper, JobId, JobSpec, OffsetDefault, OnExhausted, OnLeaseLoss, PackageSpec,
    PlacementSpec, Resource, RestartSpec, Spread, StoreSpec, StreamSpec, SystemSpec, TaskSpec,
};

use crate::table::{File, Section};
use crate::value::{
    boolean, bootstrap, changelog_topic, cpu, duration, environment, id, integer, kafka_settings, memory,
    name, one_of, serde_name, settings, some_duration, stream, text, topic, wrong_type,
};

/// The whole file.
pub(crate) fn job<'t>(file: &'t File<'t>, table: &'t DeTable<'t>) -> JobSpec {
    let root = Section::root(file, table);
    root.finish();
    let (job, queue, priority) = job_section(root.section("job", "job"));
    let mut spec = JobSpec {
        job,
        queue,
        priority,
        app_master: app_master(&root.section("app-master", "app-master")),
        package: package(root.section("package", "package")),
        containers: containers(&root.section("containers", "containers")),
        task: task(root.section("task", "task")),
        systems: systems(&root),
        streams: streams(&root),
        stores: BTreeMap::new(),
        placement: placement(&root.section("placement", "placement")),
        restart: restart(&root.section("restart", "restart")),
    };
    spec.stores = stores(&root, &spec);
    spec
}

fn small(value: i64) -> u32 {
    u32::try_from(value).expect("the reader's range fits")
}

fn job_section(mut section: Section<'_, '_>) -> (JobId, String, i32) {
    let job = JobId {
        name: section.required("name", "name = \"flight-delays\"", name),
        id: section.optional("id", id).unwrap_or_else(|| "1".to_owned()),
    };
    let queue = section.optional("queue", name).unwrap_or_else(|| "default".to_owned());
    let priority = priority(&section);
    section.finish();
    (job, queue, priority)
}

fn priority(section: &Section<'_, '_>) -> i32 {
    let read = |value: &DeValue<'_>| integer(value, -1_000_000, 1_000_000);
    section
        .optional("priority", read)
        .map_or(0, |value| i32::try_from(value).expect("the reader's range fits"))
}

fn app_master(section: &Section<'_, '_>) -> Resource {
    let resource = Resource {
        memory_bytes: section.optional("memory", memory).unwrap_or(64 << 20),
        cpu_millis: section.optional("cpu", cpu).unwrap_or(100),
    };
    section.finish();
    resource
}

fn package(mut section: Section<'_, '_>) -> PackageSpec {
    let source = section.required("path", "path = \"target/debug/flight-delays\"", |value| {
        text(value).and_then(|path| {
            if path.trim().is_empty() || path.ends_with('/') {
                return Err(format!("\"{path}\" names no file; valid: the path of the job's binary"));
            }
            Ok(path)
        })
    });
    let command = section.strings("command", "[\"./flight-delays\", \"--verbose\"]").unwrap_or_default();
    if command.first().is_some_and(|program| program.is_empty()) {
        section.file.bad(&section.full("command[0]"), "must not be empty");
    }
    let env = section.optional("env", environment).unwrap_or_default();
    section.finish();
    PackageSpec { source, artefact: None, command, env }
}

fn containers(section: &Section<'_, '_>) -> ContainersSpec {
    let spec = ContainersSpec {
        count: section.optional("count", |value| integer(value, 1, 10_000)).map_or(1, small),
        resource: Resource {
            memory_bytes: section.optional("memory", memory).unwrap_or(512 << 20),
            cpu_millis: section.optional("cpu", cpu).unwrap_or(500),
        },
        threads: section.optional("threads", |value| integer(value, 1, 256)).map_or(1, small),
    };
    section.finish();
    spec
}

fn task(mut section: Section<'_, '_>) -> TaskSpec {
    const EXAMPLE: &str = "[\"kafka.flights\"]";
    section.required("inputs", "inputs = [\"kafka.flights\"]", |_| Ok(()));
    let inputs = section.strings("inputs", EXAMPLE);
    if inputs.as_ref().is_some_and(Vec::is_empty) && !section.file.has_problem_under("task.inputs") {
        section.file.bad("task.inputs", &format!("is empty; name at least one stream, such as {EXAMPLE}"));
    }
    let spec = TaskSpec {
        inputs: inputs.unwrap_or_default(),
        window_ms: section.optional("window", some_duration),
        commit_ms: section.optional("commit", some_duration).unwrap_or(1_000),
        delivery: section
            .optional("delivery", |value| {
                one_of(
                    value,
                    &[("at-least-once", Delivery::AtLeastOnce), ("exactly-once", Delivery::ExactlyOnce)],
                )
            })
            .unwrap_or(Delivery::AtLeastOnce),
        grouper: section
            .optional("grouper", |value| {
                one_of(value, &[("partition", Grouper::Partition), ("single", Grouper::Single)])
            })
            .unwrap_or(Grouper::Partition),
        config: section.optional("config", settings).unwrap_or_default(),
    };
    section.finish();
    spec
}

fn systems(root: &Section<'_, '_>) -> BTreeMap<String, SystemSpec> {
    let mut systems = BTreeMap::new();
    for (system, mut section) in root.named("systems", "systems.*") {
        if !system.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') || system.is_empty() {
            section.file.bad(&section.path, "a system's name has letters, digits, `_` and `-` only");
        }
        let spec = SystemSpec {
            kind: section.required("type", "type = \"kafka\"", |value| {
                one_of(value, &[("kafka", "kafka")]).map(str::to_owned)
            }),
            bootstrap: section.required("bootstrap", "bootstrap = \"127.0.0.1:9092\"", bootstrap),
            consumer: section.optional("consumer", kafka_settings).unwrap_or_default(),
            producer: section.optional("producer", kafka_settings).unwrap_or_default(),
            replication: section
                .optional("replication", |value| integer(value, 1, 1_000))
                .map(|value| u16::try_from(value).expect("the reader's range fits")),
        };
        section.finish();
        systems.insert(system, spec);
    }
    systems
}

fn streams(root: &Section<'_, '_>) -> BTreeMap<String, StreamSpec> {
    let mut streams = BTreeMap::new();
    for (name, section) in root.named("streams", "streams.*") {
        if let (false, Some(inner)) = (name.contains('.'), section.holds_only_tables()) {
            let message = format!("is not a stream; stream names are quoted: [streams.\"{name}.{inner}\"]");
            section.file.bad(&section.path, &message);
            continue;
        }
        let stream = match stream(&name) {
            Ok(stream) => stream,
            Err(refusal) => {
                section.file.bad(&section.path, &refusal);
                continue;
            }
        };
        let default = StreamSpec::default_for(&stream.stream);
        let spec = StreamSpec {
            topic: section.optional("topic", topic).unwrap_or(default.topic),
            key_serde: section.optional("key-serde", serde_name),
            serde: section.optional("serde", serde_name),
            offset_default: section
                .optional("offset-default", |value| {
                    one_of(value, &[("oldest", OffsetDefault::Oldest), ("newest", OffsetDefault::Newest)])
                })
                .unwrap_or(default.offset_default),
            bootstrap: section.optional("bootstrap", boolean).unwrap_or(default.bootstrap),
            priority: priority(&section),
            broadcast: section.optional("broadcast", boolean).unwrap_or(default.broadcast),
        };
        section.finish();
        streams.insert(name, spec);
    }
    streams
}

fn stores(root: &Section<'_, '_>, spec: &JobSpec) -> BTreeMap<String, StoreSpec> {
    let mut stores = BTreeMap::new();
    for (store, section) in root.named("stores", "stores.*") {
        if let Err(refusal) = crate::value::valid_name(&store) {
            section.file.bad(&section.path, &refusal);
        }
        if store == "default" {
            section.file.bad(&section.path, "the name \"default\" is taken; choose another");
        }
        let changelog = section.optional("changelog", |value| match value {
            DeValue::Boolean(true) => Ok(Some(changelog_topic(spec, &store))),
            DeValue::Boolean(false) => Ok(None),
            DeValue::String(_) => topic(value).map(Some),
            other => Err(wrong_type(other, "true, false or the name of a topic")),
        });
        let first_input = spec.task.inputs.first().and_then(|input| input.split_once('.'));
        let default_system = first_input
            .map(|(system, _)| system.to_owned())
            .filter(|system| spec.systems.contains_key(system))
            .or_else(|| spec.systems.keys().next().cloned());
        let store_spec = StoreSpec {
            changelog: changelog.unwrap_or_else(|| Some(changelog_topic(spec, &store))),
            changelog_system: section
                .optional("changelog-system", text)
                .or(default_system)
                .unwrap_or_default(),
            key_serde: section.optional("key-serde", serde_name),
            serde: section.optional("serde", serde_name),
            cache_rows: section
                .optional("cache-rows", |value| integer(value, 1, 100_000_000))
                .map_or(500_000, |rows| u64::try_from(rows).expect("the reader's range fits")),
            changelog_config: section.optional("changelog-config", settings).unwrap_or_default(),
        };
        section.finish();
        stores.insert(store, store_spec);
    }
    stores
}

fn placement(section: &Section<'_, '_>) -> PlacementSpec {
    let spec = PlacementSpec {
        wait_ms: section.optional("wait", duration).unwrap_or(2_000),
        rack_wait_ms: section.optional("rack-wait", duration).unwrap_or(1_000),
        host_affinity: section.optional("host-affinity", boolean).unwrap_or(true),
        on_lease_loss: section
            .optional("on-lease-loss", |value| {
                one_of(value, &[("keep", OnLeaseLoss::Keep), ("stop", OnLeaseLoss::Stop)])
            })
            .unwrap_or(OnLeaseLoss::Keep),
        labels: section.optional("labels", settings).unwrap_or_default(),
        spread: section
            .optional("spread", |value| {
                one_of(value, &[("none", Spread::None), ("host", Spread::Host), ("rack", Spread::Rack)])
            })
            .unwrap_or(Spread::None),
    };
    section.finish();
    spec
}

fn restart(section: &Section<'_, '_>) -> RestartSpec {
    let retries = section.optional("retries", |value| integer(value, 0, 1_000_000)).map_or(8, small);
    let window_ms = section.optional("window", some_duration).unwrap_or(300_000);
    let on_exhausted = section
        .optional("on-exhausted", |value| {
            one_of(value, &[("fail", OnExhausted::Fail), ("degrade", OnExhausted::Degrade)])
        })
        .unwrap_or(OnExhausted::Fail);
    let backoff = section.section("backoff", "restart.backoff");
    section.finish();
    let backoff_min_ms = backoff.optional("min", some_duration);
    let backoff_max_ms = backoff.optional("max", some_duration);
    backoff.finish();
    let least = backoff_min_ms.unwrap_or_else(|| backoff_max_ms.unwrap_or(1_000).min(1_000));
    let most = backoff_max_ms.unwrap_or_else(|| least.max(60_000));
    if least > most {
        backoff.file.bad(&backoff.full("min"), "is longer than `restart.backoff.max`");
    }
    RestartSpec { retries, window_ms, backoff_min_ms: least, backoff_max_ms: most, on_exhausted }
}

//! The sections of a job file, one function each: keys, types and defaults.
//!
//! What is refused is replaced by a default and reported; a spec is only handed out when nothing was.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};
use types::{
    ContainersSpec, Delivery, ErrorsSpec, Grouper, JobId, JobSpec, MOST_TRANSACTION_MS, MetadataSpec,
    OnError, OnExhausted, OnInputGrowth, OnLeaseLoss, PlacementSpec, Resource, RestartSpec, STUCK_AFTER_MS,
    Spread, SystemKind, TaskSpec,
};

use crate::package::package;
use crate::stores::stores;
use crate::streams::{streams, systems};
use crate::table::{File, Section};
use crate::topic_config::metadata_config;
use crate::units::print_duration;
use crate::value::{
    boolean, cpu, duration, id, integer, memory, name, one_of, settings, some_duration, state_lost,
    stream_name,
};

/// The whole file.
pub(crate) fn job<'t>(file: &'t File<'t>, table: &'t DeTable<'t>) -> JobSpec {
    let root = Section::root(file, table);
    root.finish();
    let (job, queue, priority, coordinator_config) = job_section(root.section("job", "job"));
    // In the order in which missing keys are told.
    let app_master = app_master(&root.section("app-master", "app-master"));
    let package = package(root.section("package", "package"));
    let containers = containers(&root.section("containers", "containers"));
    let (task, checkpoint_config) = task(root.section("task", "task"));
    let mut files = BTreeMap::new();
    let mut spec = JobSpec {
        job,
        queue,
        priority,
        app_master,
        package,
        containers,
        task,
        systems: systems(&root, &mut files),
        streams: BTreeMap::new(),
        stores: BTreeMap::new(),
        errors: errors(&root.section("errors", "errors")),
        placement: placement(&root.section("placement", "placement")),
        restart: restart(&root.section("restart", "restart")),
        metadata: MetadataSpec { checkpoint_config, coordinator_config },
    };
    spec.package.secrets.extend(files);
    spec.streams = streams(&root, &spec.systems);
    spec.stores = stores(&root, &spec);
    commits_in_time(file, &spec);
    spec
}

fn small(value: i64) -> u32 {
    u32::try_from(value).expect("the reader's range fits")
}

type Settings = BTreeMap<String, String>;

fn job_section(mut section: Section<'_, '_>) -> (JobId, String, i32, Settings) {
    let job = JobId {
        name: section.required("name", "name = \"flight-delays\"", name),
        id: section.optional("id", id).unwrap_or_else(|| "1".to_owned()),
    };
    let queue = section.optional("queue", name).unwrap_or_else(|| "default".to_owned());
    let priority = priority(&section);
    let coordinator_config = section.optional("coordinator-config", metadata_config).unwrap_or_default();
    section.finish();
    (job, queue, priority, coordinator_config)
}

pub(crate) fn priority(section: &Section<'_, '_>) -> i32 {
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

fn containers(section: &Section<'_, '_>) -> ContainersSpec {
    let spec = ContainersSpec {
        count: section.optional("count", |value| integer(value, 1, 10_000)).map_or(1, small),
        resource: Resource {
            memory_bytes: section.optional("memory", memory).unwrap_or(512 << 20),
            cpu_millis: section.optional("cpu", cpu).unwrap_or(500),
        },
        threads: section.optional("threads", |value| integer(value, 1, 256)).map_or(1, small),
        cpu_limit_millis: section.optional("cpu-limit", cpu),
    };
    if spec.cpu_limit_millis.is_some_and(|limit| limit < spec.resource.cpu_millis) {
        let least = f64::from(spec.resource.cpu_millis) / 1000.0;
        let told = format!("is less than `cpu`, which is {least}; valid: {least} or more, or no `cpu-limit`");
        section.file.bad(&section.full("cpu-limit"), &told);
    }
    section.finish();
    spec
}

fn task(mut section: Section<'_, '_>) -> (TaskSpec, Settings) {
    const EXAMPLE: &str = "[\"kafka.flights\"]";
    section.required("inputs", "inputs = [\"kafka.flights\"]", |_| Ok(()));
    let inputs = section.strings("inputs", EXAMPLE);
    if inputs.as_ref().is_some_and(Vec::is_empty) && !section.file.has_problem_under("task.inputs") {
        section.file.bad("task.inputs", &format!("is empty; name at least one stream, such as {EXAMPLE}"));
    }
    let spec = TaskSpec {
        inputs: inputs.unwrap_or_default(),
        former_inputs: section.strings("former-inputs", EXAMPLE).unwrap_or_default(),
        on_input_growth: section
            .optional("on-input-growth", |value| {
                one_of(value, &[("fail", OnInputGrowth::Fail), ("extend", OnInputGrowth::Extend)])
            })
            .unwrap_or_default(),
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
        timers: section.optional("timers", boolean).unwrap_or(false),
        concurrency: section.optional("concurrency", |value| integer(value, 1, 10_000)).map_or(16, small),
        state_lost: section.optional("state-lost", state_lost).unwrap_or_default(),
        stuck_after_ms: section.optional("stuck-after", stuck_after).unwrap_or(Some(STUCK_AFTER_MS)),
        config: section.optional("config", settings).unwrap_or_default(),
    };
    let checkpoint_config = section.optional("checkpoint-config", metadata_config).unwrap_or_default();
    section.finish();
    (spec, checkpoint_config)
}

/// A duration from a second on, or "off".
fn stuck_after(value: &DeValue<'_>) -> Result<Option<u64>, String> {
    const LEAST_MS: u64 = 1_000;
    if value.as_str() == Some("off") {
        return Ok(None);
    }
    match duration(value).map_err(|why| format!("{why}, or \"off\""))? {
        ms if ms < LEAST_MS => Err("is too short; the least is \"1s\"; \"off\" lets tasks hang".to_owned()),
        ms => Ok(Some(ms)),
    }
}

/// Exactly-once outputs keep a transaction open from commit to commit: one that is open for longer than brokers allow
/// can never be committed.
fn commits_in_time(file: &File<'_>, spec: &JobSpec) {
    const KEY: &str = "transaction.timeout.ms";
    if spec.task.delivery != Delivery::ExactlyOnce {
        return;
    }
    let home =
        spec.task.inputs.first().and_then(|input| input.split_once('.')).map_or("", |(system, _)| system);
    let Some(system) = spec.systems.get(home).filter(|system| system.kind == SystemKind::Kafka) else {
        return;
    };
    let given = system.producer.get(KEY);
    let allowed_ms = given.and_then(|text| text.parse().ok()).unwrap_or(MOST_TRANSACTION_MS);
    if spec.task.commit_ms < allowed_ms {
        return;
    }
    let why = match given {
        Some(_) => format!("`{KEY}` of `systems.{home}.producer`, which is {allowed_ms}"),
        None => format!(
            "the \"{}\" that brokers let a transaction be open; a broker whose transaction.max.timeout.ms is longer \
             needs `producer = {{ \"{KEY}\" = \"…\" }}` of `systems.{home}` as well",
            print_duration(allowed_ms)
        ),
    };
    file.bad(
        "task.commit",
        &format!(
            "\"{}\" is too long for `delivery = \"exactly-once\"`; valid: less than {why}",
            print_duration(spec.task.commit_ms)
        ),
    );
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

fn errors(section: &Section<'_, '_>) -> ErrorsSpec {
    let stage = |key| {
        let choices =
            [("fail", OnError::Fail), ("skip", OnError::Skip), ("dead-letter", OnError::DeadLetter)];
        section.optional(key, |value| one_of(value, &choices)).unwrap_or(OnError::Fail)
    };
    let spec = ErrorsSpec {
        decode: stage("decode"),
        process: stage("process"),
        send: stage("send"),
        dead_letter: section.optional("dead-letter", stream_name),
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

//! A spec as a job file that says everything, defaults included.

use std::collections::BTreeMap;
use std::fmt::Write;

use types::{
    Artefact, Compression, Delivery, ErrorsSpec, Given, Grouper, JobSpec, OffsetLost, OnError, OnExhausted,
    OnInputGrowth, OnLargeValue, OnLeaseLoss, PackageSpec, Resource, RestartSpec, SYSTEM_SECRETS,
    SecuritySpec, Spread, StateLost, StoreKind, StoreSpec, StreamSpec, SystemKind, TIMERS_STORE,
};

use crate::start_point::print_start_point;
use crate::units::{print_duration, print_memory};

/// The job file that [`crate::parse`] reads as `spec` (without `package.artefact`, which no file holds).
#[must_use]
pub fn render(spec: &JobSpec) -> String {
    let mut out = Toml(String::new());
    out.section("job");
    out.text("name", &spec.job.name);
    out.text("id", &spec.job.id);
    out.text("queue", &spec.queue);
    out.plain("priority", spec.priority);
    out.table("coordinator-config", &spec.metadata.coordinator_config);
    out.section("app-master");
    out.resource(&spec.app_master);
    out.section("package");
    package(&mut out, &spec.package);
    out.section("containers");
    out.plain("count", spec.containers.count);
    out.resource(&spec.containers.resource);
    if let Some(millis) = spec.containers.cpu_limit_millis {
        out.plain("cpu-limit", f64::from(millis) / 1000.0);
    }
    out.plain("threads", spec.containers.threads);
    task(&mut out, spec);
    systems(&mut out, spec);
    placement(&mut out, spec);
    errors(&mut out, &spec.errors);
    restart(&mut out, &spec.restart);
    out.0
}

fn package(out: &mut Toml, package: &PackageSpec) {
    match &package.artefact {
        Some(Artefact { from: Some(url), digest, .. }) => {
            out.text("url", url);
            out.text("sha256", &digest.0);
        }
        Some(_) | None => out.text("path", &package.source),
    }
    out.list("command", &package.command);
    out.table("env", &package.env);
    let of_systems = |name: &str| name.starts_with(SYSTEM_SECRETS);
    for (name, file) in package.secrets.iter().filter(|(name, _)| !of_systems(name)) {
        out.section(&format!("package.secrets.{}", quoted(name)));
        out.text("file", file);
    }
}

fn task(out: &mut Toml, spec: &JobSpec) {
    out.section("task");
    out.list("inputs", &spec.task.inputs);
    out.list("former-inputs", &spec.task.former_inputs);
    out.text(
        "on-input-growth",
        match spec.task.on_input_growth {
            OnInputGrowth::Fail => "fail",
            OnInputGrowth::Extend => "extend",
        },
    );
    if let Some(window) = spec.task.window_ms {
        out.duration("window", window);
    }
    out.duration("commit", spec.task.commit_ms);
    out.text(
        "delivery",
        match spec.task.delivery {
            Delivery::AtLeastOnce => "at-least-once",
            Delivery::ExactlyOnce => "exactly-once",
        },
    );
    out.text(
        "grouper",
        match spec.task.grouper {
            Grouper::Partition => "partition",
            Grouper::Single => "single",
        },
    );
    out.plain("timers", spec.task.timers);
    out.plain("concurrency", spec.task.concurrency);
    out.text("state-lost", state_lost(spec.task.state_lost));
    match spec.task.stuck_after_ms {
        Some(ms) => out.duration("stuck-after", ms),
        None => out.text("stuck-after", "off"),
    }
    out.table("config", &spec.task.config);
    out.table("checkpoint-config", &spec.metadata.checkpoint_config);
}

fn systems(out: &mut Toml, spec: &JobSpec) {
    for (name, system) in &spec.systems {
        out.section(&format!("systems.{}", quoted(name)));
        out.text("type", &system.kind.to_string());
        match system.kind {
            SystemKind::Kafka => out.text("bootstrap", &system.bootstrap),
            SystemKind::Jsonl => out.optional("path", system.path.as_deref()),
        }
        out.table("consumer", &system.consumer);
        out.table("producer", &system.producer);
        if let Some(replication) = system.replication {
            out.plain("replication", replication);
        }
        if let Some(of) = &system.security {
            out.section(&format!("systems.{}.security", quoted(name)));
            security(out, of, &spec.package.secrets);
        }
    }
    for (name, spec) in &spec.streams {
        out.section(&format!("streams.{}", quoted(name)));
        if !name.contains("./") {
            out.text("topic", &spec.topic);
        }
        stream(out, spec);
    }
    for (name, store_spec) in &spec.stores {
        if name == TIMERS_STORE && spec.task.timers {
            continue;
        }
        out.section(&format!("stores.{}", quoted(name)));
        store(out, store_spec);
    }
}

fn security(out: &mut Toml, security: &SecuritySpec, files: &BTreeMap<String, String>) {
    out.text("protocol", &security.protocol.to_string());
    if let Some(mechanism) = security.mechanism {
        out.text("mechanism", &mechanism.to_string());
    }
    for (key, given) in &security.values {
        match given {
            Given::Text(text) => out.text(key.name(), text),
            Given::Secret(name) if name.starts_with(SYSTEM_SECRETS) => {
                let file = files.get(name).map_or("", String::as_str);
                out.plain(key.name(), format!("{{ file = {} }}", quoted(file)));
            }
            Given::Secret(name) => out.plain(key.name(), format!("{{ secret = {} }}", quoted(name))),
        }
    }
    out.table("settings", &security.settings);
}

fn stream(out: &mut Toml, stream: &StreamSpec) {
    out.optional("key-serde", stream.key_serde.as_deref());
    out.optional("serde", stream.serde.as_deref());
    out.optional("key", stream.key.as_deref());
    out.optional("timestamp", stream.timestamp.as_deref());
    if let Some(envelope) = stream.envelope {
        out.plain("envelope", envelope);
    }
    out.text("offset-default", &print_start_point(stream.offset_default));
    out.plain("reset-offset", stream.reset_offset);
    out.text(
        "offset-lost",
        match stream.offset_lost {
            OffsetLost::Fail => "fail",
            OffsetLost::Oldest => "oldest",
            OffsetLost::Newest => "newest",
        },
    );
    out.plain("bounded", stream.bounded);
    out.plain("bootstrap", stream.bootstrap);
    out.plain("priority", stream.priority);
    out.plain("broadcast", stream.broadcast);
}

fn store(out: &mut Toml, store: &StoreSpec) {
    out.text(
        "type",
        match store.kind {
            StoreKind::RocksDb => "rocksdb",
            StoreKind::Memory => "memory",
        },
    );
    match &store.changelog {
        Some(topic) => out.text("changelog", topic),
        None => out.plain("changelog", false),
    }
    out.text("changelog-system", &store.changelog_system);
    out.optional("key-serde", store.key_serde.as_deref());
    out.optional("serde", store.serde.as_deref());
    out.plain("cache-rows", store.cache_rows);
    if let Some(ttl) = store.ttl_ms {
        out.duration("ttl", ttl);
    }
    out.text("max-value", &print_memory(store.max_value_bytes));
    out.text(
        "on-large-value",
        match store.on_large_value {
            OnLargeValue::Fail => "fail",
            OnLargeValue::Drop => "drop",
        },
    );
    out.text(
        "compression",
        match store.compression {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        },
    );
    out.text("block-size", &print_memory(store.block_bytes));
    out.text("state-lost", state_lost(store.state_lost));
    out.table("changelog-config", &store.changelog_config);
}

fn state_lost(policy: StateLost) -> &'static str {
    match policy {
        StateLost::Fail => "fail",
        StateLost::Local => "local",
        StateLost::Empty => "empty",
    }
}

fn placement(out: &mut Toml, spec: &JobSpec) {
    out.section("placement");
    out.duration("wait", spec.placement.wait_ms);
    out.duration("rack-wait", spec.placement.rack_wait_ms);
    out.plain("host-affinity", spec.placement.host_affinity);
    out.text(
        "spread",
        match spec.placement.spread {
            Spread::None => "none",
            Spread::Host => "host",
            Spread::Rack => "rack",
        },
    );
    out.table("labels", &spec.placement.labels);
    out.text(
        "on-lease-loss",
        match spec.placement.on_lease_loss {
            OnLeaseLoss::Keep => "keep",
            OnLeaseLoss::Stop => "stop",
        },
    );
}

fn errors(out: &mut Toml, errors: &ErrorsSpec) {
    out.section("errors");
    for (stage, then) in [("decode", errors.decode), ("process", errors.process), ("send", errors.send)] {
        out.text(
            stage,
            match then {
                OnError::Fail => "fail",
                OnError::Skip => "skip",
                OnError::DeadLetter => "dead-letter",
            },
        );
    }
    out.optional("dead-letter", errors.dead_letter.as_deref());
}

fn restart(out: &mut Toml, restart: &RestartSpec) {
    out.section("restart");
    out.plain("retries", restart.retries);
    out.duration("window", restart.window_ms);
    out.plain(
        "backoff",
        format!(
            "{{ min = \"{}\", max = \"{}\" }}",
            print_duration(restart.backoff_min_ms),
            print_duration(restart.backoff_max_ms)
        ),
    );
    out.text(
        "on-exhausted",
        match restart.on_exhausted {
            OnExhausted::Fail => "fail",
            OnExhausted::Degrade => "degrade",
        },
    );
}

struct Toml(String);

impl Toml {
    fn section(&mut self, name: &str) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        writeln!(self.0, "{gap}[{name}]").expect("writing to a string");
    }
    fn plain(&mut self, key: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{key} = {value}").expect("writing to a string");
    }
    fn text(&mut self, key: &str, value: &str) {
        self.plain(key, quoted(value));
    }
    fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }
    fn duration(&mut self, key: &str, ms: u64) {
        self.text(key, &print_duration(ms));
    }
    fn resource(&mut self, resource: &Resource) {
        self.text("memory", &print_memory(resource.memory_bytes));
        self.plain("cpu", f64::from(resource.cpu_millis) / 1000.0);
    }
    fn list(&mut self, key: &str, values: &[String]) {
        let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        self.plain(key, format!("[{}]", values.join(", ")));
    }
    fn table(&mut self, key: &str, values: &BTreeMap<String, String>) {
        let pairs: Vec<String> =
            values.iter().map(|(name, value)| format!("{} = {}", quoted(name), quoted(value))).collect();
        if !pairs.is_empty() {
            self.plain(key, format!("{{ {} }}", pairs.join(", ")));
        }
    }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => write!(quoted, "\\u{:04X}", u32::from(c)).expect("writing to a string"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

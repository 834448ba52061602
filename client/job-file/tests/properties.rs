//! What holds for every text and every spec.

use std::collections::BTreeMap;

use proptest::prelude::*;
use types::{
    Artefact, Compression, ContainersSpec, Delivery, Digest, ErrorsSpec, Given, Grouper, JobId, JobSpec,
    MetadataSpec, OffsetDefault, OffsetLost, OnError, OnExhausted, OnInputGrowth, OnLargeValue, OnLeaseLoss,
    PackageSpec, PlacementSpec, Resource, RestartSpec, SaslMechanism, SecurityKey, SecurityProtocol,
    SecuritySpec, Spread, StateLost, StoreKind, StoreSpec, StreamSpec, SystemKind, SystemSpec, TIMERS_STORE,
    TaskSpec,
};

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}"
}

fn settings() -> impl Strategy<Value = BTreeMap<String, String>> {
    prop::collection::btree_map("[a-z]{1,8}(\\.[a-z]{1,8}){0,2}", any::<String>(), 0..4)
}

fn pairs(pairs: &'static [(&'static str, &'static str)]) -> impl Strategy<Value = BTreeMap<String, String>> {
    let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    prop::sample::subsequence(pairs.to_vec(), 0..=pairs.len())
        .prop_map(move |some| some.into_iter().map(text).collect())
}

fn consumer() -> impl Strategy<Value = BTreeMap<String, String>> {
    pairs(&[("fetch.min.bytes", "1"), ("client.rack", "\"a\" \\ b"), ("debug", "broker,topic")])
}

/// A security and the files that its secrets are in.
fn security() -> impl Strategy<Value = (Option<SecuritySpec>, BTreeMap<String, String>)> {
    (0u8..4, "\\PC{1,10}", "[^\\pC ]{1,10}").prop_map(|(which, username, file)| {
        let secret = |key: SecurityKey| format!("systems.kafka.{key}");
        let (mechanism, values): (Option<SaslMechanism>, &[SecurityKey]) = match which {
            0 => return (None, BTreeMap::new()),
            1 => (Some(SaslMechanism::ScramSha256), &[SecurityKey::Password, SecurityKey::Ca]),
            2 => (None, &[SecurityKey::Certificate, SecurityKey::Key]),
            _ => (Some(SaslMechanism::Gssapi), &[]),
        };
        let files = values.iter().map(|key| (secret(*key), file.clone())).collect();
        let mut values: BTreeMap<_, _> =
            values.iter().map(|key| (*key, Given::Secret(secret(*key)))).collect();
        if which == 1 {
            values.insert(SecurityKey::Username, Given::Text(username));
        }
        let protocol = if mechanism.is_some() { SecurityProtocol::SaslSsl } else { SecurityProtocol::Ssl };
        (Some(SecuritySpec { protocol, mechanism, values, settings: BTreeMap::new() }), files)
    })
}

fn resource() -> impl Strategy<Value = Resource> {
    (16u64 << 20..1 << 42, 10u32..=1_024_000)
        .prop_map(|(memory_bytes, cpu_millis)| Resource { memory_bytes, cpu_millis })
}

fn serde_name() -> impl Strategy<Value = Option<String>> {
    prop::option::of(
        prop::sample::select(vec!["string", "bytes", "i64", "f64", "json"]).prop_map(str::to_owned),
    )
}

fn start_point() -> impl Strategy<Value = OffsetDefault> {
    prop_oneof![
        Just(OffsetDefault::Oldest),
        Just(OffsetDefault::Newest),
        any::<u64>().prop_map(OffsetDefault::Offset),
        any::<u64>().prop_map(OffsetDefault::Timestamp),
    ]
}

/// A stream of Kafka, or of files: what it may have follows from its system.
fn stream(kind: SystemKind) -> impl Strategy<Value = StreamSpec> {
    let field = || prop::option::of("\\PC{1,10}");
    let (topic, of_lines) = match kind {
        SystemKind::Kafka => (name().boxed(), Just((None, None, None)).boxed()),
        SystemKind::Jsonl => {
            ("(-|[^/\\pC]{1,20})".boxed(), (field(), field(), prop::option::of(any::<bool>())).boxed())
        }
    };
    let topic = topic.prop_filter("a path", |path| !path.trim().is_empty());
    let lost = prop::sample::select(vec![OffsetLost::Fail, OffsetLost::Oldest, OffsetLost::Newest]);
    ((topic, of_lines), serde_name(), serde_name(), start_point(), lost, any::<[bool; 4]>(), -9i32..9)
        .prop_map(|((topic, of_lines), key_serde, serde, offset_default, offset_lost, flags, priority)| {
            let [bounded, bootstrap, broadcast, reset_offset] = flags;
            let (key, timestamp, envelope) = of_lines;
            StreamSpec {
                topic,
                key_serde,
                serde,
                key,
                timestamp,
                envelope,
                offset_default,
                reset_offset,
                offset_lost,
                bounded,
                bootstrap,
                priority,
                broadcast,
            }
        })
}

fn streams() -> impl Strategy<Value = BTreeMap<String, StreamSpec>> {
    let of = |system: &'static str, kind| {
        let name = name().prop_map(move |topic| format!("{system}.{topic}"));
        prop::collection::btree_map(name, stream(kind), 0..3)
    };
    (of("kafka", SystemKind::Kafka), of("files", SystemKind::Jsonl)).prop_map(|(mut kafka, files)| {
        kafka.extend(files);
        kafka
    })
}

fn store() -> impl Strategy<Value = StoreSpec> {
    (
        (any::<bool>(), serde_name(), 1u64..1_000_000, (1u32..1_000).prop_map(topic_config)),
        prop::option::of(1u64..1 << 40),
        1u64..=1 << 30,
        (1u64 << 10)..=(16 << 20),
        any::<[bool; 2]>(),
        prop::sample::select(vec![Compression::None, Compression::Lz4, Compression::Zstd]),
    )
        .prop_map(|(old, ttl_ms, max_value_bytes, block_bytes, [memory, drop], compression)| {
            let (changelog, serde, cache_rows, changelog_config) = old;
            StoreSpec {
                key_serde: serde.clone(),
                serde,
                cache_rows,
                changelog_config,
                kind: if memory { StoreKind::Memory } else { StoreKind::RocksDb },
                ttl_ms,
                max_value_bytes,
                on_large_value: if drop { OnLargeValue::Drop } else { OnLargeValue::Fail },
                compression,
                block_bytes,
                state_lost: if drop { StateLost::Empty } else { StateLost::Local },
                ..StoreSpec::with_changelog(changelog.then(String::new), "kafka")
            }
        })
}

fn task() -> impl Strategy<Value = TaskSpec> {
    (
        prop::collection::btree_set(name().prop_map(|topic| format!("kafka.{topic}")), 1..4),
        prop::option::of(1u64..1 << 40),
        1u64..1 << 40,
        any::<[bool; 3]>(),
        1u32..=10_000,
        prop::option::of(1_000u64..1 << 40),
        settings(),
    )
        .prop_map(
            |(
                inputs,
                window_ms,
                commit_ms,
                [exactly, single, timers],
                concurrency,
                stuck_after_ms,
                config,
            )| {
                TaskSpec {
                    former_inputs: vec!["kafka.no-longer".to_owned()],
                    on_input_growth: if single { OnInputGrowth::Extend } else { OnInputGrowth::Fail },
                    inputs: inputs.into_iter().collect(),
                    window_ms,
                    // Exactly-once cannot wait longer than brokers do.
                    commit_ms: if exactly { 1 + commit_ms % 899_998 } else { commit_ms },
                    delivery: if exactly { Delivery::ExactlyOnce } else { Delivery::AtLeastOnce },
                    grouper: if single { Grouper::Single } else { Grouper::Partition },
                    timers,
                    concurrency,
                    state_lost: if single { StateLost::Local } else { StateLost::Fail },
                    stuck_after_ms,
                    config,
                }
            },
        )
}

fn errors() -> impl Strategy<Value = ErrorsSpec> {
    let stage = || prop::sample::select(vec![OnError::Fail, OnError::Skip, OnError::DeadLetter]);
    (stage(), stage(), stage()).prop_map(|(decode, process, send)| {
        let used = [decode, process, send].contains(&OnError::DeadLetter);
        // Longer than any name of an input.
        let stream = used.then(|| "kafka.the-stream-of-the-dead-letters".to_owned());
        ErrorsSpec { decode, process, send, dead_letter: stream }
    })
}

fn placement() -> impl Strategy<Value = PlacementSpec> {
    (0u64..1 << 40, 0u64..1 << 40, any::<[bool; 2]>(), settings()).prop_map(
        |(wait_ms, rack_wait_ms, [host_affinity, stop], labels)| PlacementSpec {
            wait_ms,
            rack_wait_ms,
            host_affinity,
            on_lease_loss: if stop { OnLeaseLoss::Stop } else { OnLeaseLoss::Keep },
            labels,
            spread: if stop { Spread::Rack } else { Spread::Host },
        },
    )
}

/// A package by path or by URL, with or without secrets.
fn package(source: String, command: Vec<String>, env: BTreeMap<String, String>) -> PackageSpec {
    let secrets = env.keys().map(|name| (name.clone(), source.clone())).collect();
    let mut package = PackageSpec { source, artefact: None, command, env, secrets };
    if package.source.chars().all(|c| c.is_ascii_alphanumeric()) {
        let name = package.source;
        package.source = format!("s3://bucket/{name}?version=1");
        let from = Some(package.source.clone());
        package.artefact = Some(Artefact { name, digest: Digest("0a".repeat(32)), bytes: 0, from });
    }
    package
}

prop_compose! {
    fn spec()(
        job in (name(), "[a-z0-9]{1,8}"),
        (priority, count, retries) in (-99i32..99, 1u32..100, 0u32..100),
        (app_master, resource) in (resource(), resource()),
        source in "[^/\\pC]{1,20}".prop_filter("a path", |path| !path.trim().is_empty()),
        command in prop::collection::vec("\\PC{1,10}", 0..3),
        env in prop::collection::btree_map("[A-RT-Z][A-Z_]{0,8}", "\\PC{0,10}", 0..3),
        task in task(),
        consumer in consumer(),
        (security, files) in security(),
        streams in streams(),
        errors in errors(),
        stores in prop::collection::btree_map("[a-c][a-z]{1,8}", store(), 0..3),
        placement in placement(),
        (backoff_min_ms, more) in (1u64..100_000, 0u64..100_000),
    ) -> JobSpec {
        let mut package = package(source, command, env);
        package.secrets.extend(files);
        let system = SystemSpec {
            kind: SystemKind::Kafka,
            bootstrap: "127.0.0.1:9092,[::1]:9093".to_owned(),
            consumer,
            producer: BTreeMap::new(),
            replication: (priority > 0).then_some(3),
            path: None,
            security,
        };
        let files = SystemSpec {
            kind: SystemKind::Jsonl,
            bootstrap: String::new(),
            consumer: BTreeMap::new(),
            producer: BTreeMap::new(),
            replication: None,
            path: (priority > 0).then(|| "data/of today".to_owned()),
            security: None,
        };
        let mut stores = stores;
        for (name, store) in &mut stores {
            store.changelog = store.changelog.take().map(|_| format!("log-{name}"));
        }
        if task.timers {
            let job = JobId { name: job.0.clone(), id: job.1.clone() };
            let timers = StoreSpec::with_changelog(Some(format!("{job}-timers-changelog")), "kafka");
            let timers = StoreSpec { state_lost: task.state_lost, ..timers };
            stores.insert(TIMERS_STORE.to_owned(), timers);
        }
        JobSpec {
            job: JobId { name: job.0, id: job.1 },
            queue: "default".to_owned(),
            priority,
            app_master,
            package,
            containers: ContainersSpec {
                count,
                resource,
                threads: count,
                cpu_limit_millis: (count % 2 == 0).then(|| resource.cpu_millis + count),
            },
            task,
            systems: BTreeMap::from([("kafka".to_owned(), system), ("files".to_owned(), files)]),
            streams,
            stores,
            placement,
            errors,
            restart: RestartSpec {
                retries,
                window_ms: more + 1,
                backoff_min_ms,
                backoff_max_ms: backoff_min_ms + more,
                on_exhausted: if retries > 9 { OnExhausted::Degrade } else { OnExhausted::Fail },
            },
            metadata: metadata(count, retries),
        }
    }
}

/// Settings of one topic or of both.
fn metadata(count: u32, retries: u32) -> MetadataSpec {
    MetadataSpec {
        checkpoint_config: if count > 50 { topic_config(count) } else { BTreeMap::new() },
        coordinator_config: topic_config(retries + 1),
    }
}

/// Names of a job and of a store that are often nearly those of another.
fn names() -> impl Strategy<Value = (String, String, String)> {
    ("[aA]([._-][a1]){0,2}", "[1b]([._][a1])?", "[ab1]([._-][ab1]){0,2}")
}

fn topic_config(size: u32) -> BTreeMap<String, String> {
    BTreeMap::from([("segment.ms".to_owned(), size.to_string())])
}

const KNOWN: &str = include_str!("known.toml");

proptest! {
    #[test]
    fn printing_a_spec_and_reading_it_gives_the_spec(spec in spec()) {
        let text = job_file::render(&spec);
        let read = job_file::parse(&text, "job.toml");
        prop_assert_eq!(read.map(|file| file.spec).map_err(|problems| format!("{problems}\n{text}")), Ok(spec));
    }

    #[test]
    fn two_jobs_that_may_live_together_share_no_topic(one in names(), other in names()) {
        let parsed = |(name, id, store): &(String, String, String)| job_file::parse(&format!(
            "job = {{ name = \"{name}\", id = \"{id}\" }}\npackage.path = \"j\"\ntask.inputs = [\"kafka.in\"]\n\
             systems.kafka = {{ type = \"kafka\", bootstrap = \"b:1,b:2\" }}\nstores.\"{store}\" = {{}}\n"
        ), "job.toml").map(|file| file.spec);
        let (Ok(one), Ok(other)) = (parsed(&one), parsed(&other)) else { return Ok(()) };
        let told = types::collision(&one, &other);
        prop_assert_eq!(told.is_some(), types::collision(&other, &one).is_some());
        if one.job == other.job {
            prop_assert_eq!(told, None, "it is one job");
        } else if let Some(told) = told {
            prop_assert!(told.contains(&format!("`{}`", other.job)), "{told}");
        } else {
            let topics = |spec| types::own_topics(spec).into_iter().map(|own| types::topic_alike(&own.topic));
            let theirs: Vec<String> = topics(&other).collect();
            prop_assert!(topics(&one).all(|topic| !theirs.contains(&topic)), "{:?}", theirs);
            let folder = |spec: &JobSpec| spec.job.to_string().to_ascii_lowercase();
            prop_assert_ne!(folder(&one), folder(&other));
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = job_file::parse(&text, "job.toml");
    }

    #[test]
    fn no_damage_to_a_job_file_makes_it_panic(
        cuts in prop::collection::vec((0usize..KNOWN.len(), 0usize..8, "[\\[\\]{}=\".#\n0a-]{0,3}"), 1..4)
    ) {
        let mut text: Vec<char> = KNOWN.chars().collect();
        for (at, len, put) in cuts {
            let at = at.min(text.len());
            text.splice(at..(at + len).min(text.len()), put.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = job_file::parse(&text, "job.toml") {
            prop_assert!(!problems.0.is_empty());
            let last = text.matches('\n').count() + 1;
            for problem in problems.0 {
                prop_assert!(problem.line.is_none_or(|line| (1..=last).contains(&line)), "{}", problem);
            }
        }
    }
}

#[test]
fn a_file_with_every_key_is_valid() {
    let file = job_file::parse(KNOWN, "known.toml").unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(file.spec.placement.on_lease_loss, OnLeaseLoss::Stop);
    assert_eq!(file.spec.restart.on_exhausted, OnExhausted::Degrade);
    assert_eq!(file.spec.streams["kafka.flights"].offset_default, OffsetDefault::Newest);
    assert_eq!(file.spec.package.env["RETRIES"], "3");
}

//! The texts of errors, as a user sees them.

mod stage;

use stage::{GOOD, errors, says, with};
use types::{Compression, OffsetDefault, OnLargeValue, StoreKind, StoreSpec, SystemStream};

#[test]
fn a_minimal_file_gets_the_documented_defaults() {
    let spec = job_file::parse(GOOD, "job.toml").expect("it is valid").spec;
    let expected = r#"[job]
name = "flight-delays"
id = "1"
queue = "default"
priority = 0

[app-master]
memory = "64MiB"
cpu = 0.1

[package]
path = "flight-delays"
command = []

[containers]
count = 1
memory = "512MiB"
cpu = 0.5
threads = 1

[task]
inputs = ["kafka.flights"]
former-inputs = []
on-input-growth = "fail"
commit = "1s"
delivery = "at-least-once"
grouper = "partition"
timers = false
concurrency = 16
state-lost = "fail"
stuck-after = "10m"

[systems."kafka"]
type = "kafka"
bootstrap = "127.0.0.1:9092"

[placement]
wait = "2s"
rack-wait = "1s"
host-affinity = true
spread = "none"
on-lease-loss = "keep"

[errors]
decode = "fail"
process = "fail"
send = "fail"

[restart]
retries = 8
window = "5m"
backoff = { min = "1s", max = "1m" }
on-exhausted = "fail"
"#;
    assert_eq!(job_file::render(&spec), expected);
}

#[test]
fn a_store_has_a_changelog_unless_told_otherwise() {
    let text = format!(
        "{GOOD}[stores.seen]\n[stores.totals]\nchangelog = \"my-totals\"\n[stores.scratch]\nchangelog = false\n"
    );
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    assert_eq!(spec.stores["seen"].changelog.as_deref(), Some("flight-delays-1-seen-changelog"));
    assert_eq!(spec.stores["seen"].changelog_system, "kafka");
    assert_eq!(spec.stores["seen"].cache_rows, 500_000);
    assert_eq!(spec.stores["totals"].changelog.as_deref(), Some("my-totals"));
    assert_eq!(spec.stores["scratch"].changelog, None);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
    says(
        &with("inputs = ", "inptus = "),
        "job.toml:8: unknown key `task.inptus`; did you mean `inputs`? \
         valid keys: inputs, former-inputs, on-input-growth, window, commit, delivery, grouper, timers, concurrency, \
         state-lost, stuck-after, config, \
         checkpoint-config",
    );
}

#[test]
fn an_unknown_section_is_named_with_its_line_and_the_nearest() {
    says(
        &with("[task]", "[tasks]"),
        "job.toml:7: unknown section `tasks`; did you mean `task`? valid sections: job, app-master, package, \
         containers, task, systems, streams, stores, placement, errors, restart",
    );
}

#[test]
fn a_key_in_the_wrong_section_is_shown_its_place() {
    says(
        &with("inputs = ", "retries = 3\ninputs = "),
        "job.toml:8: unknown key `task.retries`; did you mean `restart.retries`? \
         valid keys: inputs, former-inputs, on-input-growth, window, commit, delivery, grouper, timers, concurrency, \
         state-lost, stuck-after, config, \
         checkpoint-config",
    );
}

#[test]
fn a_wrong_type_is_named_with_what_is_expected() {
    says(
        &with("name = \"flight-delays\"", "name = 7"),
        "job.toml:2: `job.name`: expected a string, found an integer",
    );
    says(
        &format!("{GOOD}[containers]\ncount = \"three\"\n"),
        "job.toml:14: `containers.count`: expected an integer from 1 to 10000, found a string",
    );
    says(
        &with("[\"kafka.flights\"]", "\"kafka.flights\""),
        "job.toml:8: `task.inputs`: expected an array of strings, such as [\"kafka.flights\"], found a string",
    );
    says(
        &with("inputs", "window = 10\ninputs"),
        "job.toml:8: `task.window`: expected a duration: a number and a unit (ms, s, m, h, d), such as \"500ms\", \
         \"10s\" or \"1m 30s\", found an integer; did you mean \"10s\"?",
    );
    says(
        &format!("restart = 3\n{GOOD}"),
        "job.toml:1: `restart`: expected a table, written as [restart], found an integer",
    );
}

#[test]
fn a_bad_value_is_named_with_what_is_valid() {
    says(
        &with("inputs", "window = \"10 parsecs\"\ninputs"),
        "job.toml:8: `task.window`: \"10 parsecs\" is not a duration; valid: a number and a unit (ms, s, m, h, d), \
         such as \"500ms\", \"10s\" or \"1m 30s\"",
    );
    says(
        &format!("{GOOD}[containers]\nmemory = \"512M\"\n"),
        "job.toml:14: `containers.memory`: \"512M\" is not an amount of memory; did you mean \"512MiB\"? valid: a number \
         and a unit (KiB, MiB, GiB, KB, MB, GB), such as \"512MiB\" or \"2GiB\"",
    );
    says(
        &format!("{GOOD}[containers]\nmemory = \"1KiB\"\n"),
        "job.toml:14: `containers.memory`: \"1KiB\" is too little for a container; the least is \"16MiB\"",
    );
    says(
        &format!("{GOOD}[containers]\ncount = 0\ncpu = -1\n"),
        "job.toml:14: `containers.count`: 0 is out of range; valid: 1 to 10000\n\
         job.toml:15: `containers.cpu`: out of range; valid: a number of cores from 0.01 to 1024, such as 0.5 or 2",
    );
    says(
        &with("inputs", "delivery = \"exactly-onec\"\ninputs"),
        "job.toml:8: `task.delivery`: \"exactly-onec\" is not known; did you mean \"exactly-once\"? \
         valid: \"at-least-once\", \"exactly-once\"",
    );
    says(
        &with("127.0.0.1:9092", "127.0.0.1"),
        "job.toml:12: `systems.kafka.bootstrap`: \"127.0.0.1\" is not an address; \
         valid: host:port, comma separated, such as \"127.0.0.1:9092,127.0.0.2:9092\"",
    );
    says(
        &with("\"flight-delays\"\n\n", "\"../flights\"\n\n"),
        "job.toml:2: `job.name`: \"../flights\" is not a valid name; valid: letters, digits, `.`, `_` and `-`, \
         beginning with a letter or digit",
    );
}

#[test]
fn a_package_is_a_path_or_a_url_with_its_digest() {
    let digest = "ab".repeat(32);
    let with_url =
        |url: &str| with("path = \"flight-delays\"", &format!("url = \"{url}\"\nsha256 = \"{digest}\""));
    for url in [
        "https://example.org/jobs/flights.tar.zst?v=2",
        "s3://jobs/1/flights.tar.zst",
        "file:///opt/flights.tar.zst",
    ] {
        let file = job_file::parse(&with_url(url), "job.toml").unwrap();
        let artefact = file.spec.package.artefact.unwrap();
        assert_eq!((artefact.name.as_str(), artefact.from.as_deref()), ("flights.tar.zst", Some(url)));
        assert_eq!((artefact.digest.0, file.spec.package.source.as_str()), (digest.clone(), url));
    }
    const VALID: &str =
        "valid: https://, http:// or s3:// with a host or bucket, or file:/// with a path on every node";
    for url in ["ftp://example.org/flights", "https:///flights", "file://host/flights"] {
        says(&with_url(url), &format!("job.toml:5: `package.url`: \"{url}\" cannot be fetched; {VALID}"));
    }
    says(&with_url("flights"), &format!("job.toml:5: `package.url`: \"flights\" is no URL; {VALID}"));
    says(
        &with_url("https://example.org/"),
        "job.toml:5: `package.url`: \"https://example.org/\" names no file; valid: a URL that ends with the name of a \
         binary or archive",
    );
    assert!(errors(&with_url("https://me:pw@example.org/flights")).contains("holds credentials"));
    says(
        &with("path =", "url = \"https://example.org/flights\"\npath ="),
        "job.toml:5: `package.url`: needs `sha256`, the digest of what it holds, as `sha256sum` prints it\n\
         job.toml:6: `package.path`: and `url` are both given; valid: one of them",
    );
    says(
        &with("path =", "sha256 = \"abc\"\npath ="),
        "job.toml:5: `package.sha256`: \"abc\" is no digest; valid: 64 lower-case hexadecimal digits, as `sha256sum` \
         prints\n\
         job.toml:5: `package.sha256`: is that of a `url`; the content of a `path` is digested when it is uploaded",
    );
}

#[test]
fn a_secret_has_a_files_name_and_a_file() {
    let file = format!("{GOOD}[package.secrets]\nkafka-password = {{ file = \"secret/password\" }}\n");
    let file = job_file::parse(&file, "job.toml").unwrap();
    assert_eq!(file.spec.package.secrets["kafka-password"], "secret/password");
    says(
        &format!("{GOOD}[package.secrets]\n\"a/b\" = {{ file = \"x\" }}\nc = {{ value = \"swordfish\" }}\n"),
        "job.toml:14: `package.secrets.a/b`: \"a/b\" cannot be a file's name; valid: letters, digits, `.`, `_`, `-`\n\
         job.toml:15: unknown key `package.secrets.c.value`; valid keys: file\n\
         job.toml:15: missing key `package.secrets.c.file`; write, for example, `file = \"kafka-password\"`",
    );
}

#[test]
fn missing_keys_are_named_with_an_example() {
    says(
        "[job]\nid = \"2\"\n[systems.kafka]\ntype = \"kafka\"\n",
        "job.toml:1: missing key `job.name`; write, for example, `name = \"flight-delays\"`\n\
         job.toml:3: missing key `systems.kafka.bootstrap`; write, for example, `bootstrap = \"127.0.0.1:9092\"`\n\
         job.toml: missing key `package.path`; write, for example, `path = \"target/debug/flight-delays\"`\n\
         job.toml: missing key `task.inputs`; write, for example, `inputs = [\"kafka.flights\"]`",
    );
}

#[test]
fn names_that_lead_nowhere_are_named_with_those_that_exist() {
    says(
        &with("\"kafka.flights\"", "\n  \"kafak.flights\",\n  \"flights\",\n  \"kafka.a\", \"kafka.a\",\n"),
        "job.toml:9: `task.inputs[0]`: there is no system `kafak`; did you mean `kafka`? valid systems: kafka\n\
         job.toml:10: `task.inputs[1]`: \"flights\" is not a stream; valid: <system>.<stream>, such as \"kafka.flights\"\n\
         job.toml:11: `task.inputs[3]`: \"kafka.a\" is named twice",
    );
    says(
        &format!("{GOOD}[streams.\"kinesis.clicks\"]\n[stores.seen]\nchangelog-system = \"kafca\"\n"),
        "job.toml:13: `streams.kinesis.clicks`: there is no system `kinesis`; valid systems: kafka\n\
         job.toml:15: `stores.seen.changelog-system`: there is no system `kafca`; did you mean `kafka`? \
         valid systems: kafka",
    );
    says(
        "[job]\nname = \"x\"\n[package]\npath = \"x\"\n[task]\ninputs = [\"kafka.a\", \"kafka.b\"]\n",
        "job.toml: missing section `[systems.kafka]`: no system is defined",
    );
}

#[test]
fn an_unquoted_stream_name_is_shown_quoted() {
    says(
        &format!("{GOOD}[streams.kafka.flights]\ntopic = \"flights\"\n"),
        "job.toml:13: `streams.kafka`: is not a stream; stream names are quoted: [streams.\"kafka.flights\"]",
    );
}

#[test]
fn a_key_of_a_later_version_says_so() {
    says(
        &format!("{GOOD}[placement]\nstandby = 1\n"),
        "job.toml:14: `placement.standby` is not supported: standby containers come with a later version; leave it out",
    );
}

#[test]
fn settings_of_the_jobs_topics_are_known_valid_and_lose_nothing() {
    for (lines, told) in [
        (
            "[stores.s]\nchangelog-config = { \"segment.byte\" = 1 }\n",
            "job.toml:14: `stores.s.changelog-config`: `segment.byte` is not a setting of a topic; did you mean \
             `segment.bytes`? valid: the topic settings of Kafka, such as `segment.bytes`",
        ),
        (
            "[stores.s]\nchangelog-config = { \"segment.ms\" = \"soon\" }\n",
            "job.toml:14: `stores.s.changelog-config`: `segment.ms`: \"soon\" is not valid; valid: an integer of at \
             least 1",
        ),
        (
            "[stores.s]\nchangelog-config = { \"cleanup.policy\" = \"delete\" }\n",
            "job.toml:14: `stores.s.changelog-config`: `cleanup.policy = \"delete\"` would lose rows by their age; \
             valid: \"compact\", or leave it out",
        ),
        (
            "[stores.s]\nttl = \"1h\"\nchangelog-config = { \"retention.ms\" = 1000 }\n",
            "job.toml:15: `stores.s.changelog-config`: `retention.ms = 1000` would lose rows before the store's ttl of \
             3600000 ms is over; valid: 3600000 or more, or leave it out",
        ),
        (
            "[stores.s]\nmax-value = \"2MB\"\nchangelog-config = { \"max.message.bytes\" = 1000000 }\n",
            "job.toml:15: `stores.s.changelog-config`: `max.message.bytes = 1000000` refuses rows that \
             `stores.s.max-value` allows; valid: more than 2000000, or leave it out",
        ),
        (
            "[stores.s]\nchangelog-config = { \"unclean.leader.election.enable\" = true }\n",
            "job.toml:14: `stores.s.changelog-config`: `unclean.leader.election.enable = true` would lose committed \
             rows with a broker; leave it out",
        ),
    ] {
        says(&format!("{GOOD}{lines}"), told);
    }
    let config = "checkpoint-config = { \"cleanup.policy\" = \"compact,delete\" }\ninputs =";
    let problems =
        job_file::parse(&GOOD.replace("inputs =", config), "job.toml").expect_err("it loses positions");
    assert!(
        problems
            .to_string()
            .contains("`task.checkpoint-config`: `cleanup.policy = \"compact,delete\"` would lose")
    );
}

#[test]
fn topics_of_one_job_do_not_meet() {
    says(
        &format!("{GOOD}[stores.a]\nchangelog = \"log.a\"\n[stores.b]\nchangelog = \"log_a\"\n"),
        "job.toml:16: `stores.b.changelog`: \"log_a\" is for Kafka the same as \"log.a\", the changelog of store `a`; \
         give each its own",
    );
    says(
        &format!("{GOOD}[stores.a]\nchangelog = \"flights\"\n"),
        "job.toml:14: `stores.a.changelog`: \"flights\" is the topic of stream `kafka.flights` already; give each its own",
    );
}

#[test]
fn two_stores_do_not_share_a_changelog() {
    says(
        &format!("{GOOD}[stores.a]\nchangelog = \"log\"\n[stores.b]\nchangelog = \"log\"\n"),
        "job.toml:16: `stores.b.changelog`: \"log\" is the changelog of store `a` already; give each its own",
    );
}

#[test]
fn timers_are_kept_in_a_store_of_their_own() {
    let text = with("inputs", "timers = true\ninputs");
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    let changelog = Some("flight-delays-1-timers-changelog".to_owned());
    assert_eq!(spec.stores["timers"], StoreSpec::with_changelog(changelog, "kafka"));
    says(
        &format!("{text}[stores.timers]\n"),
        "job.toml:14: `stores.timers`: the name is taken: `task.timers = true` keeps the job's timers in a store of \
         that name; choose another",
    );
    let own = job_file::parse(&format!("{GOOD}[stores.timers]\n"), "job.toml");
    assert!(own.is_ok(), "without timers the name is free: {own:?}");
}

#[test]
fn concurrency_has_its_bounds() {
    says(
        &with("inputs", "concurrency = 0\ninputs"),
        "job.toml:8: `task.concurrency`: 0 is out of range; valid: 1 to 10000",
    );
}

#[test]
fn a_dead_letter_stream_is_there_when_a_stage_uses_it_and_only_then() {
    says(
        &format!("{GOOD}[errors]\nprocess = \"dead-letter\"\n"),
        "job.toml:14: missing key `errors.dead-letter`, which `errors.process` needs; write, for example, \
         `dead-letter = \"kafka.flights-dead\"`",
    );
    says(
        &format!("{GOOD}[errors]\ndead-letter = \"kafka.dead\"\n"),
        "job.toml:14: `errors.dead-letter`: no stage sends anything there; write, for example, \
         `process = \"dead-letter\"`, or leave it out",
    );
    says(
        &format!("{GOOD}[errors]\ndecode = \"dead-letter\"\ndead-letter = \"kafak.dead\"\n"),
        "job.toml:15: `errors.dead-letter`: there is no system `kafak`; did you mean `kafka`? valid systems: kafka",
    );
    says(
        &format!("{GOOD}[errors]\ndecode = \"dead-letter\"\ndead-letter = \"kafka.flights\"\n"),
        "job.toml:15: `errors.dead-letter`: \"kafka.flights\" is an input of the job; name another stream",
    );
    says(
        &format!("{GOOD}[errors]\nsend = \"ignore\"\n"),
        "job.toml:14: `errors.send`: \"ignore\" is not known; valid: \"fail\", \"skip\", \"dead-letter\"",
    );
}

#[test]
fn a_start_point_is_a_word_an_offset_or_a_time() {
    let stream = |value: &str| format!("{GOOD}[streams.\"kafka.flights\"]\noffset-default = {value}\n");
    let at = |value: &str| {
        let file = job_file::parse(&stream(value), "job.toml").expect("it is valid");
        file.spec.streams["kafka.flights"].offset_default
    };
    assert_eq!(at("\"offset:123\""), OffsetDefault::Offset(123));
    assert_eq!(at("\"timestamp:2026-01-31T12:00:00Z\""), OffsetDefault::Timestamp(1_769_860_800_000));
    assert_eq!(at("\"timestamp:1769860800000\""), OffsetDefault::Timestamp(1_769_860_800_000));
    says(
        &stream("\"latest\""),
        "job.toml:14: `streams.kafka.flights.offset-default`: \"latest\" is not a place in a stream; valid: \
         \"oldest\", \"newest\", \"offset:123\", \"timestamp:2026-01-31T12:00:00Z\" (or unix ms)",
    );
    says(
        &stream("2026-01-31T12:00:00Z"),
        "job.toml:14: `streams.kafka.flights.offset-default`: did you mean \"timestamp:2026-01-31T12:00:00Z\"?",
    );
}

const FILES: &str = r#"[job]
name = "delays"

[package]
path = "delays"

[task]
inputs = ["files.flights"]

[systems.files]
type = "jsonl"
"#;

#[test]
fn a_system_of_files_needs_no_more_than_its_type() {
    let text = format!("{FILES}path = \"data\"\n[streams.\"files.out\"]\ntopic = \"-\"\nkey = \"carrier\"\n");
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    assert_eq!(spec.systems["files"].path.as_deref(), Some("data"));
    assert_eq!(spec.streams["files.out"].topic, "-");
    assert_eq!(spec.streams["files.out"].key.as_deref(), Some("carrier"));
    let input = SystemStream::parse("files.flights").expect("a stream");
    assert_eq!(spec.stream(&input).topic, "flights.jsonl", "the default of a stream of files");
}

#[test]
fn what_only_brokers_have_is_refused_for_files_and_the_other_way_round() {
    says(
        &format!("{FILES}bootstrap = \"127.0.0.1:9092\"\nreplication = 3\n"),
        "job.toml:12: `systems.files.bootstrap`: a system of type \"jsonl\" has no brokers; leave it out\n\
         job.toml:13: `systems.files.replication`: a system of type \"jsonl\" has no brokers; leave it out",
    );
    says(
        &format!("{GOOD}path = \"data\"\n[streams.\"kafka.flights\"]\nkey = \"carrier\"\n"),
        "job.toml:13: `systems.kafka.path`: a system of type \"kafka\" has no folder of files; leave it out\n\
         job.toml:15: `streams.kafka.flights.key`: it is for systems of type \"jsonl\"; messages of Kafka have keys \
         of their own",
    );
    says(
        &format!("{GOOD}[streams.\"kafka.flights\"]\ntimestamp = \"at\"\nenvelope = true\n"),
        "job.toml:14: `streams.kafka.flights.timestamp`: it is for systems of type \"jsonl\"; messages of Kafka have \
         times of their own\n\
         job.toml:15: `streams.kafka.flights.envelope`: it is for systems of type \"jsonl\"; messages of Kafka have \
         parts of their own",
    );
    says(
        &format!("{FILES}[streams.\"files.flights\"]\nenvelope = \"no\"\n"),
        "job.toml:13: `streams.files.flights.envelope`: expected true or false, found a string",
    );
    says(
        &format!("{FILES}[streams.\"files.flights\"]\ntopic = \" \"\n"),
        "job.toml:13: `streams.files.flights.topic`: \" \" is not a path; valid: a file of JSON lines, a folder of them, \
         or \"-\" for stdin and stdout",
    );
    says(
        &with("\"kafka\"", "\"kafak\""),
        "job.toml:11: `systems.kafka.type`: \"kafak\" is not known; did you mean \"kafka\"? \
         valid: \"kafka\", \"jsonl\"",
    );
}

#[test]
fn a_stores_sizes_and_times_are_read_with_their_units() {
    let text = format!(
        "{GOOD}[stores.seen]\ntype = \"memory\"\nttl = \"1h\"\nmax-value = \"1B\"\non-large-value = \"drop\"\n\
         compression = \"none\"\nblock-size = \"64KiB\"\n"
    );
    let expected = StoreSpec {
        kind: StoreKind::Memory,
        ttl_ms: Some(3_600_000),
        max_value_bytes: 1,
        on_large_value: OnLargeValue::Drop,
        compression: Compression::None,
        block_bytes: 64 << 10,
        ..StoreSpec::with_changelog(Some("flight-delays-1-seen-changelog".into()), "kafka")
    };
    assert_eq!(job_file::parse(&text, "job.toml").expect("it is valid").spec.stores["seen"], expected);
    says(
        &format!("{GOOD}[stores.seen]\nmax-value = \"0B\"\nblock-size = \"1B\"\nttl = \"0s\"\n"),
        "job.toml:14: `stores.seen.max-value`: \"0B\" is out of range; valid: \"1B\" to \"1GiB\"\n\
         job.toml:15: `stores.seen.block-size`: \"1B\" is out of range; valid: \"1KiB\" to \"16MiB\"\n\
         job.toml:16: `stores.seen.ttl`: must be longer than zero; valid: a number and a unit (ms, s, m, h, d), such as \
         \"500ms\", \"10s\" or \"1m 30s\"",
    );
}

#[test]
fn backoff_runs_from_less_to_more() {
    says(
        &format!("{GOOD}[restart]\nbackoff = {{ min = \"2m\", max = \"1m\" }}\n"),
        "job.toml:14: `restart.backoff.min`: is longer than `restart.backoff.max`",
    );
    let text = format!("{GOOD}[restart.backoff]\nmax = \"100ms\"\n");
    let restart = job_file::parse(&text, "job.toml").expect("it is valid").spec.restart;
    assert_eq!((restart.backoff_min_ms, restart.backoff_max_ms), (100, 100));
}

#[test]
fn syntax_errors_are_told_with_their_lines() {
    let told = errors("[job]\nname = \"x\n[package\n");
    let first = told.lines().next().expect("one at least");
    assert!(first.starts_with("job.toml:2: not valid TOML: "), "{told}");
    assert_eq!(errors("[job]\nname = \"a\"\nname = \"b\"\n"), "job.toml:3: not valid TOML: duplicate key");
}

#[test]
fn a_problem_found_outside_has_the_same_form() {
    let file = job_file::parse(GOOD, "job.toml").expect("it is valid");
    assert_eq!(file.line_of("package.path"), Some(5));
    assert_eq!(
        file.at("package.path", "there is no file flight-delays").to_string(),
        "job.toml:5: `package.path`: there is no file flight-delays"
    );
}

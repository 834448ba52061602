//! The texts of errors, as a user sees them.

const GOOD: &str = r#"[job]
name = "flight-delays"

[package]
path = "flight-delays"

[task]
inputs = ["kafka.flights"]

[systems.kafka]
type = "kafka"
bootstrap = "127.0.0.1:9092"
"#;

fn errors(text: &str) -> String {
    match job_file::parse(text, "job.toml") {
        Ok(file) => panic!("accepted: {file:?}"),
        Err(problems) => problems.to_string(),
    }
}

/// `GOOD` with one line replaced.
fn with(line: &str, instead: &str) -> String {
    assert!(GOOD.contains(line), "{line}");
    GOOD.replace(line, instead)
}

#[track_caller]
fn says(text: &str, expected: &str) {
    assert_eq!(errors(text), expected);
}

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
commit = "1s"
delivery = "at-least-once"
grouper = "partition"

[systems."kafka"]
type = "kafka"
bootstrap = "127.0.0.1:9092"

[placement]
wait = "2s"
rack-wait = "1s"
host-affinity = true
spread = "none"
on-lease-loss = "keep"

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
         valid keys: inputs, window, commit, delivery, grouper, config",
    );
}

#[test]
fn an_unknown_section_is_named_with_its_line_and_the_nearest() {
    says(
        &with("[task]", "[tasks]"),
        "job.toml:7: unknown section `tasks`; did you mean `task`? valid sections: job, app-master, package, \
         containers, task, systems, streams, stores, placement, restart",
    );
}

#[test]
fn a_key_in_the_wrong_section_is_shown_its_place() {
    says(
        &with("inputs = ", "retries = 3\ninputs = "),
        "job.toml:8: unknown key `task.retries`; did you mean `restart.retries`? \
         valid keys: inputs, window, commit, delivery, grouper, config",
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
fn settings_that_exactness_rests_on_are_not_the_users() {
    says(
        &format!("{GOOD}consumer = {{ isolation.level = \"read_uncommitted\" }}\n"),
        "job.toml:13: `systems.kafka.consumer`: `isolation.level` is set by the runtime, exactness rests on it; leave it out",
    );
}

#[test]
fn dotted_settings_need_no_quotes() {
    let text = format!("{GOOD}consumer = {{ fetch.min.bytes = 1, \"fetch.wait.max.ms\" = 5 }}\n");
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    let consumer: Vec<_> = spec.systems["kafka"].consumer.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(consumer, ["fetch.min.bytes=1", "fetch.wait.max.ms=5"]);
}

#[test]
fn a_key_of_a_later_version_says_so() {
    says(
        &format!("{GOOD}[placement]\nstandby = 1\n"),
        "job.toml:14: `placement.standby` is not supported: standby containers come with a later version; leave it out",
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

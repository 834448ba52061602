//! What the programs say and how they exit when something is wrong, run as a user runs them, without a cluster.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use task_api::system::{NewTopic, SystemAdmin};

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder with a valid job.toml for brokers at `bootstrap`, and its package.
    fn new(bootstrap: &str) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a folder"));
        folder.write("job.toml", &job(bootstrap));
        folder.write("bin/flight-delays", "#!/bin/sh\n");
        let binary = folder.0.path().join("bin/flight-delays");
        std::fs::set_permissions(binary, PermissionsExt::from_mode(0o755)).expect("a mode");
        folder
    }
    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn job(bootstrap: &str) -> String {
    format!(
        "[job]\nname = \"flight-delays\"\n\n[package]\npath = \"bin/flight-delays\"\n\n[task]\n\
         inputs = [\"kafka.flights\"]\nwindow = \"10s\"\n\n[systems.kafka]\ntype = \"kafka\"\n\
         bootstrap = \"{bootstrap}\"\n\n[stores.seen]\n\n[containers]\ncount = 3\n"
    )
}

/// An address where nothing listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound").to_string()
}

fn brokers() -> String {
    std::env::var("SAMZA_TEST_KAFKA").expect("SAMZA_TEST_KAFKA names the brokers; `make test` starts them")
}

fn run(program: &str, folder: &Folder, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.current_dir(folder.path()).args(args).env_remove("SAMZA_RM").env_remove("SAMZA_TOKEN_FILE");
    command.output().expect("the program runs")
}

fn submit(folder: &Folder, args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_samza-submit"), folder, args)
}

fn samza(folder: &Folder, args: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_samza"), folder, args)
}

/// The exit code, stdout and stderr are these; `*` stands for any text.
#[track_caller]
fn is(output: &Output, code: i32, stdout: &str, stderr: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    let data = String::from_utf8_lossy(&output.stdout);
    assert!(like(&data, stdout), "stdout:\n{data}expected:\n{stdout}");
    assert!(like(&told, stderr), "stderr:\n{told}expected:\n{stderr}");
    assert_eq!(output.status.code(), Some(code), "{told}");
}

fn like(text: &str, pattern: &str) -> bool {
    let mut rest = text;
    let mut parts = pattern.split('*').peekable();
    let Some(first) = parts.next() else { return text.is_empty() };
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty()
}

#[test]
fn a_topic_that_would_lose_state_is_refused_before_anything_is_submitted() {
    let theirs = format!("theirs-{}", std::process::id());
    let admin = kafka::KafkaAdmin::new(&brokers(), &BTreeMap::new()).expect("an admin");
    let config = [("cleanup.policy".to_owned(), "delete".to_owned())].into();
    let new = NewTopic { topic: theirs.clone(), partitions: 1, replication: 1, config };
    admin.create(&[new]).expect("created");
    let folder = Folder::new(&brokers());
    let named = format!("[stores.seen]\nchangelog = \"{theirs}\"");
    folder.write("job.toml", &job(&brokers()).replace("[stores.seen]", &named));
    is(
        &submit(&folder, &["job.toml", "--replace", "--rm", &nobody()]),
        65,
        "",
        &format!("job.toml: topic {theirs}*--add-config cleanup.policy=compact*; nothing was submitted\n"),
    );
}

#[test]
fn a_job_on_files_is_for_one_machine_and_check_says_so() {
    let folder = Folder::new("127.0.0.1:9092");
    let job = "[job]\nname = \"delays\"\n[package]\npath = \"bin/flight-delays\"\n[task]\ninputs = [\"files.flights\"]\n\
               [systems.files]\ntype = \"jsonl\"\n";
    folder.write("local.toml", job);
    is(
        &submit(&folder, &["local.toml"]),
        65,
        "",
        "local.toml:8: `systems.files.type`: a job with a system of type \"jsonl\" runs on one machine only: \
         `samza run local.toml --local`\n",
    );
    is(
        &submit(&folder, &["local.toml", "--check"]),
        0,
        "job *systems     files (jsonl in .)\nvalid; nothing was submitted\n",
        "note: local.toml:8: `systems.files.type`: a job with a system of type \"jsonl\" runs on one machine only: *\n",
    );
    is(
        &samza(&folder, &["checkpoint", "local.toml"]),
        65,
        "",
        "local.toml:8: `systems.files.type`: checkpoints of *\n",
    );
}

#[test]
fn a_local_run_is_the_package_with_its_arguments_environment_and_job_file() {
    let folder = Folder::new("127.0.0.1:9092");
    folder.write("bin/flight-delays", "#!/bin/sh\necho \"$RATE $@\"\nexit 7\n");
    is(&samza(&folder, &["run", "job.toml", "--local"]), 7, " --local --job job.toml\n", "");
    is(
        &samza(&folder, &["run", "job.toml", "--local", "--fresh", "--files", "kafka=data"]),
        7,
        " --local --job job.toml --fresh --files kafka=data\n",
        "",
    );
    let command = "command = [\"./flight-delays\", \"--verbose\"]\nenv = { RATE = 3 }\n[task]";
    folder.write("own.toml", &job("127.0.0.1:9092").replace("[task]", command));
    is(&samza(&folder, &["run", "own.toml", "--local"]), 7, "3 --verbose --local --job own.toml\n", "");
    folder.write("other.toml", &job("127.0.0.1:9092").replace("[task]", "command = [\"bash\"]\n[task]"));
    is(
        &samza(&folder, &["run", "other.toml", "--local"]),
        65,
        "",
        "other.toml:7: `package.command`: it does not start `./flight-delays`, the package; *\n",
    );
}

#[test]
fn a_run_that_is_not_local_is_told_what_to_use() {
    let folder = Folder::new("127.0.0.1:9092");
    is(
        &samza(&folder, &["run", "job.toml"]),
        2,
        "",
        "samza: `samza run` needs --local: it runs a job in one process on this machine. For a cluster: \
         `samza-submit job.toml`\n",
    );
}

#[test]
fn a_start_point_that_is_none_is_a_wrong_command_line() {
    let folder = Folder::new("127.0.0.1:9092");
    is(
        &samza(&folder, &["checkpoint", "job.toml", "--set", "kafka.flights=newset"]),
        2,
        "",
        "error: invalid value 'kafka.flights=newset' for '--set *': *did you mean \"newest\"?*",
    );
    let (nobody, no_rm) = (nobody(), nobody());
    let folder = Folder::new(&nobody);
    is(
        &samza(&folder, &["checkpoint", "job.toml"]),
        5,
        "",
        "samza: job.toml:13: `systems.kafka.bootstrap`: no broker *\n",
    );
    is(
        &samza(&folder, &["checkpoint", "job.toml", "--set", "kafka.flights=oldest", "--rm", &no_rm]),
        5,
        "",
        "samza: *; --offline moves start points without asking whether the job is live\n",
    );
}

#[test]
fn check_says_what_would_be_run_without_a_cluster() {
    let folder = Folder::new("127.0.0.1:9092");
    let expected = "\
job         flight-delays-1
package     bin/flight-delays, 10 B
command     ./flight-delays
containers  3 × 512 MiB, 0.50 cpu, 1 thread(s) each
app master  64 MiB, 0.10 cpu
inputs      kafka.flights
delivery    at-least-once, commit every 1.0s, window 10s
systems     kafka (kafka at 127.0.0.1:9092)
stores      seen (changelog kafka.flight-delays-1-seen-changelog)
valid; nothing was submitted
";
    is(&submit(&folder, &["job.toml", "--check"]), 0, expected, "");
}

#[test]
fn check_as_json_prints_the_job_with_its_defaults() {
    let folder = Folder::new("127.0.0.1:9092");
    let output = submit(&folder, &["job.toml", "--check", "-o", "json"]);
    let spec: types::JobSpec = serde_json::from_slice(&output.stdout).expect("a job");
    assert_eq!(spec.containers.count, 3);
    assert_eq!(spec.task.commit_ms, 1_000);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn check_tells_which_outputs_of_an_exactly_once_job_are_not() {
    let folder = Folder::new("127.0.0.1:9092");
    let other = |bootstrap: &str| {
        let text = job("127.0.0.1:9092").replace("window =", "delivery = \"exactly-once\"\nwindow =");
        folder.write(
            "job.toml",
            &format!("{text}\n[systems.b]\ntype = \"kafka\"\nbootstrap = \"{bootstrap}\"\n"),
        );
        let output = submit(&folder, &["job.toml", "--check", "-o", "json"]);
        assert_eq!(output.status.code(), Some(0));
        serde_json::from_slice::<types::JobSpec>(&output.stdout).expect("a job");
        String::from_utf8(output.stderr).expect("text")
    };
    let told = "note: `task.delivery`: exactly-once holds for outputs to system `kafka`, the first input's; outputs to \
                `b` are at-least-once";
    assert_eq!(other("127.0.0.2:9092"), format!("{told}\n"));
    let same = "; `b` has the brokers of `kafka`: outputs to `kafka.…` are exactly-once\n";
    assert_eq!(other("127.0.0.1:9092"), format!("{told}{same}"));
}

#[test]
fn a_bad_job_file_is_refused_with_line_and_key() {
    let folder = Folder::new("127.0.0.1:9092");
    let text = job("127.0.0.1:9092").replace("inputs = ", "inptus = ").replace("10s", "10 parsecs");
    folder.write("job.toml", &text);
    let expected = "\
job.toml:8: unknown key `task.inptus`; did you mean `inputs`? valid keys: *
job.toml:9: `task.window`: \"10 parsecs\" is not a duration; valid: *
";
    is(&submit(&folder, &["job.toml"]), 65, "", expected);
    is(&submit(&folder, &["job.toml", "--check"]), 65, "", expected);
}

#[test]
fn a_missing_job_file_is_named() {
    let folder = Folder::new("127.0.0.1:9092");
    is(
        &submit(&folder, &["jab.toml"]),
        66,
        "",
        "samza-submit: cannot read jab.toml: there is no such file\n",
    );
}

#[test]
fn a_missing_package_is_named_with_line_and_key() {
    let folder = Folder::new("127.0.0.1:9092");
    std::fs::remove_file(folder.path().join("bin/flight-delays")).expect("it was there");
    let expected = "job.toml:5: `package.path`: there is no file bin/flight-delays; build it, or give its path \
                    relative to the job file's folder\n";
    is(&submit(&folder, &["job.toml"]), 65, "", expected);
}

#[test]
fn a_package_that_cannot_be_run_is_named() {
    let folder = Folder::new("127.0.0.1:9092");
    let binary = folder.path().join("bin/flight-delays");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o644)).expect("a mode");
    is(
        &submit(&folder, &["job.toml"]),
        65,
        "",
        "job.toml:5: `package.path`: bin/flight-delays is not executable; run `chmod +x *`, or give *\n",
    );
    std::fs::remove_file(&binary).expect("it was there");
    std::fs::create_dir(&binary).expect("a folder");
    is(
        &submit(&folder, &["job.toml"]),
        65,
        "",
        "job.toml:5: `package.path`: bin/flight-delays is not a file; *\n",
    );
}

#[test]
fn an_unreachable_broker_is_named_with_line_and_key() {
    let address = nobody();
    let folder = Folder::new(&address);
    let expected = format!(
        "samza-submit: job.toml:13: `systems.kafka.bootstrap`: no broker answers: {address} (connection refused)\n"
    );
    is(&submit(&folder, &["job.toml"]), 5, "", &expected);
}

#[test]
fn an_unreachable_resource_manager_is_named_with_the_way_out() {
    let folder = Folder::new(&brokers());
    let rm = nobody();
    let expected = format!(
        ": the resource manager at {rm} does not answer (*); is it running there? --rm or SAMZA_RM names another\n"
    );
    is(&submit(&folder, &["job.toml", "--rm", &rm]), 5, "", &format!("samza-submit{expected}"));
    for command in [
        &["list"][..],
        &["status", "x"],
        &["stop", "x"],
        &["kill", "x"],
        &["logs", "x"],
        &["nodes"],
        &["purge", "x"],
    ] {
        let args = [command, &["--rm", &rm]].concat();
        is(&samza(&folder, &args), 5, "", &format!("samza{expected}"));
    }
}

#[test]
fn a_broker_that_answers_beside_one_that_does_not_is_enough() {
    let silent = nobody();
    let folder = Folder::new(&format!("{},{silent}", brokers()));
    let output = submit(&folder, &["job.toml", "--rm", &nobody()]);
    let expected = format!(
        "warning: job.toml:13: `systems.kafka.bootstrap`: not all brokers answer: {silent} (*)\n*does not answer*"
    );
    is(&output, 5, "", &expected);
}

#[test]
fn a_listener_that_is_no_broker_is_told_from_one() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    // It takes connections and answers nothing.
    let folder = Folder::new(&address.to_string());
    let expected = "waiting for an answer of the brokers of system `kafka`, 20 s at most\n\
                    samza-submit: job.toml:13: `systems.kafka.bootstrap`: somebody listens there but no broker answers*";
    is(&submit(&folder, &["job.toml"]), 5, "", expected);
}

#[test]
fn settings_that_do_not_go_together_are_told_before_a_broker_is_asked() {
    let folder = Folder::new(&nobody());
    let more = "producer = { \"linger.ms\" = 50000, \"message.timeout.ms\" = 5000 }\n";
    folder.write("job.toml", &job(&nobody()).replace("\n[stores", &format!("{more}\n[stores")));
    let expected = "job.toml:14: `systems.kafka.producer`: *message.timeout.ms*linger.ms*\n";
    is(&submit(&folder, &["job.toml"]), 65, "", expected);
}

#[test]
fn nothing_secret_of_a_system_is_printed() {
    let folder = Folder::new(&nobody());
    let secured = "[systems.kafka.security]\nmechanism = \"SCRAM-SHA-512\"\nusername = \"job\"\n\
                   password = { file = \"kafka-password\" }\n\n[stores";
    folder.write("job.toml", &job(&nobody()).replace("[stores", secured));
    folder.write("kafka-password", "swordfish\n");
    let told = submit(&folder, &["job.toml", "--check"]);
    let text = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        text.contains("sasl_ssl with SCRAM-SHA-512, username job, password from kafka-password"),
        "{text}"
    );
    for args in [&["job.toml", "--check", "-o", "json"][..], &["job.toml"]] {
        let told = submit(&folder, args);
        let text =
            format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
        assert!(!text.contains("swordfish"), "{text}");
    }
    std::fs::remove_file(folder.path().join("kafka-password")).expect("it was there");
    let expected = "job.toml:18: `systems.kafka.security.password`: there is no file kafka-password; *";
    is(&submit(&folder, &["job.toml", "--check"]), 65, "", expected);
    let open =
        job(&nobody()).replace("\n[stores", "consumer = { \"sasl.password\" = \"swordfish\" }\n\n[stores");
    folder.write("job.toml", &open);
    let told = submit(&folder, &["job.toml", "--check", "-o", "json"]);
    let expected = "job.toml:14: `systems.kafka.consumer.sasl.password`: security is given once *";
    is(&told, 65, "", expected);
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let folder = Folder::new("127.0.0.1:9092");
    assert_eq!(submit(&folder, &[]).status.code(), Some(2));
    assert_eq!(submit(&folder, &["job.toml", "--check", "--wait"]).status.code(), Some(2));
    assert_eq!(samza(&folder, &["lst"]).status.code(), Some(2));
    assert_eq!(samza(&folder, &["logs", "x", "--slot", "1", "--app-master"]).status.code(), Some(2));
}

#[test]
fn help_has_the_exit_codes_of_the_reference() {
    let folder = Folder::new("127.0.0.1:9092");
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md"))
        .expect("docs/cli.md");
    for output in [submit(&folder, &["--help"]), samza(&folder, &["--help"])] {
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        for code in [0, 1, 2, 3, 4, 5, 65, 66] {
            assert!(help.contains(&format!("\n  {code}")), "{code} in\n{help}");
            assert!(reference.contains(&format!("| {code} |")), "{code} in docs/cli.md");
        }
    }
}

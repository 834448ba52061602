//! The programs against a resource manager that answers as it is told to.

mod fake;

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use fake::{Fake, app, live_app, node, slot_status};
use types::{AppState, ContainerPhase, ExitCause, NodeReport, NodeStateName, WaitingAsk};

struct Job {
    folder: tempfile::TempDir,
}

/// A valid job file whose broker answers.
fn job() -> Job {
    let folder = tempfile::tempdir().expect("a folder");
    let brokers = std::env::var("SAMZA_TEST_KAFKA")
        .expect("SAMZA_TEST_KAFKA names the brokers; `make test` starts them");
    let text = format!(
        "[job]\nname = \"flights\"\n[package]\npath = \"flights\"\n[task]\ninputs = [\"kafka.flights\"]\n\
         [systems.kafka]\ntype = \"kafka\"\nbootstrap = \"{brokers}\"\n"
    );
    std::fs::write(folder.path().join("job.toml"), text).expect("a file");
    let binary = folder.path().join("flights");
    std::fs::write(&binary, vec![b'x'; 700_000]).expect("a file");
    std::fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).expect("a mode");
    Job { folder }
}

fn submit(fake: &Fake, job: &Job, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samza-submit"));
    command.current_dir(job.folder.path()).args(["job.toml", "--rm", &fake.address]).args(args);
    command.output().expect("the program runs")
}

fn samza(fake: &Fake, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samza"));
    command.args(args).args(["--rm", &fake.address]).output().expect("the program runs")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[test]
fn a_package_is_uploaded_once_and_the_id_printed() {
    let (fake, job) = (Fake::start(), job());
    let first = submit(&fake, &job, &[]);
    assert_eq!(
        (out(&first).as_str(), first.status.code()),
        ("application_7_0001\n", Some(0)),
        "{}",
        err(&first)
    );
    assert_eq!(err(&first), "flights-1 is accepted; follow it with `samza status flights-1`\n");
    fake.with(|state| {
        let spec = &state.submitted[0].1;
        let artefact = spec.package.artefact.clone().expect("it is filled in");
        assert_eq!((artefact.name.as_str(), artefact.bytes), ("flights", 700_000));
        assert_eq!(state.artefacts[&artefact.digest.0], vec![b'x'; 700_000]);
        assert_eq!(state.uploads, 1);
    });
    let second = submit(&fake, &job, &["-o", "json"]);
    let printed: serde_json::Value = serde_json::from_str(&out(&second)).expect("JSON");
    assert_eq!((&printed["app"], &printed["job"]), (&"application_7_0002".into(), &"flights-1".into()));
    fake.with(|state| assert_eq!((state.uploads, state.submitted.len()), (1, 2)));
}

#[test]
fn a_package_at_a_url_is_left_to_the_nodes_and_secrets_are_sent_beside_the_job() {
    let (fake, job) = (Fake::start(), job());
    let path = job.folder.path().join("job.toml");
    let text = std::fs::read_to_string(&path).expect("a file");
    let url = format!("url = \"https://example.org/flights\"\nsha256 = \"{}\"", "0a".repeat(32));
    let text = text.replace("path = \"flights\"", &url) + "[package.secrets]\npassword = { file = \"pw\" }\n";
    std::fs::write(&path, text).expect("a file");
    let refused = submit(&fake, &job, &[]);
    assert_eq!(
        err(&refused),
        "job.toml:12: `package.secrets.password.file`: there is no file pw; give its path relative to the \
         job file's folder\n"
    );
    std::fs::write(job.folder.path().join("pw"), "swordfish").expect("a file");
    let checked = submit(&fake, &job, &["--check"]);
    assert!(out(&checked).contains("https://example.org/flights, which nodes fetch"), "{}", out(&checked));
    assert!(out(&checked).contains("secrets     password\n") && !out(&checked).contains("swordfish"));
    let output = submit(&fake, &job, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    fake.with(|state| {
        let spec = &state.submitted[0].1;
        let artefact = spec.package.artefact.as_ref().expect("it is filled in");
        assert_eq!(artefact.from.as_deref(), Some("https://example.org/flights"));
        assert_eq!((state.uploads, &state.secrets), (0, &vec![("password".into(), "swordfish".into())]));
        assert!(!serde_json::to_string(spec).expect("JSON").contains("swordfish"));
    });
}

#[test]
fn a_second_submit_of_a_live_job_is_refused_and_changes_nothing() {
    let (fake, job) = (Fake::start(), job());
    fake.with(|state| state.apps = vec![live_app("application_7_0009", "flights")]);
    let output = submit(&fake, &job, &[]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(
        err(&output),
        "samza-submit: job.toml:2: `job.name`: flights-1 is live already: application_7_0009, running; \
         `samza stop flights-1` ends it, --replace rolls it, another `job.id` runs beside it\n"
    );
    fake.with(|state| assert_eq!((state.uploads, state.submitted.len()), (0, 0)));
    let replaced = submit(&fake, &job, &["--replace"]);
    assert_eq!(replaced.status.code(), Some(0), "{}", err(&replaced));
    fake.with(|state| assert!(state.submitted[0].2, "replace is passed on"));
}

#[test]
fn a_submit_whose_answer_is_lost_is_repeated_under_its_id() {
    let (fake, job) = (Fake::start(), job());
    fake.with(|state| state.lose_answers = 2);
    let output = submit(&fake, &job, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    fake.with(|state| {
        let ids: Vec<&String> = state.submitted.iter().map(|(id, _, _)| id).collect();
        assert_eq!(ids.len(), 3);
        assert!(ids[0].len() == 32 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    });
}

#[test]
fn what_the_resource_manager_finds_wrong_with_a_job_is_told() {
    let (fake, job) = (Fake::start(), job());
    fake.with(|state| {
        state.refuse = Some(tonic::Status::invalid_argument("queue `default` has no room for 9 TiB, ever"))
    });
    let output = submit(&fake, &job, &[]);
    assert_eq!(output.status.code(), Some(65));
    assert_eq!(err(&output), "job.toml: queue `default` has no room for 9 TiB, ever\n");
}

#[test]
fn wait_tells_every_change_until_all_containers_run() {
    let (fake, job) = (Fake::start(), job());
    let accepted = app("application_7_0001", "flights", AppState::Accepted);
    let mut waiting = live_app("application_7_0001", "flights");
    waiting.containers_running = 0;
    waiting.containers.clear();
    waiting.status = None;
    waiting.waiting =
        vec![WaitingAsk { slot: 0, waited_ms: 10, reasons: vec!["2 nodes lack memory".into()] }];
    let mut restoring = live_app("application_7_0001", "flights");
    let status = restoring.status.as_mut().expect("it has one");
    status.slots[0].status.phase = ContainerPhase::Restoring;
    let running = live_app("application_7_0001", "flights");
    fake.with(|state| state.watched = vec![accepted, waiting, restoring, running]);
    let output = submit(&fake, &job, &["--wait"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        err(&output),
        "flights-1: accepted\n\
         flights-1: running, 0 of 1 containers\n  slot 0 waits: 2 nodes lack memory\n\
         flights-1: running, 1 of 1 containers\n  slot 0: restoring\n"
    );
}

#[test]
fn wait_fails_with_the_reason_when_the_job_does() {
    let (fake, job) = (Fake::start(), job());
    let mut failed = app("application_7_0001", "flights", AppState::Failed);
    failed.diagnostics = "slot 0 failed 9 times within 5 min".into();
    fake.with(|state| state.watched = vec![live_waiting(), failed]);
    let output = submit(&fake, &job, &["--wait"]);
    assert_eq!(output.status.code(), Some(1));
    let expected =
        "samza-submit: flights-1 (application_7_0001) failed: slot 0 failed 9 times within 5 min\n";
    assert!(err(&output).ends_with(expected), "{}", err(&output));
}

fn live_waiting() -> types::AppReport {
    let mut report = live_app("application_7_0001", "flights");
    report.containers_running = 0;
    report.containers.clear();
    report
}

#[test]
fn wait_gives_up_when_it_is_told_to() {
    let (fake, job) = (Fake::start(), job());
    fake.with(|state| state.watched = vec![live_waiting()]);
    let output = submit(&fake, &job, &["--wait", "--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(err(&output).contains("application_7_0001 is not running after"), "{}", err(&output));
}

#[test]
fn list_and_nodes_are_tables_that_tools_can_read() {
    let fake = Fake::start();
    fake.with(|state| {
        let mut over = app("application_7_0001", "old", AppState::Failed);
        over.diagnostics = "no such topic".into();
        state.apps = vec![over, live_app("application_7_0002", "flights")];
        state.nodes = vec![node("node-a", "rack-1")];
    });
    let listed = out(&samza(&fake, &["list"]));
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["APPLICATION", "JOB", "STATE", "RUNNING", "LAG", "ATTEMPT", "SUBMITTED", "NOTE"]);
    assert_eq!(lines[1][..6], ["application_7_0002", "flights-1", "running", "1/1", "812", "1"]);
    assert_eq!(lines[2][..3], ["application_7_0001", "old-1", "failed"]);
    assert!(listed.ends_with("no such topic\n"), "{listed}");
    assert_eq!(out(&samza(&fake, &["list", "--live", "--no-headers"])).lines().count(), 1);
    let nodes = samza(&fake, &["nodes", "--no-headers"]);
    assert_eq!(
        out(&nodes),
        "node-a  active  rack-1  3.0 GiB  4.0 GiB  1.50  2.00  1  0.1s  node-a,127.0.0.1  -\n"
    );
    assert_eq!(err(&nodes), "resource manager 0.1.0, epoch 7, 1 nodes\n");
    let json: types::ClusterReport =
        serde_json::from_slice(&samza(&fake, &["nodes", "-o", "json"]).stdout).expect("JSON");
    assert_eq!(json.nodes, [node("node-a", "rack-1")]);
}

#[test]
fn status_shows_each_slot() {
    let fake = Fake::start();
    fake.with(|state| {
        let mut report = live_app("application_7_0002", "flights");
        report.containers_wanted = 2;
        let mut second = slot_status(1);
        second.container = None;
        second.waiting = vec!["backs off for 2 s".into()];
        second.last_exit = Some(ExitCause::Failed { code: 101 });
        report.status.as_mut().expect("it has one").slots.push(second);
        state.apps = vec![report];
    });
    let shown = out(&samza(&fake, &["status", "flights"]));
    let row = |slot: &str| -> Vec<String> {
        let line = shown.lines().find(|line| line.trim_start().starts_with(slot)).expect(slot);
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    assert!(
        shown.starts_with("application application_7_0002\njob         flights-1\nstate       running\n"),
        "{shown}"
    );
    let first = row("0 ");
    let cells = "0|running|node-a|yes|Partition 0|812|2.0s|300MiB/512MiB|0.25/0.50|cpu:12%,io:3%";
    assert_eq!(first[..10].join("|"), cells);
    assert_eq!(first.last().map(String::as_str), Some("container_7_000002"));
    let second = row("1 ");
    assert_eq!(second[1], "waiting");
    assert!(
        second.contains(&"failed with exit code 101".to_owned())
            && second.contains(&"backs off for 2 s".to_owned())
    );
}

#[test]
fn a_job_that_is_not_there_exits_with_3() {
    let fake = Fake::start();
    fake.with(|state| state.apps = vec![live_app("application_7_0002", "flights")]);
    for command in ["status", "stop", "kill", "logs"] {
        let output = samza(&fake, &[command, "clicks"]);
        assert_eq!(output.status.code(), Some(3), "{command}");
        assert_eq!(err(&output), "samza: there is no job `clicks`; running: flights-1\n");
    }
    let output = samza(&fake, &["logs", "flights", "--slot", "7"]);
    assert_eq!(output.status.code(), Some(3), "{}", err(&output));
}

#[test]
fn stop_and_kill_reach_the_application_and_wait_for_its_end() {
    let fake = Fake::start();
    fake.with(|state| {
        state.apps = vec![live_app("application_7_0002", "flights")];
        let mut stopping = live_app("application_7_0002", "flights");
        stopping.state = AppState::Stopping;
        state.watched = vec![stopping, app("application_7_0002", "flights", AppState::Finished)];
    });
    let stopped = samza(&fake, &["stop", "flights", "--wait"]);
    assert_eq!(
        (stopped.status.code(), err(&stopped).as_str()),
        (Some(0), "flights-1: stopping\nflights-1: finished\n")
    );
    assert_eq!(samza(&fake, &["kill", "flights-1"]).status.code(), Some(0));
    fake.with(|state| {
        assert_eq!(
            state.stopped,
            [("application_7_0002".to_owned(), false), ("application_7_0002".to_owned(), true)]
        );
    });
}

#[test]
fn logs_of_one_container_are_as_written_and_those_of_several_are_told_apart() {
    let fake = Fake::start();
    fake.with(|state| {
        let mut report = live_app("application_7_0002", "flights");
        let mut other = report.containers[0].clone();
        other.container = "container_7_000005".parse().expect("an id");
        (other.slot, other.role) = (Some(1), "slot 1".into());
        report.containers.insert(0, other);
        state.apps = vec![report];
    });
    let one = samza(&fake, &["logs", "flights", "--slot", "0", "--stderr", "--tail", "5"]);
    assert_eq!(out(&one), "container_7_000002 stderr\ntail 5\n", "{}", err(&one));
    let all = samza(&fake, &["logs", "flights"]);
    assert_eq!(
        out(&all),
        "slot 0 | container_7_000002 stdout\nslot 0 | all\nslot 1 | container_7_000005 stdout\nslot 1 | all\n"
    );
}

#[test]
fn start_points_of_a_live_job_are_not_moved_unless_its_containers_may_restart() {
    let (fake, job) = (Fake::start(), job());
    fake.with(|state| state.apps = vec![live_app("application_7_0009", "flights")]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_samza"));
    command.current_dir(job.folder.path()).args(["checkpoint", "job.toml", "--rm", &fake.address]);
    let output = command.args(["--set", "kafka.flights=oldest"]).output().expect("the program runs");
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(
        err(&output),
        "samza: flights-1 is live: application_7_0009, running; move them with --live, which restarts the \
         containers concerned, or end it with `samza stop flights-1 --wait`, move its start points, and submit \
         job.toml again\n"
    );
}

#[test]
fn a_node_is_drained_with_its_deadline_and_taken_back() {
    let fake = Fake::start();
    fake.with(|state| {
        state.nodes =
            vec![NodeReport { state: NodeStateName::Drained, containers: 0, ..node("worker-2", "r1") }];
    });
    let output = samza(&fake, &["node", "drain", "worker-2", "--deadline", "5m", "--wait"]);
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), "worker-2 is empty\n"));
    let output = samza(&fake, &["node", "undrain", "worker-2"]);
    assert_eq!(err(&output), "worker-2 takes containers again\n");
    let drains = fake.with(|state| state.drains.clone());
    assert_eq!(drains, [("worker-2".to_owned(), Some(300_000)), ("worker-2".to_owned(), None)]);
    let output = samza(&fake, &["node", "drain", "worker-9"]);
    assert_eq!(
        (output.status.code(), err(&output).as_str()),
        (Some(3), "samza: no node `worker-9`; `samza nodes` shows what there is\n")
    );
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let fake = Fake::start();
    fake.with(|state| {
        state.apps = (0..5000).map(|n| live_app(&format!("application_7_{n:04}"), "flights")).collect()
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_samza"));
    command.args(["list", "--rm", &fake.address]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
}

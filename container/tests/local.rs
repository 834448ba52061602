//! A job's binary with `--local`: on files, on pipes and on a real Kafka; killed at any moment and run again.

#[path = "local/brokers.rs"]
mod brokers;
#[path = "../../tests/src/built.rs"]
mod built;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(120);

/// A folder with a job file for the example `counter`, which counts by key and sends each new count.
struct Job {
    folder: tempfile::TempDir,
}

/// Seeded, so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn key(n: usize) -> String {
    format!("k{}", (n * n + n / 3) % 307)
}

impl Job {
    fn new(delivery: &str, more: &str) -> Job {
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!(
            r#"
[job]
name = "local"
[package]
path = "counter"
[task]
inputs = ["files.in"]
commit = "1ms"
delivery = "{delivery}"
config = {{ output = "files.out" }}
[systems.files]
type = "jsonl"
[stores.counts]
changelog = true
{more}"#
        );
        fs::write(folder.path().join("job.toml"), text).expect("written");
        Job { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn log(&self) -> PathBuf {
        self.path(".samza/local-1/log")
    }

    /// Appends the messages with these numbers to an input file.
    fn feed(&self, name: &str, numbers: std::ops::Range<usize>) {
        let file = fs::OpenOptions::new().create(true).append(true).open(self.path(name)).expect("opened");
        let mut file = std::io::BufWriter::new(file);
        // So long that an input of some ten thousand is many batches, with a commit after each.
        let ballast = "x".repeat(200);
        for n in numbers {
            writeln!(file, "{{\"key\":\"{}\",\"value\":\"{n} {ballast}\"}}", key(n)).expect("written");
        }
        file.flush().expect("written");
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(example("counter"));
        command.current_dir(&self.folder).arg("--local").args(more).env("RUST_LOG", "warn");
        command
    }

    /// Runs to the end, which must be a good one.
    fn run(&self, more: &[&str]) -> Output {
        let output = self.command(more).stdin(Stdio::null()).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {told}", output.status);
        output
    }

    fn outputs(&self) -> Vec<(String, u64)> {
        let text = fs::read_to_string(self.path("out.jsonl")).expect("there");
        assert!(text.is_empty() || text.ends_with('\n'), "a torn line was left");
        text.lines().map(row).collect()
    }
}

fn row(line: &str) -> (String, u64) {
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    (line["key"].as_str().expect("a key").to_owned(), line["value"].as_u64().expect("a count"))
}

/// What counting the messages with these numbers sends.
fn counted(numbers: impl IntoIterator<Item = usize>) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let count = |n: usize| {
        let count = counts.entry(key(n)).or_default();
        *count += 1;
        (key(n), *count)
    };
    numbers.into_iter().map(count).collect()
}

/// An example beside this test's executable.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    path.pop();
    built::fresh(path.join("examples").join(name))
}

/// A process that is killed if a test leaves it behind.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        Running(command.spawn().expect("it starts"))
    }
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().expect("a pid")).expect("not zero");
        kill_process(pid, signal).expect("it is there");
    }
    fn exit_code(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("it is ours") {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    /// Kills it once its log has grown (or it has been written anew) so many times; returns whether it was still there.
    fn kill_after(&mut self, log: &Path, changes: u64) -> bool {
        let length = || fs::metadata(log).map_or(0, |m| m.len());
        let (mut seen, mut last) = (0, length());
        while seen < changes {
            if self.0.try_wait().expect("it is ours").is_some() {
                return false;
            }
            let now = length();
            seen += u64::from(now != last);
            last = now;
            std::thread::yield_now();
        }
        let _ = self.0.kill();
        !self.0.wait().expect("it is ours").success()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_job_on_files_runs_to_its_end_and_later_goes_on_with_what_was_appended() {
    let job = Job::new("exactly-once", "");
    job.feed("in.jsonl", 0..1_000);
    let told = String::from_utf8(job.run(&[]).stderr).expect("text");
    assert!(told.contains("local-1: 1000 messages in") && told.contains("messages/s"), "{told}");
    assert_eq!(job.outputs(), counted(0..1_000));
    assert!(told.contains("local-1: 1000 lines of 1 file read, 1000 lines written"), "{told}");
    let told = String::from_utf8(job.run(&[]).stderr).expect("text");
    assert!(told.contains("local-1: 0 messages in"), "{told}");
    assert!(told.contains("local-1: nothing new since the last run; --fresh starts over"), "{told}");
    job.feed("in.jsonl", 1_000..1_500);
    job.run(&[]);
    assert_eq!(job.outputs(), counted(0..1_500));
    // What RocksDB has is only a copy: without it the log restores the state.
    fs::remove_dir_all(job.path(".samza/local-1/stores")).expect("there");
    job.feed("in.jsonl", 1_500..1_600);
    job.run(&[]);
    assert_eq!(job.outputs(), counted(0..1_600));
    job.run(&["--fresh"]);
    assert_eq!(job.outputs(), counted(0..1_600), "a fresh start replaces the outputs");
}

/// Kills the job again and again until it has come to its end.
fn kill_until_done(job: &Job, seed: u64) {
    let mut dice = Dice(seed);
    let mut killed = 0;
    while killed < 30 {
        let mut running = Running::start(job.command(&[]).stdin(Stdio::null()).stderr(Stdio::null()));
        if !running.kill_after(&job.log(), dice.below(8)) {
            break;
        }
        killed += 1;
    }
    assert!(killed > 0, "nothing was killed");
    job.run(&[]);
}

#[test]
fn a_job_that_is_killed_at_any_moment_is_exact_in_outputs_and_state() {
    for (seed, threads) in [(1, 1), (2, 1), (3, 2)] {
        let errors = "[errors]\ndecode = \"dead-letter\"\ndead-letter = \"files.bad\"\n";
        let job = Job::new("exactly-once", &format!("[containers]\nthreads = {threads}\n{errors}"));
        let per_file = 40_000 / threads;
        if threads == 1 {
            for part in 0..8 {
                job.feed("in.jsonl", part * per_file / 8..(part + 1) * per_file / 8);
                let file = fs::OpenOptions::new().append(true).open(job.path("in.jsonl"));
                writeln!(file.expect("there"), "no message {part}").expect("written");
            }
        } else {
            fs::create_dir(job.path("in.jsonl")).expect("a folder");
            (0..threads).for_each(|n| job.feed(&format!("in.jsonl/{n}.jsonl"), 0..per_file));
        }
        kill_until_done(&job, seed);
        let (mut found, mut expected) = (job.outputs(), vec![counted(0..per_file); threads].concat());
        if threads > 1 {
            // The lines of two tasks come in any order.
            found.sort();
            expected.sort();
        }
        assert!(found == expected, "seed {seed}: {} outputs, {} expected", found.len(), expected.len());
        let letters = fs::read_to_string(job.path("bad.jsonl")).unwrap_or_default();
        assert_eq!(letters.lines().count(), if threads == 1 { 8 } else { 0 }, "{letters}");
    }
}

#[test]
fn at_least_once_loses_no_output_and_its_state_is_exact() {
    let job = Job::new("at-least-once", "");
    job.feed("in.jsonl", 0..40_000);
    kill_until_done(&job, 4);
    let found: std::collections::BTreeSet<_> = job.outputs().into_iter().collect();
    let expected: std::collections::BTreeSet<_> = counted(0..40_000).into_iter().collect();
    assert!(found == expected, "{} different outputs, {} expected", found.len(), expected.len());
    // One more message of each key tells its count.
    let before = job.outputs().len();
    job.feed("in.jsonl", 40_000..41_000);
    job.run(&[]);
    assert_eq!(job.outputs()[before..], counted(0..41_000)[40_000..]);
}

#[test]
fn a_pipe_is_read_to_its_end_and_lines_come_out_as_they_are_committed() {
    let job = Job::new("exactly-once", "");
    let arguments = ["--input", "files.in=-", "--output", "files.out=-"];
    let mut command = job.command(&arguments);
    let mut running = Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut input = running.0.stdin.take().expect("piped");
    let mut lines = BufReader::new(running.0.stdout.take().expect("piped")).lines();
    let mut next = || row(&lines.next().expect("a line").expect("text"));
    for n in 0..20 {
        writeln!(input, "{{\"key\":\"{}\",\"value\":{n}}}", key(n)).expect("written");
        assert_eq!(next(), counted(0..=n)[n]);
    }
    // Nobody else may use the folder meanwhile.
    let second = job.command(&arguments).stdin(Stdio::null()).output().expect("it runs");
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    assert!(told.contains("in use by another process"), "{told}");
    drop(input);
    assert_eq!(running.exit_code(), Some(0));
}

#[test]
fn a_pipe_that_is_said_to_be_bounded_is_read_to_its_end_too() {
    let job = Job::new("exactly-once", "[streams.\"files.in\"]\nbounded = true\nbootstrap = true\n");
    job.feed("in.jsonl", 0..1_000);
    let input = fs::File::open(job.path("in.jsonl")).expect("there");
    let mut cat = Command::new("cat").stdin(input).stdout(Stdio::piped()).spawn().expect("it runs");
    let pipe = cat.stdout.take().expect("piped");
    let output = job.command(&["--input", "files.in=-"]).stdin(pipe).output().expect("it runs");
    assert!(output.status.success() && cat.wait().expect("it ends").success());
    assert_eq!(job.outputs(), counted(0..1_000));
    job.run(&["--fresh"]);
    assert_eq!(job.outputs(), counted(0..1_000), "and so is a file");
}

#[test]
fn sigterm_commits_and_ends() {
    let job = Job::new("exactly-once", "");
    let mut command = job.command(&["--input", "files.in=-"]);
    let mut running = Running::start(command.stdin(Stdio::piped()).stderr(Stdio::piped()));
    let mut input = running.0.stdin.take().expect("piped");
    writeln!(input, "{{\"key\":\"a\",\"value\":1}}").expect("written");
    let start = Instant::now();
    while fs::read_to_string(job.path("out.jsonl")).unwrap_or_default().is_empty() {
        assert!(start.elapsed() < PATIENCE, "no output");
        std::thread::sleep(Duration::from_millis(2));
    }
    running.signal(Signal::TERM);
    assert_eq!(running.exit_code(), Some(143));
    assert_eq!(job.outputs(), [("a".to_owned(), 1)]);
    let mut told = String::new();
    running.0.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
    assert!(told.contains("local-1: 1 messages in"), "{told}");
}

#[test]
fn what_cannot_run_is_told_and_changes_nothing() {
    let job = Job::new("exactly-once", "");
    let told = |more: &[&str]| {
        let output = job.command(more).stdin(Stdio::null()).output().expect("it runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = told(&[]);
    assert!(missing.contains("input files.in: ") && missing.contains("in.jsonl is not there"), "{missing}");
    assert!(missing.contains("--input files.in=FILE"), "{missing}");
    let state = told(&["--state", "job.toml/state"]);
    assert!(state.contains("cannot keep state in") && state.contains("--state DIR"), "{state}");
    assert!(told(&["--job", "other.toml"]).contains("cannot read other.toml"));
    assert!(told(&["--input", "files.inn=x"]).contains("`files.inn` is no input"));
    assert!(told(&["--files", "kafka=x"]).contains("no system `kafka`"));
    fs::write(job.path("in.jsonl"), "{\"key\":\"a\",\"value\":1}\n{oops}\n").expect("written");
    let malformed = told(&[]);
    assert!(malformed.contains("in.jsonl line 2, column 2: not JSON"), "{malformed}");
    let help = job.command(&["--help"]).output().expect("it runs");
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("--files kafka=data"));
}

#[test]
fn lines_that_are_no_messages_become_dead_letters_that_say_where_they_are() {
    let errors = "[errors]\ndecode = \"dead-letter\"\ndead-letter = \"files.bad\"\n";
    let job = Job::new("exactly-once", errors);
    job.feed("in.jsonl", 0..10);
    let mut input = fs::OpenOptions::new().append(true).open(job.path("in.jsonl")).expect("there");
    writeln!(input, "{{\"key\": oops}}").expect("written");
    job.feed("in.jsonl", 10..20);
    let told = String::from_utf8(job.run(&[]).stderr).expect("text");
    assert!(told.contains("21 lines of 1 file read, 21 lines written, 1 sent to dead letters"), "{told}");
    job.feed("in.jsonl", 20..30);
    job.run(&[]);
    assert_eq!(job.outputs(), counted(0..30));
    let bad = fs::read_to_string(job.path("bad.jsonl")).expect("there");
    let [letter] = bad.lines().collect::<Vec<_>>()[..] else { panic!("not one letter: {bad}") };
    let letter: serde_json::Value = serde_json::from_str(letter).expect("JSON");
    assert_eq!(letter["value"], "{\"key\": oops}");
    let error = letter["headers"]["samza.error"].as_str().expect("text");
    assert!(error.contains("in.jsonl line 11, column 9: not JSON"), "{error}");
    assert_eq!(letter["headers"]["samza.stage"], "decode");
}

#[test]
fn rows_in_compressed_files_have_the_key_that_the_command_line_names() {
    let job = Job::new("exactly-once", "");
    let rows: String =
        (0..100).map(|n| format!("{{\"user\":\"{}\",\"timestamp\":{n},\"value\":1}}\r\n", key(n))).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(rows.as_bytes()).expect("memory takes it");
    fs::write(job.path("rows"), gzip.finish().expect("memory takes it")).expect("written");
    let wrong =
        job.command(&["--input", "files.in=rows", "--key", "files.in=usr"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&wrong.stderr);
    assert!(!wrong.status.success() && told.contains("did you mean `key = \"user\"`?"), "{told}");
    assert!(!job.path("out.jsonl").exists(), "nothing was processed");
    let summary = job.run(&["--input", "files.in=rows", "--key", "files.in=user", "-o", "json"]).stdout;
    let summary: serde_json::Value = serde_json::from_slice(&summary).expect("JSON on stdout");
    assert_eq!((&summary["lines-read"], &summary["messages"]), (&100.into(), &100.into()));
    assert_eq!(job.outputs(), counted(0..100));
}

#[test]
fn a_run_whose_reader_goes_away_says_so_and_loses_nothing() {
    let job = Job::new("exactly-once", "");
    job.feed("in.jsonl", 0..40_000);
    let mut command = job.command(&["--output", "files.out=-"]);
    let mut running =
        Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut lines = BufReader::new(running.0.stdout.take().expect("piped")).lines();
    let first = row(&lines.next().expect("a line").expect("text"));
    assert_eq!(first, counted(0..1)[0]);
    drop(lines);
    assert_eq!(running.exit_code(), Some(141));
    let mut told = String::new();
    running.0.stderr.take().expect("piped").read_to_string(&mut told).expect("text");
    assert!(told.contains("local-1: whoever read stdout has gone"), "{told}");
    job.run(&[]);
    let rest = job.outputs();
    assert_eq!(rest[..], counted(0..40_000)[40_000 - rest.len()..], "the next run sends the rest");
}

#[test]
fn a_full_disk_loses_nothing() {
    let job = Job::new("exactly-once", "");
    job.feed("in.jsonl", 0..100);
    let full = job.command(&["--output", "files.out=/dev/full"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{told}");
    assert!(told.contains("/dev/full: No space left on device") && told.contains("make room"), "{told}");
    job.run(&[]);
    assert_eq!(job.outputs(), counted(0..100));
}

#[test]
fn a_copied_project_is_a_job_of_its_own() {
    let job = Job::new("exactly-once", "");
    job.feed("in.jsonl", 0..100);
    job.run(&[]);
    let copied = tempfile::tempdir().expect("a folder");
    let all = format!("{}/.", job.folder.path().display());
    let done = Command::new("cp").arg("-a").arg(all).arg(copied.path()).status().expect("it runs");
    assert!(done.success());
    let copied = Job { folder: copied };
    job.feed("in.jsonl", 100..200);
    job.run(&[]);
    copied.feed("in.jsonl", 100..120);
    copied.run(&[]);
    assert_eq!(job.outputs(), counted(0..200), "the original's output is whole");
    assert_eq!(copied.outputs(), counted(0..120));
    copied.run(&["--fresh"]);
    job.feed("in.jsonl", 200..210);
    job.run(&[]);
    assert_eq!((job.outputs(), copied.outputs()), (counted(0..210), counted(0..120)));
}

#[test]
fn a_job_file_that_was_written_for_kafka_runs_on_files() {
    let job = Job::new("exactly-once", "");
    let text = fs::read_to_string(job.path("job.toml")).expect("there").replace("files", "kafka");
    let text = text.replace("type = \"jsonl\"", "type = \"kafka\"\nbootstrap = \"127.0.0.1:1\"");
    let text = format!("{text}\n[streams.\"kafka.in\"]\ntopic = \"in.topic\"\n");
    fs::write(job.path("job.toml"), text).expect("written");
    fs::create_dir(job.path("data")).expect("a folder");
    job.feed("data/in.topic.jsonl", 0..100);
    job.run(&["--files", "kafka=data"]);
    let text = fs::read_to_string(job.path("data/out.jsonl")).expect("there");
    assert_eq!(text.lines().map(row).collect::<Vec<_>>(), counted(0..100));
    // Single streams will do, if they are all that the job uses.
    job.run(&["--fresh", "--input", "kafka.in=data/in.topic.jsonl", "--output", "kafka.out=out.jsonl"]);
    assert_eq!(job.outputs(), counted(0..100));
    let half =
        job.command(&["--input", "kafka.in=data/in.topic.jsonl", "--fresh"]).output().expect("it runs");
    let told = String::from_utf8_lossy(&half.stderr);
    assert!(!half.status.success() && told.contains("--output"), "{told}");
}

//! The command line of a local run, and what it changes in the job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use types::{JobSpec, StreamSpec, SystemKind, SystemStream};

use super::files::{STDIO, resolved};

const EXAMPLES: &str = "\
EXAMPLES:
  # A job that was written for Kafka, on files: the topics of system `kafka` are flights.jsonl and so on in data/.
  flight-delays --local --files kafka=data

  # From a pipe to a pipe.
  cat flights.jsonl | flight-delays --local --input kafka.flights=- --output kafka.carrier-delays=- | jq .

  # Rows as they are: the field `carrier` of each is the key, `at` the time; also compressed (gzip, Zstandard).
  flight-delays --local --input kafka.flights=2013.jsonl.gz --key kafka.flights=carrier --timestamp kafka.flights=at

  # The whole job against the brokers of its job file, in this one process.
  flight-delays --local --job job.toml

A run that was interrupted goes on where it was; one that has nothing new to read says so. A summary at the end tells what
was read and written (`-o json` for programs). Exit codes: 0 the inputs are over, 1 something failed, 90 a newer container
owns the tasks (Kafka only), 141 whoever read an output has gone. docs/local.md says how lines look.";

/// How the summary is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines for people, on stderr.
    Text,
    /// One JSON object, on stdout unless that is an output.
    Json,
}

/// Runs the whole job in this process, without a cluster.
#[derive(Debug, Clone, Parser)]
#[command(name = "<job's binary>", after_help = EXAMPLES, no_binary_name = true)]
pub(crate) struct Arguments {
    /// Run locally.
    #[arg(long, required = true)]
    local: bool,
    /// The job file.
    #[arg(long, value_name = "FILE", default_value = "job.toml")]
    pub(crate) job: PathBuf,
    /// Where state and checkpoints are kept; by default .samza/<name>-<id> beside the job file.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// Start over: forget state and checkpoints, and take back what the job has written to files.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Take a system's topics as files <topic>.jsonl in a folder.
    #[arg(long, value_name = "SYSTEM=DIR", value_parser = pair)]
    files: Vec<(String, PathBuf)>,
    /// Read a stream from a file, or from stdin (-).
    #[arg(long, value_name = "STREAM=FILE|-", value_parser = pair)]
    input: Vec<(String, PathBuf)>,
    /// Write a stream to a file, or to stdout (-).
    #[arg(long, value_name = "STREAM=FILE|-", value_parser = pair)]
    output: Vec<(String, PathBuf)>,
    /// The field of a stream's rows that is the key, as `key` in [streams] says.
    #[arg(long, value_name = "STREAM=FIELD", value_parser = field)]
    key: Vec<(String, String)>,
    /// The field of a stream's rows that is the time, as `timestamp` in [streams] says.
    #[arg(long, value_name = "STREAM=FIELD", value_parser = field)]
    timestamp: Vec<(String, String)>,
    /// Whether a stream's lines are envelopes or rows, as `envelope` in [streams] says.
    #[arg(long, value_name = "STREAM=true|false", value_parser = truth)]
    envelope: Vec<(String, bool)>,
    /// How the summary at the end is told.
    #[arg(short = 'o', long = "format", value_name = "FORMAT", value_enum, default_value = "text")]
    pub(crate) format: Format,
    /// The memory that caches, queues and RocksDB share; by default as the job file says.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: Option<u64>,
}

fn pair(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        Some(_) | None => Err("must be NAME=PATH".into()),
    }
}

fn field(text: &str) -> Result<(String, String), String> {
    let (stream, field) = text.split_once('=').ok_or("must be STREAM=FIELD")?;
    if field.is_empty() { Err("must name a field".into()) } else { Ok((stream.to_owned(), field.to_owned())) }
}

fn truth(text: &str) -> Result<(String, bool), String> {
    let (stream, value) = text.split_once('=').ok_or("must be STREAM=true or STREAM=false")?;
    let value = value.parse().map_err(|_| "must be STREAM=true or STREAM=false".to_owned())?;
    Ok((stream.to_owned(), value))
}

fn memory(text: &str) -> Result<u64, String> {
    let bytes = job_file::memory_bytes(text).ok_or_else(|| format!("must be {}", job_file::MEMORY_FORM))?;
    if bytes < 16 << 20 { Err("the least is 16MiB".into()) } else { Ok(bytes) }
}

/// A job that is to run in this process, with what the command line has changed.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) job: JobSpec,
    /// By system of which only some streams are files: their topics.
    pub(crate) only: BTreeMap<String, BTreeSet<String>>,
}

impl Arguments {
    /// Applies the arguments to `job`, whose file is in `folder`; relative paths of arguments are relative to `here`.
    pub(crate) fn apply(&self, mut job: JobSpec, folder: &Path, here: &Path) -> Result<Setup, String> {
        for system in job.systems.values_mut().filter(|system| system.kind == SystemKind::Jsonl) {
            system.path = Some(resolved(system.path.as_deref().unwrap_or(""), folder));
        }
        for file in job.package.secrets.values_mut() {
            *file = resolved(file, folder);
        }
        for (system, path) in &self.files {
            known(&job, system)?;
            become_files(&mut job, system, Some(&here.join(path)));
        }
        let mut only: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (stream, path) in self.input.iter().chain(&self.output) {
            let parsed =
                SystemStream::parse(stream).ok_or_else(|| format!("`{stream}` is not <system>.<stream>"))?;
            known(&job, &parsed.system)?;
            if job.systems[&parsed.system].kind == SystemKind::Kafka {
                become_files(&mut job, &parsed.system, None);
                only.insert(parsed.system.clone(), BTreeSet::new());
            }
            let topic = resolved(&path.to_string_lossy(), here);
            if let Some(named) = only.get_mut(&parsed.system) {
                named.insert(topic.clone());
            }
            let default = || StreamSpec::default_for(&parsed.stream);
            job.streams.entry(stream.clone()).or_insert_with(default).topic = topic;
        }
        for (stream, _) in &self.input {
            if !job.task.inputs.contains(stream) {
                return Err(format!(
                    "`{stream}` is no input; [task] inputs are: {}",
                    job.task.inputs.join(", ")
                ));
            }
        }
        for input in &job.task.inputs {
            let parsed = SystemStream::parse(input);
            let is_pattern = parsed.as_ref().is_some_and(|stream| stream.pattern().is_some());
            let of = parsed.map(|s| s.system).unwrap_or_default();
            if is_pattern && job.systems.get(&of).is_some_and(|system| system.kind == SystemKind::Jsonl) {
                return Err(format!(
                    "input {input} is a pattern, which only brokers can be asked for; name the streams that the files \
                     hold in [task] inputs of a job file for local runs"
                ));
            }
            let named = self.input.iter().any(|(stream, _)| stream == input);
            if only.contains_key(&of) && !named {
                return Err(format!("give --input {input}=FILE too, or --files {of}=DIR for all of `{of}`"));
            }
        }
        self.say_of_lines(&mut job)?;
        one_reader_of_stdin(&job)?;
        keep_tombstones(&mut job);
        job.containers.count = 1;
        Ok(Setup { job, only })
    }

    /// Whether stdout holds lines of the job.
    pub(crate) fn writes_to_stdout(&self, job: &JobSpec) -> bool {
        let is_output = |stream: &String| !job.task.inputs.contains(stream);
        job.streams.iter().any(|(stream, spec)| is_output(stream) && spec.topic == STDIO)
    }

    /// Changes how lines of streams look.
    fn say_of_lines(&self, job: &mut JobSpec) -> Result<(), String> {
        let of = |job: &JobSpec, option: &str, stream: &str| {
            let parsed = SystemStream::parse(stream);
            let parsed = parsed.ok_or_else(|| format!("--{option}: `{stream}` is not <system>.<stream>"))?;
            known(job, &parsed.system)?;
            if job.systems[&parsed.system].kind == SystemKind::Kafka {
                return Err(format!(
                    "--{option} {stream}=… is for files, and `{}` is a system of Kafka: give --files {0}=DIR or \
                     --input {stream}=FILE too",
                    parsed.system
                ));
            }
            Ok(job.stream(&parsed))
        };
        for (stream, field) in &self.key {
            let spec = StreamSpec { key: Some(field.clone()), ..of(job, "key", stream)? };
            job.streams.insert(stream.clone(), spec);
        }
        for (stream, field) in &self.timestamp {
            let spec = StreamSpec { timestamp: Some(field.clone()), ..of(job, "timestamp", stream)? };
            job.streams.insert(stream.clone(), spec);
        }
        for (stream, envelope) in &self.envelope {
            let spec = StreamSpec { envelope: Some(*envelope), ..of(job, "envelope", stream)? };
            job.streams.insert(stream.clone(), spec);
        }
        Ok(())
    }
}

fn known(job: &JobSpec, system: &str) -> Result<(), String> {
    if job.systems.contains_key(system) {
        return Ok(());
    }
    let names: Vec<&str> = job.systems.keys().map(String::as_str).collect();
    Err(format!("the job has no system `{system}`; it has: {}", names.join(", ")))
}

/// Stdin can be read once: by one stream, on one thread.
fn one_reader_of_stdin(job: &JobSpec) -> Result<(), String> {
    let of =
        |input: &&String| SystemStream::parse(input).is_some_and(|stream| job.stream(&stream).topic == STDIO);
    let readers: Vec<&String> = job.task.inputs.iter().filter(of).collect();
    if let [first, second, ..] = readers[..] {
        return Err(format!(
            "both {first} and {second} are stdin, which can be read once: give one of them a file"
        ));
    }
    let Some(stream) = readers.first().and_then(|input| SystemStream::parse(input)) else { return Ok(()) };
    if job.stream(&stream).broadcast && job.containers.threads > 1 {
        return Err(format!(
            "{stream} is broadcast, and stdin can be read by one thread only: give it a file, or set `threads = 1` in \
             [containers]"
        ));
    }
    Ok(())
}

/// Makes a system one of files: its topics are `<topic>.jsonl` in `folder`.
fn become_files(job: &mut JobSpec, name: &str, folder: Option<&Path>) {
    let Some(system) = job.systems.get_mut(name) else { return };
    let was = std::mem::replace(&mut system.kind, SystemKind::Jsonl);
    system.path = folder.map(|path| path.to_string_lossy().into_owned());
    if was == SystemKind::Kafka {
        let of_system = |stream: &str| SystemStream::parse(stream).is_some_and(|s| s.system == name);
        for (_, spec) in job.streams.iter_mut().filter(|(stream, _)| of_system(stream)) {
            spec.topic.push_str(".jsonl");
        }
    }
}

/// A job that runs now and then shall find its stores good: its log keeps tombstones for a year.
fn keep_tombstones(job: &mut JobSpec) {
    const YEAR_MS: u64 = 366 * 86_400_000;
    let systems = &job.systems;
    let on_files = |system: &str| systems.get(system).is_some_and(|s| s.kind == SystemKind::Jsonl);
    for store in job.stores.values_mut().filter(|store| on_files(&store.changelog_system)) {
        let retention = store.changelog_config.entry("delete.retention.ms".into());
        retention.or_insert_with(|| YEAR_MS.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"
[job]
name = "j"
[package]
path = "j"
[containers]
count = 4
[task]
inputs = ["kafka.a", "kafka.b"]
[systems.kafka]
type = "kafka"
bootstrap = "127.0.0.1:1"
[systems.files]
type = "jsonl"
path = "there"
[streams."kafka.a"]
topic = "topic-a"
[stores.s]
changelog = true
"#;

    fn set_up(arguments: &[&str]) -> Result<Setup, String> {
        let job = job_file::parse(JOB, "job.toml").expect("a job").spec;
        let given = ["--local"].iter().chain(arguments);
        let parsed = Arguments::try_parse_from(given).map_err(|e| e.to_string())?;
        parsed.apply(job, Path::new("/job"), Path::new("/here"))
    }

    fn topic(setup: &Setup, stream: &str) -> String {
        setup.job.stream(&SystemStream::parse(stream).expect("a stream")).topic
    }

    #[test]
    fn without_arguments_systems_stay_what_they_are() {
        let setup = set_up(&[]).expect("good");
        assert_eq!(setup.job.systems["kafka"].kind, SystemKind::Kafka);
        assert_eq!(setup.job.systems["files"].path.as_deref(), Some("/job/there"));
        assert_eq!(setup.job.containers.count, 1);
        assert!(setup.job.stores["s"].changelog_config.is_empty(), "its changelog is on Kafka");
    }

    #[test]
    fn a_system_of_kafka_becomes_files_of_its_topics_names() {
        let setup = set_up(&["--files", "kafka=data"]).expect("good");
        assert_eq!(setup.job.systems["kafka"].kind, SystemKind::Jsonl);
        assert_eq!(setup.job.systems["kafka"].path.as_deref(), Some("/here/data"));
        assert_eq!(topic(&setup, "kafka.a"), "topic-a.jsonl");
        assert_eq!(topic(&setup, "kafka.b"), "b.jsonl");
        assert!(setup.only.is_empty());
        assert!(setup.job.stores["s"].changelog_config.contains_key("delete.retention.ms"));
        let one = set_up(&["--files", "kafka=data", "--input", "kafka.b=-"]).expect("good");
        assert_eq!(
            (topic(&one, "kafka.a").as_str(), topic(&one, "kafka.b").as_str()),
            ("topic-a.jsonl", "-")
        );
        assert!(one.only.is_empty());
    }

    #[test]
    fn single_streams_must_be_all_that_a_system_of_kafka_is_used_for() {
        let both = ["--input", "kafka.a=x", "--input", "kafka.b=/y", "--output", "kafka.out=-"];
        let setup = set_up(&both).expect("good");
        let topics: BTreeSet<String> = ["/here/x", "/y", "-"].map(str::to_owned).into();
        assert_eq!(setup.only["kafka"], topics);
        let told = set_up(&both[..2]).expect_err("one is missing");
        assert!(told.contains("--input kafka.b=FILE"), "{told}");
        assert!(set_up(&["--input", "kafka.c=x"]).expect_err("no input").contains("kafka.a, kafka.b"));
        assert!(set_up(&["--files", "kafak=x"]).expect_err("no system").contains("files, kafka"));
        assert!(set_up(&["--output", "nothing"]).is_err());
    }

    #[test]
    fn memory_is_given_as_in_the_job_file() {
        assert_eq!(
            Arguments::try_parse_from(["--local", "--memory", "64MiB"]).unwrap().memory,
            Some(64 << 20)
        );
        assert!(set_up(&["--memory", "1MiB"]).expect_err("too little").contains("16MiB"));
        assert!(set_up(&["--memory", "much"]).expect_err("no size").contains("a number and a unit"));
    }
}

//! Which files a stream of a jsonl system is, and how its lines look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use task_api::system::SystemError;
use types::{JobSpec, OffsetLost, OnError, SystemStream};

use super::folder::{self, Entry, Partition};
use super::line::Shape;

/// What stands for stdin and stdout.
pub(crate) const STDIO: &str = "-";
/// A line that is longer is no line, unless memory is given that says otherwise.
const LONGEST_LINE: usize = 64 << 20;
const CHUNK: usize = 256 << 10;

/// A stream that is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct InputSpec {
    /// Its name in the job file.
    pub(crate) stream: String,
    pub(crate) shape: Shape,
    /// Whether a file that is not the one that was read ends the run.
    pub(crate) must_be_the_same: bool,
}

/// A system's files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// What relative paths are relative to.
    pub(crate) folder: PathBuf,
    /// By topic. One name, such as that of stdin and stdout, may be both an input and an output.
    pub(crate) inputs: BTreeMap<String, InputSpec>,
    pub(crate) outputs: BTreeMap<String, Shape>,
    /// If only some streams of the system are files: their topics.
    pub(crate) only: Option<BTreeSet<String>>,
    /// Whether a line that is no message ends the run.
    pub(crate) malformed_is_fatal: bool,
    /// A line that is longer is no line.
    pub(crate) longest_line: usize,
    /// By topic: its partitions, looked up once, so that a run has the same ones from its start to its end.
    pub(super) found: Mutex<BTreeMap<String, Found>>,
    /// So much is read at once.
    pub(crate) chunk: usize,
}

/// The partitions of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// By number.
    pub(crate) places: Vec<Place>,
    /// Of a folder: itself, and by number the files in it.
    pub(crate) folder: Option<(PathBuf, Vec<Partition>)>,
}

/// Where a partition or an output is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Stdin, or stdout.
    Stdio,
    /// A file.
    At(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Stdio => f.write_str("stdin/stdout"),
            Place::At(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Files {
    /// Those of system `name`; with `only`, streams with other topics have no file.
    pub(crate) fn of(job: &JobSpec, name: &str, only: Option<&BTreeSet<String>>) -> Files {
        let mut files = Files {
            folder: job.systems.get(name).and_then(|s| s.path.clone()).map(PathBuf::from).unwrap_or_default(),
            only: only.cloned(),
            malformed_is_fatal: job.errors.decode == OnError::Fail,
            longest_line: LONGEST_LINE,
            chunk: CHUNK,
            ..Files::default()
        };
        for (stream, spec) in &job.streams {
            let is_input = job.task.inputs.contains(stream);
            if !is_input && SystemStream::parse(stream).is_some_and(|s| s.system == name) {
                files.outputs.insert(spec.topic.clone(), Shape::written(spec));
            }
        }
        let inputs = job.task.inputs.iter().filter_map(|input| SystemStream::parse(input));
        for stream in inputs.filter(|stream| stream.system == name) {
            let spec = job.stream(&stream);
            let (shape, must_be_the_same) = (Shape::read(&spec), spec.offset_lost == OffsetLost::Fail);
            let input = InputSpec { stream: stream.to_string(), shape, must_be_the_same };
            files.inputs.insert(spec.topic, input);
        }
        files
    }

    /// What is known of input `topic`.
    pub(crate) fn input(&self, topic: &str) -> InputSpec {
        let default = || InputSpec { must_be_the_same: true, ..InputSpec::default() };
        self.inputs.get(topic).cloned().unwrap_or_else(default)
    }

    /// How lines of output `topic` look.
    pub(crate) fn written_shape(&self, topic: &str) -> Shape {
        self.outputs.get(topic).cloned().unwrap_or_default()
    }

    /// The file of `topic`.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn place(&self, topic: &str) -> Result<Place, SystemError> {
        if topic == STDIO {
            return Ok(Place::Stdio);
        }
        if self.only.as_ref().is_some_and(|only| !only.contains(topic)) {
            return Err(SystemError::Fatal(format!(
                "`{topic}` is no file: give --input or --output for it, or --files for its whole system"
            )));
        }
        Ok(Place::At(self.folder.join(topic)))
    }

    /// The files that are the partitions of `topic`: the file, or, if it is a folder, those in it ([`folder`]).
    ///
    /// # Errors
    /// It is not there, has no files or cannot be read, or there is something in it that cannot be told.
    pub(crate) fn partitions(&self, topic: &str) -> Result<Found, SystemError> {
        let mut known = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(topic) {
            return Ok(found.clone());
        }
        let found = look(self.place(topic)?).map_err(SystemError::Fatal)?;
        known.insert(topic.to_owned(), found.clone());
        Ok(found)
    }

    /// The file of one partition of `topic`.
    ///
    /// # Errors
    /// As [`Self::partitions`], or there is no such partition.
    pub(crate) fn partition(&self, topic: &str, partition: i32) -> Result<Place, SystemError> {
        let places = self.partitions(topic)?.places;
        let place = usize::try_from(partition).ok().and_then(|n| places.into_iter().nth(n));
        place.ok_or_else(|| SystemError::Fatal(format!("{topic} has no partition {partition}")))
    }
}

fn look(place: Place) -> Result<Found, String> {
    let Place::At(path) = &place else { return Ok(Found { places: vec![place], folder: None }) };
    let metadata = fs::metadata(path).map_err(|error| not_there(path, &error))?;
    if !metadata.is_dir() {
        readable(path, &metadata)?;
        return Ok(Found { places: vec![place], folder: None });
    }
    let shown = path.display();
    let fail = |error: io::Error| format!("cannot read the folder {shown}: {error}");
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        // Links count as what they lead to.
        let is_folder = fs::metadata(path.join(&name)).is_ok_and(|m| m.is_dir());
        entries.push(Entry { name, is_folder });
    }
    let partitions = folder::partitions(entries).map_err(|told| format!("the folder {shown}: {told}"))?;
    if partitions.is_empty() {
        return Err(format!(
            "the folder {shown} has no files of JSON lines (such as 0.jsonl); a folder that is a stream has one for each \
             partition"
        ));
    }
    let mut places = Vec::new();
    for partition in &partitions {
        let file = path.join(&partition.name);
        let metadata = fs::metadata(&file).map_err(|error| not_there(&file, &error))?;
        readable(&file, &metadata)?;
        places.push(Place::At(file));
    }
    Ok(Found { places, folder: Some((path.clone(), partitions)) })
}

/// What cannot be read is told before anything is processed. FIFOs and devices are not touched.
fn readable(path: &Path, metadata: &fs::Metadata) -> Result<(), String> {
    if metadata.is_file() {
        fs::File::open(path).map_err(|error| {
            format!("cannot read {}: {error}; `chmod u+r` lets its owner read it", path.display())
        })?;
    }
    Ok(())
}

fn not_there(path: &Path, error: &io::Error) -> String {
    let shown = path.display();
    if error.kind() != io::ErrorKind::NotFound {
        return format!("{shown}: {error}");
    }
    if let Ok(to) = fs::read_link(path) {
        return format!("{shown} is a link to {}, which is not there", to.display());
    }
    match nearest_file(path) {
        Some(near) => format!("{shown} is not there; did you mean {}?", near.display()),
        None => format!("{shown} is not there"),
    }
}

/// The file beside `path` that may have been meant.
fn nearest_file(path: &Path) -> Option<PathBuf> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    let names: Vec<String> =
        fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let stem = |name: &str| name.split('.').next().unwrap_or_default().to_lowercase();
    let same_stem = names.iter().find(|other| stem(other) == stem(name) && !stem(name).is_empty());
    let near = same_stem.map(String::as_str).or_else(|| {
        job_file::nearest(name, names.iter().map(String::as_str).filter(|other| !other.starts_with('.')))
    });
    near.map(|near| folder.join(near))
}

/// `path`, relative to `folder` unless it is absolute or stdio.
pub(crate) fn resolved(path: &str, folder: &Path) -> String {
    if path == STDIO { path.to_owned() } else { folder.join(path).to_string_lossy().into_owned() }
}

//! Which file a stream of a jsonl system is, and how its lines look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use task_api::system::SystemError;
use types::{JobSpec, OnError, SystemStream};

use super::line::Shape;

/// What stands for stdin and stdout.
pub(crate) const STDIO: &str = "-";

/// A system's files.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// What relative paths are relative to.
    pub(crate) folder: PathBuf,
    /// By topic. One name, such as that of stdin and stdout, may be both an input and an output.
    pub(crate) inputs: BTreeMap<String, Shape>,
    pub(crate) outputs: BTreeMap<String, Shape>,
    /// If only some streams of the system are files: their topics.
    pub(crate) only: Option<BTreeSet<String>>,
    /// Whether lines that are no messages are left out.
    pub(crate) skip_malformed: bool,
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
            skip_malformed: job.errors.decode == OnError::Skip,
            ..Files::default()
        };
        for (stream, spec) in &job.streams {
            if SystemStream::parse(stream).is_some_and(|s| s.system == name) {
                let is_input = job.task.inputs.contains(stream);
                let shapes = if is_input { &mut files.inputs } else { &mut files.outputs };
                shapes.insert(spec.topic.clone(), Shape::of(spec));
            }
        }
        files
    }

    /// How lines of input `topic` look.
    pub(crate) fn read_shape(&self, topic: &str) -> Shape {
        self.inputs.get(topic).cloned().unwrap_or_default()
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

    /// The files that are the partitions of `topic`, in order: the file, or, if it is a folder, `0.jsonl`, `1.jsonl`
    /// and so on in it. None if it is not there.
    pub(crate) fn partitions(&self, topic: &str) -> Result<Vec<Place>, SystemError> {
        let place = self.place(topic)?;
        let Place::At(path) = &place else { return Ok(vec![place]) };
        if !path.is_dir() {
            return Ok(if path.exists() { vec![place] } else { Vec::new() });
        }
        let numbered = (0..).map(|n| path.join(format!("{n}.jsonl")));
        Ok(numbered.take_while(|file| file.exists()).map(Place::At).collect())
    }
}

/// `path`, relative to `folder` unless it is absolute or stdio.
pub(crate) fn resolved(path: &str, folder: &Path) -> String {
    if path == STDIO { path.to_owned() } else { folder.join(path).to_string_lossy().into_owned() }
}

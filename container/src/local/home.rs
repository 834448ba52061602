//! A state folder in use: its lock, its log, and the output files that transactions reach.
//!
//! ```text
//! <folder>/lock     held (flock) for as long as a process uses the folder; its id is in it
//! <folder>/log      checkpoints, changelogs and the lengths of outputs: [`super::log`]
//! <folder>/stores   RocksDB, a folder for each task
//! ```
//!
//! A commit writes its lines to the files, waits until they are on disk, and then appends its frame to the log, which
//! tells how long the files are now. What is beyond that after a run that has not ended in order was never committed and
//! is cut off; after one that has, it is somebody else's, and nothing is cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, flock};
use task_api::system::{PlainMessage, SystemError};
use tracing::{info, warn};

use super::files::{Found, Place};
use super::folder;
use super::frame::{Frame, Item, Rows, RowsHead};
use super::log::Log;
use super::origin::{Origin, Relation};
use super::output::{self, OutputFile};
use crate::clock::unix_ms;

/// A state folder that this process holds.
pub(crate) struct Home {
    /// The job file's folder: a project may be moved and copied with all that is in it.
    project: PathBuf,
    inner: Mutex<Inner>,
    /// Files that are read, by device and inode.
    inputs: Mutex<BTreeSet<(u64, u64)>>,
    /// Set when whoever read an output has gone: which output.
    reader_gone: OnceLock<String>,
    /// The lock goes with it.
    _lock: File,
}

struct Inner {
    log: Log,
    /// By number, as handed out by [`Home::output`].
    outputs: Vec<OutputFile>,
}

/// Rows of one partition on their way into the log.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) topic: u32,
    pub(crate) partition: u32,
    /// Known once offsets are reserved; nothing is added after that.
    pub(crate) first: Option<u64>,
    pub(crate) rows: Rows,
}

impl Home {
    /// Takes the folder of the project at `project`, makes it if need be, and takes back what was not committed.
    ///
    /// # Errors
    /// Another process or project uses it, the disk failed, or an output is not as the last run has left it.
    pub(crate) fn open(folder: &Path, project: &Path) -> Result<Home, SystemError> {
        let (home, relation) = Home::take(folder, project)?;
        if let Relation::OtherProject = relation {
            return Err(SystemError::Fatal(format!(
                "the state folder {} belongs to the project in {}: give this one a folder of its own with --state DIR",
                folder.display(),
                home.inner().log.origin.as_ref().map(|o| o.project.display().to_string()).unwrap_or_default(),
            )));
        }
        home.settle(relation)?;
        Ok(home)
    }

    /// Locks the folder and reads its log; nothing else is changed.
    fn take(folder: &Path, project: &Path) -> Result<(Home, Relation), SystemError> {
        let fail = |e: io::Error| {
            SystemError::Fatal(format!(
                "cannot keep state in {}: {e}; --state DIR names a folder that this user may write to",
                folder.display()
            ))
        };
        fs::create_dir_all(folder).map_err(fail)?;
        let path = folder.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(fail)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(in_use(folder, &mut lock)),
            Err(error) => return Err(fail(error.into())),
        }
        let named = lock.set_len(0).and_then(|()| writeln!(lock, "process {}", std::process::id()));
        named.map_err(fail)?;
        let mut log = Log::open(&folder.join("log"))?;
        let now = Origin::of(folder, project, &lock).map_err(fail)?;
        let relation = log.origin.as_ref().map(|known| now.relation(known, Path::exists));
        let relation = relation.unwrap_or(Relation::Same);
        let project = now.project.clone();
        log.origin = match relation {
            Relation::OtherProject => log.origin,
            Relation::Same | Relation::Copy => {
                if relation == Relation::Copy {
                    disown(&mut log, &project);
                }
                Some(now)
            }
        };
        let home = Home {
            project,
            inner: Mutex::new(Inner { log, outputs: Vec::new() }),
            inputs: Mutex::default(),
            reader_gone: OnceLock::new(),
            _lock: lock,
        };
        Ok((home, relation))
    }

    /// Takes back what was not committed, and writes down that a run has begun.
    fn settle(&self, relation: Relation) -> Result<(), SystemError> {
        let mut inner = self.inner();
        let log = &mut inner.log;
        for (path, output) in log.outputs.iter().filter(|(_, output)| !output.foreign) {
            let path = self.project.join(path);
            if log.run_is_open {
                output::take_back(&path, output).map_err(|e| at(&path, &e))?;
            } else {
                output::is_as_left(&path, output)?;
            }
        }
        let mut frame = Frame::default();
        if relation == Relation::Copy {
            info!("the state folder is a copy: outputs outside its project stay with the original");
            log.outputs.iter().for_each(|(path, output)| output.tell(path, &mut frame));
        }
        if let Some(origin) = &log.origin {
            origin.tell(&mut frame);
        }
        frame.push(&Item::Run { open: true });
        log.append(frame)
    }

    /// Writes down that the run is over, if all that is in its outputs is committed: so it is if it ended `in_order`, and
    /// mostly if it failed.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn end(&self, in_order: bool) -> Result<(), SystemError> {
        let mut inner = self.inner();
        let Inner { log, outputs } = &mut *inner;
        if in_order || outputs.iter().all(|output| output.is_committed(log)) {
            let mut frame = Frame::default();
            frame.push(&Item::Run { open: false });
            log.append(frame)?;
        }
        Ok(())
    }

    /// Forgets what is in the folder, and takes back what the job has written to its outputs.
    ///
    /// # Errors
    /// Another process or project uses it, or the disk failed.
    pub(crate) fn forget(folder: &Path, project: &Path) -> Result<(), SystemError> {
        if !folder.join("lock").exists() {
            return Ok(());
        }
        match Home::open(folder, project) {
            Ok(home) => {
                let inner = home.inner();
                for (path, output) in inner.log.outputs.iter().filter(|(_, output)| !output.foreign) {
                    let path = home.project.join(path);
                    output::cut(&path, output.start).map_err(|e| at(&path, &e))?;
                }
                empty(folder)
            }
            // A folder that cannot be read is forgotten all the more, but not one that is in use.
            Err(error) if error.to_string().contains("is damaged") => {
                warn!("{error}: outputs are left as they are");
                empty(folder)
            }
            Err(error) => Err(error),
        }
    }

    /// Notes the partitions of an input: what is read is not written to, and a folder has the same files in each run.
    ///
    /// # Errors
    /// The folder has other files than in the last run, or the disk failed.
    pub(crate) fn reads(&self, found: &Found) -> Result<(), SystemError> {
        use std::os::unix::fs::MetadataExt;
        for place in &found.places {
            if let Place::At(path) = place
                && let Ok(metadata) = fs::metadata(path)
            {
                let mut inputs = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
                inputs.insert((metadata.dev(), metadata.ino()));
            }
        }
        let Some((folder, partitions)) = &found.folder else { return Ok(()) };
        let key = self.key(&folder.canonicalize().map_err(|e| at(folder, &e))?);
        let names: Vec<String> = partitions.iter().map(|partition| partition.stem.clone()).collect();
        let log = &mut self.inner().log;
        if let Some(known) = log.inputs.get(&key) {
            return folder::compare(known, partitions)
                .map_err(|told| SystemError::Fatal(format!("the folder {}: {told}", folder.display())));
        }
        let mut frame = Frame::default();
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(key.as_os_str());
        frame.push(&Item::Inputs { folder: bytes, names: &names.join("\n") });
        log.append(frame)
    }

    /// A path as the log keeps it: relative, if it is in the project.
    fn key(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.project).unwrap_or(path).to_owned()
    }

    /// The output whose reader has gone, if one has.
    pub(crate) fn reader_gone(&self) -> Option<&str> {
        self.reader_gone.get().map(String::as_str)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A log whose append was interrupted by a panic takes nothing more.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the log something, or has it append.
    pub(crate) fn log<R>(&self, ask: impl FnOnce(&mut Log) -> R) -> R {
        ask(&mut self.inner().log)
    }

    /// The number of an output. If `exact`, lines come to it in transactions only.
    ///
    /// # Errors
    /// It cannot be written to.
    pub(crate) fn output(&self, place: &Place, exact: bool) -> Result<usize, SystemError> {
        let (place, key) = match place {
            Place::Stdio => (Place::Stdio, PathBuf::new()),
            Place::At(path) => {
                let path = output::real(path)?;
                (Place::At(path.clone()), self.key(&path))
            }
        };
        let mut inner = self.inner();
        let Inner { log, outputs } = &mut *inner;
        if let Some(number) = outputs.iter().position(|o| o.place == place) {
            outputs[number].exact |= exact;
            return Ok(number);
        }
        let output = OutputFile::open(&place, key, exact, log)?;
        if let Some(file) = output.id {
            let is_input = self.inputs.lock().unwrap_or_else(PoisonError::into_inner).contains(&file);
            let twin =
                outputs.iter().find(|other| other.id == Some(file)).map(|other| other.place.to_string());
            if let Some(other) = is_input.then(|| "an input".to_owned()).or(twin) {
                return Err(SystemError::Fatal(format!(
                    "the output {place} is the same file as {other}: give it a file of its own"
                )));
            }
        }
        outputs.push(output);
        Ok(outputs.len() - 1)
    }

    /// Writes lines outside any transaction; `wait` until they are on disk.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn write(&self, output: usize, lines: &mut Vec<u8>, wait: bool) -> Result<(), SystemError> {
        let written = self.inner().outputs[output].write(lines, wait);
        written.map_err(|failed| self.cannot_write(failed))
    }

    fn cannot_write(&self, failed: output::Failed) -> SystemError {
        if failed.reader_gone {
            let _ = self.reader_gone.set(failed.place.clone());
        }
        SystemError::Fatal(failed.told)
    }

    /// Gives offsets to rows that have none yet.
    ///
    /// # Errors
    /// A row's partition is not there.
    pub(crate) fn reserve(&self, blocks: &mut [Block]) -> Result<(), SystemError> {
        let mut inner = self.inner();
        reserve(&mut inner.log, blocks)
    }

    /// Commits rows and lines (by output) together.
    ///
    /// # Errors
    /// The disk failed: it is unknown whether they are committed.
    pub(crate) fn commit(
        &self,
        blocks: &mut Vec<Block>,
        lines: &mut BTreeMap<usize, Vec<u8>>,
    ) -> Result<(), SystemError> {
        let mut inner = self.inner();
        let Inner { log, outputs } = &mut *inner;
        reserve(log, blocks)?;
        let mut frame = Frame::default();
        for (number, lines) in lines.iter_mut().filter(|(_, lines)| !lines.is_empty()) {
            let output = &mut outputs[*number];
            output.write(lines, true).map_err(|failed| self.cannot_write(failed))?;
            output.tell(&mut frame);
        }
        let unix_ms = unix_ms();
        for block in blocks.drain(..) {
            let Block { topic, partition, first, rows } = block;
            let first = first.unwrap_or_default();
            let head = RowsHead { topic, partition, first, end: first + rows.span, unix_ms };
            frame.push(&Item::Rows { head, rows: &rows.bytes });
        }
        log.append(frame)
    }

    /// Appends rows outside any transaction.
    ///
    /// # Errors
    /// The disk failed, or a partition is not there.
    pub(crate) fn append(&self, messages: &[PlainMessage]) -> Result<(), SystemError> {
        let mut blocks = Vec::new();
        for PlainMessage { to, key, value } in messages {
            let found = self.log(|log| log.find(&to.topic, to.partition));
            let (topic, partition) =
                found.ok_or_else(|| SystemError::Fatal(format!("no topic {} in this folder", to.topic)))?;
            let mut rows = Rows::default();
            rows.push(0, Some(key), value.as_deref());
            blocks.push(Block { topic, partition, first: None, rows });
        }
        self.commit(&mut blocks, &mut BTreeMap::new())
    }
}

fn reserve(log: &mut Log, blocks: &mut [Block]) -> Result<(), SystemError> {
    for block in blocks.iter_mut().filter(|block| block.first.is_none()) {
        block.first = Some(log.reserve(block.topic, block.partition, block.rows.span)?);
    }
    Ok(())
}

fn in_use(folder: &Path, lock: &mut File) -> SystemError {
    let mut holder = String::new();
    let _ = lock.read_to_string(&mut holder);
    SystemError::Fatal(format!(
        "{} is in use by another process ({}): only one may run a job from a folder; wait for it, or give this run \
         a folder of its own with --state DIR",
        folder.display(),
        holder.trim()
    ))
}

/// Outputs outside the project stay with the original of a copy.
fn disown(log: &mut Log, project: &Path) {
    for (path, output) in &mut log.outputs {
        output.foreign |= path.is_absolute() && !path.starts_with(project);
    }
}

/// Removes all but the lock, the log last: as long as it is there the folder is one of ours.
fn empty(folder: &Path) -> Result<(), SystemError> {
    let stores = folder.join("stores");
    if stores.exists() {
        fs::remove_dir_all(&stores).map_err(|e| at(&stores, &e))?;
    }
    let log = folder.join("log");
    match fs::remove_file(&log) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at(&log, &e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn at(path: &Path, error: &io::Error) -> SystemError {
    SystemError::Fatal(format!("{}: {error}", path.display()))
}

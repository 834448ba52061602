//! A state folder in use: its lock, its log, and the output files that transactions reach.
//!
//! ```text
//! <folder>/lock     held (flock) for as long as a process uses the folder; its id is in it
//! <folder>/log      checkpoints, changelogs and the lengths of outputs: [`super::log`]
//! <folder>/stores   RocksDB, a folder for each task
//! ```
//!
//! A commit writes its lines to the files, waits until they are on disk, and then appends its frame to the log, which
//! tells how long the files are now. What is beyond that at the next start was never committed and is cut off.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};
use task_api::system::{PlainMessage, SystemError};
use tracing::{info, warn};

use super::files::Place;
use super::frame::{Frame, Item, Rows, RowsHead};
use super::log::{Log, Output};
use crate::clock::unix_ms;

/// A state folder that this process holds.
pub(crate) struct Home {
    inner: Mutex<Inner>,
    /// The lock goes with it.
    _lock: File,
}

struct Inner {
    log: Log,
    /// By number, as handed out by [`Home::output`].
    outputs: Vec<OutputFile>,
}

struct OutputFile {
    place: Place,
    /// None: stdout.
    file: Option<File>,
    /// Whether it has a length, and can be cut.
    is_file: bool,
    exact: bool,
    start: u64,
    len: u64,
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
    /// Takes the folder, makes it if need be, and takes back what was not committed.
    ///
    /// # Errors
    /// Another process uses it, or the disk failed.
    pub(crate) fn open(folder: &Path) -> Result<Home, SystemError> {
        let fail = |e: io::Error| at(folder, &e);
        fs::create_dir_all(folder).map_err(fail)?;
        let path = folder.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(fail)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            return Err(SystemError::Fatal(format!(
                "{} is in use by another process ({}): only one may run a job from a folder",
                folder.display(),
                holder.trim()
            )));
        }
        let named = lock.set_len(0).and_then(|()| writeln!(lock, "process {}", std::process::id()));
        named.map_err(fail)?;
        let log = Log::open(&folder.join("log"))?;
        for (path, output) in &log.outputs {
            take_back(path, output).map_err(|e| at(path, &e))?;
        }
        Ok(Home { inner: Mutex::new(Inner { log, outputs: Vec::new() }), _lock: lock })
    }

    /// Forgets what is in the folder, and takes back what the job has written to its outputs.
    ///
    /// # Errors
    /// Another process uses it, or the disk failed.
    pub(crate) fn forget(folder: &Path) -> Result<(), SystemError> {
        if !folder.join("lock").exists() {
            return Ok(());
        }
        match Home::open(folder) {
            Ok(home) => {
                for (path, output) in &home.inner().log.outputs {
                    cut(path, output.start).map_err(|e| at(path, &e))?;
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
        let mut inner = self.inner();
        let Inner { log, outputs } = &mut *inner;
        if let Some(number) = outputs.iter().position(|o| o.place == *place) {
            outputs[number].exact |= exact;
            return Ok(number);
        }
        let output = OutputFile::open(place, exact, log)?;
        outputs.push(output);
        Ok(outputs.len() - 1)
    }

    /// Writes lines outside any transaction; `wait` until they are on disk.
    ///
    /// # Errors
    /// The disk failed.
    pub(crate) fn write(&self, output: usize, lines: &mut Vec<u8>, wait: bool) -> Result<(), SystemError> {
        self.inner().outputs[output].write(lines, wait)
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
            output.write(lines, true)?;
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

impl OutputFile {
    fn open(place: &Place, exact: bool, log: &mut Log) -> Result<OutputFile, SystemError> {
        let place = place.clone();
        let Place::At(path) = &place else {
            return Ok(OutputFile { place, file: None, is_file: false, exact, start: 0, len: 0 });
        };
        let fail = |e: io::Error| at(path, &e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(fail)?;
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).or_else(|e| {
            // Pipes and devices may be for writing only.
            if path.is_file() { Err(e) } else { OpenOptions::new().append(true).open(path) }
        });
        let file = file.as_mut().map_err(|e| at(path, e))?;
        let metadata = file.metadata().map_err(fail)?;
        let (is_file, len) = (metadata.is_file(), metadata.len());
        let known = log.outputs.get(path).copied();
        if let Some(known) = known.filter(|known| known.len > len) {
            warn!("{} is shorter than the job has left it ({len} of {} bytes)", path.display(), known.len);
        }
        let start = known.map_or(len, |known| known.start.min(len));
        let file = file.try_clone().map_err(fail)?;
        let mut output = OutputFile { file: Some(file), is_file, exact, start, len, place };
        if is_file {
            if len > 0 && !ends_a_line(output.file.as_mut(), len).map_err(|e| at(&output.path(), &e))? {
                output.write(&mut vec![b'\n'], true)?;
            }
            // A new file must be found again, and what is in an old one must never be cut.
            let folder = output.path();
            let synced = File::open(folder.parent().unwrap_or(Path::new("."))).and_then(|f| f.sync_all());
            synced.map_err(|e| at(&folder, &e))?;
            let mut frame = Frame::default();
            output.tell(&mut frame);
            log.append(frame)?;
        }
        Ok(output)
    }

    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Stdio => PathBuf::new(),
            Place::At(path) => path.clone(),
        }
    }

    fn write(&mut self, lines: &mut Vec<u8>, wait: bool) -> Result<(), SystemError> {
        let wrote = match &mut self.file {
            None => io::stdout().write_all(lines).and_then(|()| io::stdout().flush()),
            Some(file) => file
                .write_all(lines)
                .and_then(|()| if wait && self.is_file { file.sync_data() } else { Ok(()) }),
        };
        wrote.map_err(|e| SystemError::Fatal(format!("{}: {e}", self.place)))?;
        self.len += lines.len() as u64;
        lines.clear();
        Ok(())
    }

    fn tell(&self, frame: &mut Frame) {
        if self.is_file {
            let path = self.path();
            let OutputFile { exact, start, len, .. } = *self;
            frame.push(&Item::Output { path: path.as_os_str().as_bytes(), exact, start, len });
        }
    }
}

fn ends_a_line(file: Option<&mut File>, len: u64) -> io::Result<bool> {
    let Some(file) = file else { return Ok(true) };
    let mut last = [0];
    file.seek(SeekFrom::Start(len - 1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Cuts off what was not committed: everything beyond the last commit, or, where lines need no commit, a torn last one.
fn take_back(path: &Path, output: &Output) -> io::Result<()> {
    let Some(len) = length(path)?.filter(|len| *len > output.len) else { return Ok(()) };
    let keep = if output.exact { output.len } else { end_of_last_line(path, output.len)? };
    if keep < len {
        info!(output = %path.display(), bytes = len - keep, "what was not committed is taken back");
        cut(path, keep)?;
    }
    Ok(())
}

/// None if there is no such file.
fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn end_of_last_line(path: &Path, at_least: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut end = file.metadata()?.len();
    let mut chunk = vec![0; 64 << 10];
    while end > at_least {
        let start = end.saturating_sub(chunk.len() as u64).max(at_least);
        let part = &mut chunk[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(newline) = part.iter().rposition(|b| *b == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(at_least)
}

fn cut(path: &Path, len: u64) -> io::Result<()> {
    if length(path)?.is_some_and(|is| is > len) {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()?;
    }
    Ok(())
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

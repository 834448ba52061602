//! An output file in use, and what becomes of it between runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use task_api::system::SystemError;
use tracing::{info, warn};

use super::files::Place;
use super::frame::Frame;
use super::log::{Log, Output};

/// How long a FIFO may be without a reader.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// An output in use.
pub(crate) struct OutputFile {
    pub(crate) place: Place,
    /// Its path as the log keeps it.
    key: PathBuf,
    /// None: stdout.
    file: Option<File>,
    /// Device and inode, if it has a length and can be cut.
    pub(crate) id: Option<(u64, u64)>,
    pub(crate) exact: bool,
    start: u64,
    len: u64,
}

/// Why lines could not be written.
pub(crate) struct Failed {
    pub(crate) place: String,
    pub(crate) told: String,
    /// Nobody reads them any more.
    pub(crate) reader_gone: bool,
}

impl OutputFile {
    /// Opens `place`, which the log knows as `key`, and tells the log how long it is.
    ///
    /// # Errors
    /// It cannot be written to, or belongs to the job of which this one is a copy.
    pub(crate) fn open(
        place: &Place,
        key: PathBuf,
        exact: bool,
        log: &mut Log,
    ) -> Result<OutputFile, SystemError> {
        let place = place.clone();
        let Place::At(path) = &place else {
            return Ok(OutputFile { place, key, file: None, id: None, exact, start: 0, len: 0 });
        };
        let known = log.outputs.get(&key).copied();
        if known.is_some_and(|known| known.foreign) {
            return Err(SystemError::Fatal(format!(
                "this project is a copy, and the output {} belongs to its original: give the copy another one \
                 (--output STREAM=FILE), or start it over with --fresh, which leaves that file as it is",
                path.display()
            )));
        }
        let file = open(path)?;
        let metadata = file.metadata().map_err(|e| at(path, &e))?;
        let len = metadata.len();
        let id = metadata.is_file().then(|| (metadata.dev(), metadata.ino()));
        if let Some(known) = known.filter(|known| known.len > len && id.is_some()) {
            warn!("{} is shorter than the job has left it ({len} of {} bytes)", path.display(), known.len);
        }
        if known.is_none() && len > 0 && id.is_some() {
            info!("{} has {len} bytes that are none of this job's: it goes on after them", path.display());
        }
        let start = known.map_or(len, |known| known.start.min(len));
        let path = path.clone();
        let mut output = OutputFile { place, key, file: Some(file), id, exact, start, len };
        if output.id.is_some() {
            if len > 0 && !ends_a_line(output.file.as_mut(), len).map_err(|e| at(&path, &e))? {
                output.write(&mut vec![b'\n'], true).map_err(|failed| SystemError::Fatal(failed.told))?;
            }
            // A new file must be found again, and what is in an old one must never be cut.
            let synced = File::open(path.parent().unwrap_or(Path::new("."))).and_then(|f| f.sync_all());
            synced.map_err(|e| at(&path, &e))?;
            let mut frame = Frame::default();
            output.tell(&mut frame);
            log.append(frame)?;
        }
        Ok(output)
    }

    /// Writes lines, which are gone then; `wait`s until they are on disk.
    pub(crate) fn write(&mut self, lines: &mut Vec<u8>, wait: bool) -> Result<(), Failed> {
        let wait = wait && self.id.is_some();
        let wrote = match &mut self.file {
            None => io::stdout().write_all(lines).and_then(|()| io::stdout().flush()),
            Some(file) => file.write_all(lines).and_then(|()| if wait { file.sync_data() } else { Ok(()) }),
        };
        wrote.map_err(|error| {
            let place = match &self.place {
                Place::Stdio => "stdout".to_owned(),
                Place::At(path) => path.display().to_string(),
            };
            let reader_gone = error.kind() == io::ErrorKind::BrokenPipe;
            let hint = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                    ": nothing that was committed is lost; make room and run the job again"
                }
                _ => "",
            };
            Failed { told: format!("cannot write to {place}: {error}{hint}"), place, reader_gone }
        })?;
        self.len += lines.len() as u64;
        lines.clear();
        Ok(())
    }

    /// Whether nothing is in it that the log does not know.
    pub(crate) fn is_committed(&self, log: &Log) -> bool {
        let length = self.file.as_ref().filter(|_| self.exact && self.id.is_some()).map(File::metadata);
        let known = log.outputs.get(&self.key).map(|known| known.len);
        length.is_none_or(|length| length.is_ok_and(|is| Some(is.len()) == known))
    }

    /// Adds its length to a frame, if it has one.
    pub(crate) fn tell(&self, frame: &mut Frame) {
        if self.id.is_some() {
            let OutputFile { exact, start, len, .. } = *self;
            Output { exact, foreign: false, start, len }.tell(&self.key, frame);
        }
    }
}

/// The path that `path` is, through links and `..`; its folder is made.
///
/// # Errors
/// Its folder cannot be made.
pub(crate) fn real(path: &Path) -> Result<PathBuf, SystemError> {
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).and_then(|()| folder.canonicalize()).map_or_else(
        |error| Err(SystemError::Fatal(format!("cannot write to {}: {error}", path.display()))),
        |folder| Ok(folder.join(path.file_name().unwrap_or_default())),
    )
}

fn open(path: &Path) -> Result<File, SystemError> {
    let told = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::IsADirectory => "; it is a folder, and an output is one file",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "; --output STREAM=FILE writes a stream elsewhere"
            }
            _ => "",
        };
        SystemError::Fatal(format!("cannot write to {}: {error}{hint}", path.display()))
    };
    let kind = fs::metadata(path).map(|metadata| metadata.file_type());
    if kind.as_ref().is_ok_and(|kind| kind.is_fifo()) {
        return open_fifo(path).map_err(told);
    }
    let opened = OpenOptions::new().read(true).append(true).create(true).open(path);
    opened
        .or_else(|e| {
            // Devices may be for writing only.
            let is_device = kind.is_ok_and(|kind| !kind.is_file() && !kind.is_dir());
            if is_device { OpenOptions::new().append(true).open(path) } else { Err(e) }
        })
        .map_err(told)
}

/// A FIFO that is opened for reading too would never tell that its reader has gone, and one without a reader would hold
/// up who opens it.
fn open_fifo(path: &Path) -> io::Result<File> {
    let since = Instant::now();
    let mut told = false;
    loop {
        let opened = OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
        match opened {
            Ok(file) => {
                let flags = rustix::fs::fcntl_getfl(&file)?;
                rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
                return Ok(file);
            }
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
                if since.elapsed() > READER_PATIENCE {
                    return Err(io::Error::other("nobody reads this FIFO: start its reader first"));
                }
                if !std::mem::replace(&mut told, true) {
                    warn!("{} has no reader yet: waiting for one", path.display());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(e),
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
pub(crate) fn take_back(path: &Path, output: &Output) -> io::Result<()> {
    let Some(len) = length(path)?.filter(|len| *len > output.len) else { return Ok(()) };
    let keep = if output.exact { output.len } else { end_of_last_line(path, output.len)? };
    if keep < len {
        info!(output = %path.display(), bytes = len - keep, "what was not committed is taken back");
        cut(path, keep)?;
    }
    Ok(())
}

/// After a run that has ended in order an exactly-once output has what was committed, and nothing else.
///
/// # Errors
/// Somebody else has written to it; what makes it good.
pub(crate) fn is_as_left(path: &Path, output: &Output) -> Result<(), SystemError> {
    let len = length(path).map_err(|e| at(path, &e))?;
    let Some(len) = len.filter(|len| output.exact && *len > output.len) else { return Ok(()) };
    Err(SystemError::Fatal(format!(
        "the output {0} has {1} bytes more than the job has left in it: others have written to it, or the state is an older \
         copy. To keep what is in it, move it away (`mv {0} {0}.kept`); to let the job go on from where its state is, cut \
         it off (`truncate -s {2} {0}`)",
        path.display(),
        len - output.len,
        output.len
    )))
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

/// Shortens the file at `path` to `len` bytes, if it is there and longer.
pub(crate) fn cut(path: &Path, len: u64) -> io::Result<()> {
    if length(path)?.is_some_and(|is| is > len) {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(len)?;
        file.sync_all()?;
    }
    Ok(())
}

fn at(path: &Path, error: &io::Error) -> SystemError {
    SystemError::Fatal(format!("{}: {error}", path.display()))
}

//! Containers' output: found by container, read from an offset or the tail through all of a stream's files, followed
//! while the container runs, swept a day after its end, and bounded for the whole node. Shims write it and bound each
//! container's.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use tokio::sync::watch;
use types::ContainerId;

use crate::age::Ages;
use crate::root::Root;

/// What the log service needs to know of containers.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Whether each is over.
    pub(crate) over: HashMap<ContainerId, bool>,
}

/// How much is read at once.
pub(crate) const CHUNK: usize = 64 << 10;

/// Finds the folder of a container's logs, whichever application it is of.
pub(crate) fn find(root: &Root, id: ContainerId) -> io::Result<Option<PathBuf>> {
    for app in fs::read_dir(root.all_logs())? {
        let dir = app?.path().join(id.to_string());
        if dir.is_dir() {
            return Ok(Some(dir));
        }
    }
    Ok(None)
}

/// The files of a stream in `dir` with where each begins, the oldest first. Earlier ones may be gone.
fn segments(dir: &Path, stream: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(stream)) else { continue };
        let start =
            if rest.is_empty() { Some(0) } else { rest.strip_prefix('.').and_then(|n| n.parse().ok()) };
        found.extend(start.map(|start| (start, entry.path())));
    }
    found.sort();
    Ok(found)
}

/// The offset at which the last `lines` lines of a stream begin.
pub(crate) fn tail_start(dir: &Path, stream: &str, lines: u64) -> io::Result<u64> {
    let segments = segments(dir, stream)?;
    let Some((start, newest)) = segments.last() else { return Ok(0) };
    let end = start + fs::metadata(newest)?.len();
    let mut left = lines;
    if lines == 0 {
        return Ok(end);
    }
    for (start, path) in segments.iter().rev() {
        if let Some(at) = line_from_end(path, *start, end, &mut left)? {
            return Ok(at);
        }
    }
    Ok(segments[0].0)
}

/// Looks back through a file that begins at `start` for the `left`-th newline before the stream's end.
fn line_from_end(path: &Path, start: u64, end: u64, left: &mut u64) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    let mut at = file.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0u8; CHUNK];
    while at > 0 {
        let size = at.min(CHUNK as u64);
        at -= size;
        let part = &mut buffer[..usize::try_from(size).expect("at most CHUNK")];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(part)?;
        for (i, byte) in part.iter().enumerate().rev() {
            let after = start + at + i as u64 + 1;
            // The newline that ends the last line begins no further one.
            if *byte == b'\n' && after != end {
                *left -= 1;
                if *left == 0 {
                    return Ok(Some(after));
                }
            }
        }
    }
    Ok(None)
}

/// Up to [`CHUNK`] bytes of a stream from `offset`, and where they really begin: what is gone is left out. Empty at
/// the end.
pub(crate) fn read_at(dir: &Path, stream: &str, offset: u64) -> io::Result<(u64, Vec<u8>)> {
    let segments = match segments(dir, stream) {
        Ok(segments) => segments,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((offset, Vec::new())),
        Err(error) => return Err(error),
    };
    let first = segments.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
    for (start, path) in &segments[first..] {
        let from = offset.max(*start);
        let mut file = match File::open(path) {
            Ok(file) => file,
            // It went meanwhile: the next one is the oldest.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(from - start))?;
        let mut data = Vec::new();
        file.take(CHUNK as u64).read_to_end(&mut data)?;
        if !data.is_empty() {
            return Ok((from, data));
        }
    }
    Ok((offset, Vec::new()))
}

/// The logs of one container.
struct Log {
    id: ContainerId,
    dir: PathBuf,
    newest: SystemTime,
    bytes: u64,
}

/// All there are, the oldest end first.
fn all(root: &Root) -> io::Result<Vec<Log>> {
    let mut logs = Vec::new();
    for app in fs::read_dir(root.all_logs())? {
        for dir in fs::read_dir(app?.path())? {
            let dir = dir?;
            let id = dir.file_name().to_str().and_then(|name| name.parse::<ContainerId>().ok());
            if let Some(id) = id {
                let (newest, bytes) = measure(&dir.path())?;
                logs.push(Log { id, dir: dir.path(), newest, bytes });
            }
        }
    }
    logs.sort_by_key(|log| (log.newest, log.id));
    Ok(logs)
}

fn measure(dir: &Path) -> io::Result<(SystemTime, u64)> {
    let mut newest = fs::metadata(dir)?.modified()?;
    let mut bytes = 0;
    for file in fs::read_dir(dir)? {
        // The oldest file of a long stream may go meanwhile.
        if let Ok(meta) = file?.metadata() {
            newest = newest.max(meta.modified()?);
            bytes += meta.len();
        }
    }
    Ok((newest, bytes))
}

fn remove(log: &Log) -> io::Result<()> {
    match fs::remove_dir_all(&log.dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    if let Some(app) = log.dir.parent() {
        // Others of its application are no error.
        let _ = fs::remove_dir(app);
    }
    Ok(())
}

/// Removes old logs of containers that are not known any more.
pub(crate) fn sweep(root: &Root, known: &watch::Receiver<Arc<Known>>, ages: &Ages) -> io::Result<()> {
    // Containers are asked for after their folders were seen: one that was made meanwhile is known.
    let (logs, known) = (all(root)?, known.borrow().clone());
    let mut old = logs.iter().filter(|log| !known.over.contains_key(&log.id) && ages.is_old(log.newest));
    old.try_for_each(remove)
}

/// How much of all logs together is kept.
pub(crate) struct Bound {
    bytes: u64,
    /// Whether those of containers that run exceed it, and that was said.
    said: AtomicBool,
}

impl Bound {
    pub(crate) fn new(bytes: u64) -> Bound {
        Bound { bytes, said: AtomicBool::new(false) }
    }

    /// Removes logs of containers that are over, the oldest end first, until all together are within the bound. Those
    /// of the others stay: they are bounded each.
    pub(crate) fn hold(&self, root: &Root, known: &watch::Receiver<Arc<Known>>) -> io::Result<()> {
        let (logs, known) = (all(root)?, known.borrow().clone());
        let mut total: u64 = logs.iter().map(|log| log.bytes).sum();
        let is_over = |log: &&Log| known.over.get(&log.id).copied().unwrap_or(true);
        for log in logs.iter().filter(is_over) {
            if total <= self.bytes {
                break;
            }
            remove(log)?;
            total -= log.bytes;
        }
        let exceeds = total > self.bytes;
        if exceeds && !self.said.load(Ordering::Relaxed) {
            tracing::warn!(
                "logs of containers that run take {} MiB, more than --logs-total, {} MiB; give nm a larger \
                 --logs-total, or a smaller --log-size for containers that it starts from then on",
                total >> 20,
                self.bytes >> 20
            );
        }
        self.said.store(exceeds, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a stream in files that begin where their names say.
    fn with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn the_tail_begins_at_the_nth_line_from_the_end() {
        let dir = with(&[("stdout", "one\ntwo\nthree\n")]);
        let tail = |lines| tail_start(dir.path(), "stdout", lines).unwrap();
        assert_eq!([1, 2, 9, 0].map(tail), [8, 4, 0, 14]);
        let open_ended = with(&[("stdout", "one\ntwo")]);
        assert_eq!(tail_start(open_ended.path(), "stdout", 1).unwrap(), 4);
        assert_eq!(tail_start(open_ended.path(), "stderr", 1).unwrap(), 0);
    }

    #[test]
    fn the_tail_goes_back_through_the_files_of_a_long_stream() {
        // Of "one\ntwo\nthree\nfour\n" the first file is gone.
        let dir = with(&[("stdout.3", "\ntwo\nth"), ("stdout.10", "ree\nfour\n"), ("stderr", "other\n")]);
        let tail = |lines| tail_start(dir.path(), "stdout", lines).unwrap();
        assert_eq!([1, 2, 3, 4, 0].map(tail), [14, 8, 4, 3, 19]);
    }

    #[test]
    fn reading_goes_on_from_an_offset_through_all_files() {
        let dir = with(&[("stdout.3", "\ntwo\nth"), ("stdout.10", "ree\n"), ("stdout.14", "")]);
        let read = |offset| read_at(dir.path(), "stdout", offset).unwrap();
        assert_eq!(read(5), (5, b"wo\nth".to_vec()));
        assert_eq!(read(10), (10, b"ree\n".to_vec()));
        assert_eq!(read(0), (3, b"\ntwo\nth".to_vec()), "what is gone is left out");
        assert_eq!(read(14), (14, Vec::new()));
        assert_eq!(read(99), (99, Vec::new()));
        assert_eq!(read_at(&dir.path().join("none"), "stdout", 7).unwrap(), (7, Vec::new()));
    }
}

//! Containers' output: found by container, read from an offset or the tail through all of a stream's files, followed
//! while the container runs, swept a day after its end, and bounded for the whole node. Shims write it and bound each
//! container's.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use nm_core::Phase;
use nm_shim::folder::{Folder, modified};
use rustix::fs::FileType;
use types::{ContainerId, JobId};

use crate::age::Ages;
use crate::root::Root;

/// What others than the driver need to know of containers.
#[derive(Debug, Default)]
pub(crate) struct Known(RwLock<HashMap<ContainerId, (JobId, Phase)>>);

impl Known {
    /// None: it is not known, so it is over.
    pub(crate) fn is_over(&self, id: ContainerId) -> Option<bool> {
        self.0.read().expect("no one panics while holding it").get(&id).map(|(_, phase)| phase.is_over())
    }

    /// Whether a container of the job may have a process.
    pub(crate) fn is_running(&self, job: &JobId) -> bool {
        let known = self.0.read().expect("no one panics while holding it");
        known.values().any(|(of, phase)| of == job && phase.may_have_process())
    }

    pub(crate) fn set(&self, id: ContainerId, is: Option<(&JobId, Phase)>) {
        let mut known = self.0.write().expect("no one panics while holding it");
        match is {
            Some((job, phase)) => known.insert(id, (job.clone(), phase)),
            None => known.remove(&id),
        };
    }
}

/// How much is read at once.
pub(crate) const CHUNK: usize = 64 << 10;

/// More files than a container's output is ever in.
const FILES_MOST: u64 = 1_000;
/// How far back a tail looks for lines, bytes: what has fewer line ends than that was not made to be read by lines.
const TAIL_MOST: u64 = 256 << 20;

/// Finds the folder of a container's logs, whichever application it is of.
pub(crate) fn find(root: &Root, id: ContainerId) -> io::Result<Option<Folder>> {
    let name = id.to_string();
    for app in root.logs.entries()? {
        let app = root.logs.folder(app?.name.as_c_str());
        if let Ok(logs) = app.and_then(|app| app.folder(name.as_str())) {
            return Ok(Some(logs));
        }
    }
    Ok(None)
}

/// The files of a stream in `dir` with where each begins, the oldest first. Earlier ones may be gone.
fn segments(dir: &Folder, stream: &str) -> io::Result<Vec<(u64, String)>> {
    let mut found = Vec::new();
    for entry in dir.entries()? {
        let entry = entry?;
        let Some(name) = entry.text().filter(|_| entry.kind == FileType::RegularFile) else { continue };
        let Some(rest) = name.strip_prefix(stream) else { continue };
        let start =
            if rest.is_empty() { Some(0) } else { rest.strip_prefix('.').and_then(|n| n.parse().ok()) };
        found.extend(start.map(|start| (start, name.to_owned())));
    }
    found.sort();
    Ok(found)
}

/// The offset at which the last `lines` lines of a stream begin. Ends early when `is_gone` says that nobody waits.
pub(crate) fn tail_start(
    dir: &Folder,
    stream: &str,
    lines: u64,
    is_gone: &dyn Fn() -> bool,
) -> io::Result<u64> {
    let segments = segments(dir, stream)?;
    let Some((start, newest)) = segments.last() else { return Ok(0) };
    let end = start.saturating_add(dir.file(newest.as_str())?.metadata()?.len());
    if lines == 0 {
        return Ok(end);
    }
    let mut back = Back { end, lines, is_gone };
    for (start, name) in segments.iter().rev() {
        if let Some(at) = back.through(dir.file(name.as_str())?, *start)? {
            return Ok(at);
        }
    }
    Ok(segments[0].0)
}

/// A look back from the end of a stream.
struct Back<'a> {
    end: u64,
    /// How many more lines are looked for.
    lines: u64,
    is_gone: &'a dyn Fn() -> bool,
}

impl Back<'_> {
    /// Looks through a file that begins at `start`: where the first of the lines begins, or where it is looked no further.
    fn through(&mut self, mut file: File, start: u64) -> io::Result<Option<u64>> {
        let mut at = file.seek(SeekFrom::End(0))?;
        let mut buffer = vec![0u8; CHUNK];
        while at > 0 {
            let size = at.min(CHUNK as u64);
            at -= size;
            if (self.is_gone)() || self.end.saturating_sub(start.saturating_add(at)) > TAIL_MOST {
                return Ok(Some(start.saturating_add(at)));
            }
            let part = &mut buffer[..usize::try_from(size).expect("at most CHUNK")];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(part)?;
            for (i, byte) in part.iter().enumerate().rev() {
                let after = start.saturating_add(at + i as u64 + 1);
                // The newline that ends the last line begins no further one.
                if *byte == b'\n' && after != self.end {
                    self.lines -= 1;
                    if self.lines == 0 {
                        return Ok(Some(after));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// Up to [`CHUNK`] bytes of a stream from `offset`, and where they really begin: what is gone is left out. Empty at
/// the end.
pub(crate) fn read_at(dir: &Folder, stream: &str, offset: u64) -> io::Result<(u64, Vec<u8>)> {
    let segments = segments(dir, stream)?;
    let first = segments.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
    for (start, name) in &segments[first..] {
        let from = offset.max(*start);
        let mut file = match dir.file(name.as_str()) {
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
    app: String,
    newest: SystemTime,
    bytes: u64,
}

/// All there are, the oldest end first.
fn all(root: &Root) -> io::Result<Vec<Log>> {
    let mut logs = Vec::new();
    for app in root.logs.entries()? {
        let app = app?;
        // What else may be here is none of ours.
        let Some((name, folder)) = app.text().and_then(|name| Some((name, root.logs.folder(name).ok()?)))
        else {
            continue;
        };
        for entry in folder.entries()? {
            let entry = entry?;
            let id = entry.text().and_then(|name| name.parse::<ContainerId>().ok());
            let Some(id) = id.filter(|_| entry.kind == FileType::Directory) else { continue };
            // It may go meanwhile.
            let Ok(dir) = folder.folder(entry.name.as_c_str()) else { continue };
            let size = dir.measure(FILES_MOST, 1);
            let ended = modified(&dir.own_stat()?).unwrap_or(SystemTime::UNIX_EPOCH);
            let newest = size.newest.map_or(ended, |newest| newest.max(ended));
            logs.push(Log { id, app: name.to_owned(), newest, bytes: size.bytes });
        }
    }
    logs.sort_by_key(|log| (log.newest, log.id));
    Ok(logs)
}

fn remove(root: &Root, log: &Log) -> io::Result<()> {
    let Ok(app) = root.logs.folder(log.app.as_str()) else { return Ok(()) };
    app.remove_all(log.id.to_string().as_str())?;
    // Others of its application are no error.
    let _ = root.logs.remove_empty(log.app.as_str());
    Ok(())
}

/// Removes old logs of containers that are not known any more.
pub(crate) fn sweep(root: &Root, known: &Known, ages: &Ages) -> io::Result<()> {
    // Containers are asked for after their folders were seen: one that was made meanwhile is known.
    let logs = all(root)?;
    let mut old = logs.iter().filter(|log| known.is_over(log.id).is_none() && ages.is_old(log.newest));
    old.try_for_each(|log| remove(root, log))
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
    pub(crate) fn hold(&self, root: &Root, known: &Known) -> io::Result<()> {
        let logs = all(root)?;
        let mut total: u64 = logs.iter().map(|log| log.bytes).sum();
        let is_over = |log: &&Log| known.is_over(log.id).unwrap_or(true);
        for log in logs.iter().filter(is_over) {
            if total <= self.bytes {
                break;
            }
            remove(root, log)?;
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
    use std::fs;

    use super::*;

    fn at(dir: &tempfile::TempDir) -> Folder {
        Folder::open(dir.path()).unwrap()
    }

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
        let tail = |lines| tail_start(&at(&dir), "stdout", lines, &|| false).unwrap();
        assert_eq!([1, 2, 9, 0].map(tail), [8, 4, 0, 14]);
        let open_ended = with(&[("stdout", "one\ntwo")]);
        assert_eq!(tail_start(&at(&open_ended), "stdout", 1, &|| false).unwrap(), 4);
        assert_eq!(tail_start(&at(&open_ended), "stderr", 1, &|| false).unwrap(), 0);
    }

    #[test]
    fn the_tail_goes_back_through_the_files_of_a_long_stream() {
        // Of "one\ntwo\nthree\nfour\n" the first file is gone.
        let dir = with(&[("stdout.3", "\ntwo\nth"), ("stdout.10", "ree\nfour\n"), ("stderr", "other\n")]);
        let tail = |lines| tail_start(&at(&dir), "stdout", lines, &|| false).unwrap();
        assert_eq!([1, 2, 3, 4, 0].map(tail), [14, 8, 4, 3, 19]);
    }

    #[test]
    fn reading_goes_on_from_an_offset_through_all_files() {
        let dir = with(&[("stdout.3", "\ntwo\nth"), ("stdout.10", "ree\n"), ("stdout.14", "")]);
        let read = |offset| read_at(&at(&dir), "stdout", offset).unwrap();
        assert_eq!(read(5), (5, b"wo\nth".to_vec()));
        assert_eq!(read(10), (10, b"ree\n".to_vec()));
        assert_eq!(read(0), (3, b"\ntwo\nth".to_vec()), "what is gone is left out");
        assert_eq!(read(14), (14, Vec::new()));
        assert_eq!(read(99), (99, Vec::new()));
        assert_eq!(read_at(&at(&dir), "stderr", 7).unwrap(), (7, Vec::new()));
    }

    #[test]
    fn nothing_but_files_is_read_and_a_file_without_an_end_only_to_a_point() {
        let dir = with(&[("stdout.3", "real\n")]);
        fs::write(dir.path().join("secret"), "secret\n").unwrap();
        std::os::unix::fs::symlink("secret", dir.path().join("stdout.99")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("stdout.98"), rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(read_at(&at(&dir), "stdout", 0).unwrap(), (3, b"real\n".to_vec()));
        assert_eq!(read_at(&at(&dir), "stdout", 99).unwrap(), (99, Vec::new()));
        assert_eq!(tail_start(&at(&dir), "stdout", 1, &|| false).unwrap(), 3);
        File::create(dir.path().join("stderr")).unwrap().set_len(1 << 40).unwrap();
        let start = tail_start(&at(&dir), "stderr", 1, &|| false).unwrap();
        assert!(start > (1 << 40) - TAIL_MOST - 2 * CHUNK as u64, "{start}");
        assert_eq!(tail_start(&at(&dir), "stderr", 1, &|| true).unwrap(), (1 << 40) - CHUNK as u64);
    }
}

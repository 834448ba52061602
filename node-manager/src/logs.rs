//! Containers' output: found by container, read from an offset or the tail through all of a stream's files, followed
//! while the container runs, and swept a day after its end. Shims write it and bound it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use types::ContainerId;

use crate::root::Root;

/// How long logs are kept after their last line, once the container is forgotten.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How much of forgotten containers' logs is kept at most, bytes.
const KEPT_BYTES: u64 = 2 << 30;
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

/// Removes logs of containers that are not `known` any more: those a day old, and the oldest beyond the bound.
pub(crate) fn sweep(root: &Root, known: &[ContainerId]) -> io::Result<()> {
    let mut old = Vec::new();
    for app in fs::read_dir(root.all_logs())? {
        let app = app?.path();
        let mut left = 0;
        for dir in fs::read_dir(&app)? {
            let dir = dir?;
            left += 1;
            let id = dir.file_name().to_str().and_then(|name| name.parse::<ContainerId>().ok());
            if id.is_some_and(|id| !known.contains(&id)) {
                let (newest, bytes) = measure(&dir.path())?;
                old.push((newest, bytes, dir.path()));
            }
        }
        if left == 0 {
            fs::remove_dir(&app)?;
        }
    }
    old.sort();
    let mut total: u64 = old.iter().map(|(_, bytes, _)| bytes).sum();
    for (newest, bytes, dir) in old {
        if newest.elapsed().is_ok_and(|age| age > KEPT) || total > KEPT_BYTES {
            fs::remove_dir_all(&dir)?;
            total -= bytes;
        }
    }
    Ok(())
}

fn measure(dir: &Path) -> io::Result<(SystemTime, u64)> {
    let mut newest = fs::metadata(dir)?.modified()?;
    let mut bytes = 0;
    for file in fs::read_dir(dir)? {
        let meta = file?.metadata()?;
        newest = newest.max(meta.modified()?);
        bytes += meta.len();
    }
    Ok((newest, bytes))
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

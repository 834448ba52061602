//! Containers' output: found by container, read from an offset or the tail, followed while the container runs,
//! and swept a day after its end.

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

/// Where the last `lines` lines of the file begin.
pub(crate) fn tail_start(path: &Path, lines: u64) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(0))?;
    let mut at = end;
    let mut left = lines;
    let mut buffer = vec![0u8; CHUNK];
    if lines == 0 {
        return Ok(end);
    }
    while at > 0 {
        let size = at.min(CHUNK as u64);
        at -= size;
        let part = &mut buffer[..usize::try_from(size).expect("at most CHUNK")];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(part)?;
        for (i, byte) in part.iter().enumerate().rev() {
            let here = at + i as u64;
            // The newline that ends the last line begins no further one.
            if *byte == b'\n' && here + 1 != end {
                left -= 1;
                if left == 0 {
                    return Ok(here + 1);
                }
            }
        }
    }
    Ok(0)
}

/// Up to [`CHUNK`] bytes from `offset`; empty at the end. A file that shrank is read from its start: it was
/// truncated by its owner.
pub(crate) fn read_at(path: &Path, offset: u64) -> io::Result<(u64, Vec<u8>)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((offset, Vec::new())),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let from = if length < offset { 0 } else { offset };
    file.seek(SeekFrom::Start(from))?;
    let mut data = Vec::new();
    file.take(CHUNK as u64).read_to_end(&mut data)?;
    Ok((from, data))
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

    #[test]
    fn the_tail_begins_at_the_nth_line_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail_start(&path, 1).unwrap(), 8);
        assert_eq!(tail_start(&path, 2).unwrap(), 4);
        assert_eq!(tail_start(&path, 9).unwrap(), 0);
        assert_eq!(tail_start(&path, 0).unwrap(), 14);
        fs::write(&path, "one\ntwo").unwrap();
        assert_eq!(tail_start(&path, 1).unwrap(), 4);
    }

    #[test]
    fn reading_goes_on_from_an_offset_and_starts_over_after_a_truncation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stdout");
        fs::write(&path, "hello").unwrap();
        assert_eq!(read_at(&path, 2).unwrap(), (2, b"llo".to_vec()));
        assert_eq!(read_at(&path, 5).unwrap(), (5, Vec::new()));
        fs::write(&path, "new").unwrap();
        assert_eq!(read_at(&path, 5).unwrap(), (0, b"new".to_vec()));
    }
}

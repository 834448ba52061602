//! Files that are whole or not there, whatever happens meanwhile.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Replaces `path` by `bytes`, durably: a crash leaves the old content or the new, never a part.
///
/// # Errors
/// The folder is missing or the disk failed; the old content is then still there.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part: PathBuf = path.with_file_name(name);
    let mut file = File::create(&part)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&part, path)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("record");
        write_atomically(&path, b"a long first content").expect("written");
        write_atomically(&path, b"short").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"short");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }
}

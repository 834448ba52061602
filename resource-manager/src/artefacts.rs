//! Artefacts: immutable files named by their SHA-256, in one folder. A file gets its name only when it is whole,
//! checked and durable, so that none is ever half-seen.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use types::Digest;

/// Bytes per read.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The bytes are not what the uploader said.
    #[error("the content's SHA-256 is {actual}, not {expected} as announced; nothing was stored")]
    WrongDigest {
        /// As announced.
        expected: Digest,
        /// As received.
        actual: Digest,
    },
    /// A text that is no digest.
    #[error("`{0}` is not a SHA-256 of 64 lower-case hexadecimal digits")]
    NotADigest(String),
    /// The disk failed.
    #[error("storing an artefact: {0}")]
    Io(#[from] io::Error),
}

/// The folder of artefacts.
#[derive(Debug)]
pub(crate) struct Artefacts {
    folder: PathBuf,
    next: AtomicU64,
}

impl Artefacts {
    /// Opens the folder, making it if needed, and removes what earlier uploads left half-written.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Artefacts> {
        let partial = folder.join("partial");
        match std::fs::remove_dir_all(&partial) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        std::fs::create_dir_all(&partial)?;
        Ok(Artefacts { folder, next: AtomicU64::new(0) })
    }

    fn path(&self, digest: &Digest) -> Result<PathBuf, UploadError> {
        if !digest.is_sha256() {
            return Err(UploadError::NotADigest(digest.0.clone()));
        }
        Ok(self.folder.join(&digest.0))
    }

    /// Whether it is there, whole.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_ok_and(|path| path.is_file())
    }

    /// Opens one for reading; none if it is not there.
    pub(crate) async fn read(&self, digest: &Digest) -> Result<Option<File>, UploadError> {
        match File::open(self.path(digest)?).await {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts an upload; dropping it leaves nothing.
    pub(crate) async fn receive(&self) -> io::Result<Receiving<'_>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join("partial").join(number.to_string());
        let file = File::create(&path).await?;
        Ok(Receiving { store: self, file, path, hash: Sha256::new(), bytes: 0, placed: false })
    }

    /// Stores a local file, unless it is there already.
    pub(crate) async fn add_file(&self, path: &Path) -> Result<(Digest, u64), UploadError> {
        let mut file = File::open(path).await?;
        let mut receiving = self.receive().await?;
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = file.read(&mut chunk).await?;
            if read == 0 {
                return receiving.finish(None).await;
            }
            receiving.write(&chunk[..read]).await?;
        }
    }
}

/// An upload under way.
#[derive(Debug)]
pub(crate) struct Receiving<'a> {
    store: &'a Artefacts,
    file: File,
    path: PathBuf,
    hash: Sha256,
    bytes: u64,
    placed: bool,
}

impl Receiving<'_> {
    pub(crate) async fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        self.file.write_all(chunk).await
    }

    /// Checks the content against `expected`, if given, and gives it its name.
    pub(crate) async fn finish(mut self, expected: Option<Digest>) -> Result<(Digest, u64), UploadError> {
        let hash = std::mem::take(&mut self.hash).finalize();
        let actual = Digest(hash.iter().map(|byte| format!("{byte:02x}")).collect());
        if let Some(expected) = expected
            && expected != actual
        {
            return Err(UploadError::WrongDigest { expected, actual });
        }
        let place = self.store.path(&actual)?;
        if !place.is_file() {
            self.file.flush().await?;
            self.file.sync_all().await?;
            tokio::fs::rename(&self.path, &place).await?;
            self.placed = true;
            File::open(&self.store.folder).await?.sync_all().await?;
        }
        Ok((actual, self.bytes))
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        if !self.placed {
            // Best effort: the next start removes what is left.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    fn files(folder: &Path) -> usize {
        std::fs::read_dir(folder).expect("readable").count()
    }

    #[tokio::test]
    async fn an_artefact_is_named_by_its_content() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Artefacts::open(folder.path().join("artefacts")).expect("opens");
        let mut upload = store.receive().await.expect("starts");
        upload.write(b"hel").await.expect("written");
        upload.write(b"lo").await.expect("written");
        let (digest, bytes) = upload.finish(Some(HELLO.into())).await.expect("it is what it says");
        assert_eq!((digest.0.as_str(), bytes), (HELLO, 5));
        let mut text = String::new();
        let file = store.read(&digest).await.expect("readable");
        file.expect("there").read_to_string(&mut text).await.expect("read");
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn a_wrong_or_broken_upload_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().join("artefacts");
        let store = Artefacts::open(root.clone()).expect("opens");
        let mut wrong = store.receive().await.expect("starts");
        wrong.write(b"hullo").await.expect("written");
        let refusal = wrong.finish(Some(HELLO.into())).await.expect_err("it is something else");
        assert!(refusal.to_string().contains(HELLO));
        let mut broken = store.receive().await.expect("starts");
        broken.write(b"hel").await.expect("written");
        drop(broken);
        assert!(!store.has(&HELLO.into()));
        assert_eq!((files(&root), files(&root.join("partial"))), (1, 0));
    }

    #[tokio::test]
    async fn names_that_are_no_digest_reach_no_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = Artefacts::open(folder.path().join("artefacts")).expect("opens");
        std::fs::write(folder.path().join("secret"), "x").expect("written");
        assert!(store.read(&"../secret".into()).await.is_err());
        assert!(!store.has(&"partial".into()));
    }
}

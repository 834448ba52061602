//! Artefacts: fetched once, checked, and kept by digest.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use types::{Artefact, Digest};

use crate::root::Root;
use crate::sources::{Final, Sources};

/// How often a download is tried.
const TRIES: u32 = 3;
/// Before the second try; twice as long before the third.
const PAUSE: Duration = Duration::from_millis(500);

/// Fetches artefacts. Those who want one that is on its way wait for it.
pub(crate) struct Localizer {
    sources: Sources,
    /// How much the cache may hold beyond what containers use, and the most that one artefact may have, bytes.
    bound: u64,
    slots: std::sync::Mutex<HashMap<Digest, Slot>>,
    /// Held by the one who sweeps.
    sweeping: std::sync::Mutex<()>,
}

/// What a cached file looked like when its content was last checked; none if it is not there. Locked by one who fetches,
/// shared by those who use it.
type Slot = Arc<RwLock<Option<Look>>>;

/// What changes when a file is tampered with: cheap to compare.
type Look = (u64, Option<SystemTime>);

/// As long as it is held the artefact stays in the cache.
pub(crate) type InUse = OwnedRwLockReadGuard<Option<Look>>;

impl Localizer {
    pub(crate) fn new(sources: Sources, bound: u64) -> Localizer {
        Localizer { sources, bound, slots: Default::default(), sweeping: Default::default() }
    }

    fn slot(&self, digest: &Digest) -> Slot {
        let mut slots = self.slots.lock().expect("no one panics while holding it");
        slots.entry(digest.clone()).or_default().clone()
    }

    /// Returns when the artefact is in the cache with the right content.
    pub(crate) async fn fetch(self: &Arc<Self>, root: &Arc<Root>, artefact: &Artefact) -> Result<InUse> {
        check_digest(&artefact.digest)?;
        let slot = self.slot(&artefact.digest);
        let path = root.cache().join(&artefact.digest.0);
        let seen = slot.clone().read_owned().await;
        if seen.is_some() && *seen == look(&path) {
            touch(&path)?;
            return Ok(seen);
        }
        drop(seen);
        let mut seen = slot.write_owned().await;
        let now = look(&path);
        if now.is_none() || *seen != now {
            if now.is_none() || !is_good(&path, &artefact.digest).await? {
                self.download(root, artefact)
                    .await
                    .with_context(|| format!("artefact `{}`", artefact.name))?;
                let (localizer, root) = (self.clone(), root.clone());
                // This one is locked and stays; what it displaces goes.
                tokio::task::spawn_blocking(move || localizer.sweep(&root)).await?;
            }
            *seen = look(&path);
        }
        Ok(OwnedRwLockWriteGuard::downgrade(seen))
    }

    async fn download(&self, root: &Root, artefact: &Artefact) -> Result<()> {
        let draft = root.cache().join(format!("{}.part", artefact.digest));
        let mut tries = 1;
        loop {
            let Err(error) = self.download_to(&draft, artefact).await else { break };
            // The error that matters is the download's.
            let _ = tokio::fs::remove_file(&draft).await;
            if tries == TRIES || is_final(&error) {
                return Err(error);
            }
            tracing::warn!(digest = %artefact.digest, error = format!("{error:#}"), "fetching it again");
            tokio::time::sleep(PAUSE * tries).await;
            tries += 1;
        }
        tokio::fs::rename(&draft, root.cache().join(&artefact.digest.0)).await?;
        Ok(())
    }

    async fn download_to(&self, draft: &Path, artefact: &Artefact) -> Result<()> {
        let mut content = self.sources.open(artefact).await?;
        let mut file = tokio::fs::File::create(draft).await?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        while let Some(piece) = content.try_next().await? {
            bytes += piece.len() as u64;
            if bytes > self.bound {
                bail!(Final(format!("it is larger than nm's --cache-size of {} bytes", self.bound)));
            }
            hash.update(&piece);
            file.write_all(&piece).await?;
        }
        file.flush().await?;
        file.set_permissions(Permissions::from_mode(0o555)).await?;
        let (found, digest) = (hex(&hash.finalize()), &artefact.digest);
        ensure!(found == digest.0, "its content has digest {found}, not {digest}");
        Ok(())
    }

    /// Removes the least recently used files that no container uses, down to the bound.
    pub(crate) fn sweep(&self, root: &Root) {
        if let Err(error) = self.try_sweep(root) {
            tracing::warn!(%error, "the artefact cache cannot be swept");
        }
    }

    fn try_sweep(&self, root: &Root) -> io::Result<()> {
        let _alone = self.sweeping.lock().expect("no one panics while holding it");
        let mut unused = Vec::new();
        for entry in fs::read_dir(root.cache())? {
            let entry = entry?;
            // A draft may be gone by now.
            let Ok(meta) = entry.metadata() else { continue };
            // A file that is linked into a work directory costs nothing here.
            if meta.nlink() == 1 && entry.path().extension().is_none() {
                // Linking, unlinking and touching change the inode: this is when it was last used.
                unused.push((meta.ctime(), meta.ctime_nsec(), meta.len(), entry.path()));
            }
        }
        unused.sort();
        let mut total: u64 = unused.iter().map(|(_, _, bytes, _)| bytes).sum();
        for (_, _, bytes, path) in unused {
            if total <= self.bound {
                break;
            }
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // One who fetches or is about to use it holds the lock.
            if let Ok(mut seen) = self.slot(&Digest(name.to_owned())).try_write() {
                fs::remove_file(&path)?;
                *seen = None;
                total -= bytes;
            }
        }
        // Nobody waits for what only the map knows.
        let mut slots = self.slots.lock().expect("no one panics while holding it");
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_read().is_ok_and(|seen| seen.is_some())
        });
        Ok(())
    }
}

/// Whether another try cannot help.
fn is_final(error: &anyhow::Error) -> bool {
    let full = |error: &io::Error| error.kind() == io::ErrorKind::StorageFull;
    error.root_cause().downcast_ref().is_some_and(full) || error.downcast_ref::<Final>().is_some()
}

/// Notes the use of a file.
fn touch(path: &Path) -> io::Result<()> {
    File::open(path)?.set_times(FileTimes::new().set_accessed(SystemTime::now()))
}

fn look(path: &Path) -> Option<Look> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.len(), meta.modified().ok()))
}

/// Whether a cached file has the content it should have; one that has not is removed.
async fn is_good(path: &Path, digest: &Digest) -> Result<bool> {
    let checking = path.to_owned();
    let found = tokio::task::spawn_blocking(move || digest_of(&checking)).await??;
    if found != *digest {
        tracing::warn!(%digest, "the cached artefact has another content; fetching it again");
        tokio::fs::remove_file(path).await?;
    }
    Ok(found == *digest)
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(hex(&hash.finalize()))),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// A digest becomes a file name, and it comes from another machine.
fn check_digest(digest: &Digest) -> Result<()> {
    if !digest.is_sha256() {
        bail!("`{digest}` is no SHA-256 in lower-case hexadecimal");
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

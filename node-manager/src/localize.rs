//! Artefacts: fetched once, checked, and kept by digest.

use std::collections::HashMap;
use std::fs::{File, FileTimes};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use nm_shim::Folder;
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

/// How long one try may take, whatever comes meanwhile.
const DOWNLOAD: Duration = Duration::from_secs(600);
/// How what is not complete is called, after its digest.
const DRAFT: &str = ".part";

/// Fetches artefacts. Those who want one that is on its way wait for it.
pub(crate) struct Localizer {
    sources: Sources,
    /// How much the cache may hold beyond what containers use, and the most that one artefact may have, bytes.
    bound: u64,
    /// By content and where it comes from: a source that is slow keeps nobody waiting who names another.
    slots: std::sync::Mutex<HashMap<Key, Slot>>,
    /// Held by the one who sweeps.
    sweeping: std::sync::Mutex<()>,
}

/// An artefact's content, and where it is fetched from.
type Key = (Digest, Option<String>);

/// What a cached file looked like when its content was last checked; none if it is not there. Locked by one who fetches,
/// shared by those who use it.
type Slot = Arc<RwLock<Option<Look>>>;

/// What changes when a file is tampered with: cheap to compare.
type Look = (u64, u64, Option<SystemTime>);

/// As long as it is held the artefact stays in the cache.
pub(crate) type InUse = OwnedRwLockReadGuard<Option<Look>>;

impl Localizer {
    pub(crate) fn new(sources: Sources, bound: u64) -> Localizer {
        Localizer { sources, bound, slots: Default::default(), sweeping: Default::default() }
    }

    fn slot(&self, artefact: &Artefact) -> Slot {
        let mut slots = self.slots.lock().expect("no one panics while holding it");
        slots.entry((artefact.digest.clone(), artefact.from.clone())).or_default().clone()
    }

    /// Removes a file unless someone fetches it, or is about to use it.
    fn remove_unused(&self, root: &Root, digest: &Digest) -> io::Result<bool> {
        let slots = self.slots.lock().expect("no one panics while holding it");
        let of_digest = slots.iter().filter(|((of, _), _)| of == digest).map(|(_, slot)| slot);
        let Ok(mut all) = of_digest.map(|slot| slot.try_write()).collect::<Result<Vec<_>, _>>() else {
            return Ok(false);
        };
        root.cache.remove_file(digest.0.as_str())?;
        all.iter_mut().for_each(|seen| **seen = None);
        Ok(true)
    }

    /// Returns when the artefact is in the cache with the right content.
    pub(crate) async fn fetch(self: &Arc<Self>, root: &Arc<Root>, artefact: &Artefact) -> Result<InUse> {
        check_digest(&artefact.digest)?;
        let slot = self.slot(artefact);
        let name = artefact.digest.0.as_str();
        let seen = slot.clone().read_owned().await;
        if seen.is_some() && *seen == look(root, name) {
            touch(root, name)?;
            return Ok(seen);
        }
        drop(seen);
        let mut seen = slot.write_owned().await;
        let now = look(root, name);
        if now.is_none() || *seen != now {
            if now.is_none() || !is_good(root, &artefact.digest).await? {
                self.download(root, artefact)
                    .await
                    .with_context(|| format!("artefact `{}`", artefact.name))?;
                let (localizer, root) = (self.clone(), root.clone());
                // This one is locked and stays; what it displaces goes.
                tokio::task::spawn_blocking(move || localizer.sweep(&root)).await?;
            }
            *seen = look(root, name);
        }
        Ok(OwnedRwLockWriteGuard::downgrade(seen))
    }

    async fn download(&self, root: &Arc<Root>, artefact: &Artefact) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let draft = format!("{}.{}{DRAFT}", artefact.digest, NEXT.fetch_add(1, Ordering::Relaxed));
        let mut tries = 1;
        loop {
            let Err(error) = self.download_in_time(root, &draft, artefact).await else { break };
            // The error that matters is the download's.
            let (removing, name) = (root.clone(), draft.clone());
            // It may be large.
            let _ = tokio::task::spawn_blocking(move || removing.cache.remove_file(name.as_str())).await;
            if tries == TRIES || is_final(&error) {
                return Err(error);
            }
            tracing::warn!(digest = %artefact.digest, error = format!("{error:#}"), "fetching it again");
            tokio::time::sleep(PAUSE * tries).await;
            tries += 1;
        }
        root.cache.rename(draft.as_str(), artefact.digest.0.as_str())?;
        Ok(())
    }

    /// Who sends a byte now and then keeps no container waiting for ever.
    async fn download_in_time(&self, root: &Root, draft: &str, artefact: &Artefact) -> Result<()> {
        let done = tokio::time::timeout(DOWNLOAD, self.download_to(root, draft, artefact)).await;
        done.unwrap_or_else(|_| bail!("it was not there after {} s", DOWNLOAD.as_secs()))
    }

    async fn download_to(&self, root: &Root, draft: &str, artefact: &Artefact) -> Result<()> {
        let mut content = self.sources.open(artefact).await?;
        // Nobody writes it after this, and nobody but nm could.
        let mut file = tokio::fs::File::from_std(root.cache.create(draft, 0o555)?);
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
        let (found, digest) = (hex(&hash.finalize()), &artefact.digest);
        // What digest it has is not told: to who does not know the content that may be news.
        ensure!(found == digest.0, "its content is not that of digest {digest}");
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
        for entry in root.cache.entries()? {
            let entry = entry?;
            // A draft, or none of ours.
            let digest = entry.text().map(|name| Digest(name.to_owned()));
            let Some(digest) = digest.filter(Digest::is_sha256) else { continue };
            let Ok(stat) = root.cache.stat(entry.name.as_c_str()) else { continue };
            // A file that is linked into a work directory costs nothing here.
            if stat.st_nlink == 1 {
                // Linking, unlinking and touching change the inode: this is when it was last used.
                let bytes = u64::try_from(stat.st_size).unwrap_or(0);
                unused.push((stat.st_ctime, stat.st_ctime_nsec, bytes, digest));
            }
        }
        unused.sort();
        let mut total: u64 = unused.iter().map(|(_, _, bytes, _)| bytes).sum();
        for (_, _, bytes, digest) in unused {
            if total <= self.bound {
                break;
            }
            if self.remove_unused(root, &digest)? {
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

/// Removes drafts that an earlier life left.
pub(crate) fn remove_drafts(root: &Root) -> io::Result<()> {
    for entry in root.cache.entries()? {
        let entry = entry?;
        let digest = entry.text().and_then(|name| name.strip_suffix(DRAFT)?.split('.').next());
        if digest.is_some_and(|digest| Digest(digest.to_owned()).is_sha256()) {
            root.cache.remove_file(entry.name.as_c_str())?;
        }
    }
    Ok(())
}

/// Notes the use of a file.
fn touch(root: &Root, name: &str) -> io::Result<()> {
    root.cache.file(name)?.set_times(FileTimes::new().set_accessed(SystemTime::now()))
}

fn look(root: &Root, name: &str) -> Option<Look> {
    let meta = root.cache.file(name).ok()?.metadata().ok()?;
    Some((meta.ino(), meta.len(), meta.modified().ok()))
}

/// Opens a cached file; with `check` only if it has that content still.
pub(crate) fn open(root: &Root, digest: &Digest, check: bool) -> Result<File> {
    let mut file = root.cache.file(digest.0.as_str())?;
    if check {
        if hash(&mut file, &mut io::sink())? != *digest {
            bail!(spoilt(root, digest));
        }
        file.rewind()?;
    }
    Ok(file)
}

/// Copies a cached file into a folder: what is copied is what is checked.
pub(crate) fn copy(root: &Root, digest: &Digest, into: &Folder, name: &str) -> Result<()> {
    let mut copy = into.create(name, 0o555)?;
    if hash(&mut root.cache.file(digest.0.as_str())?, &mut copy)? != *digest {
        bail!(spoilt(root, digest));
    }
    Ok(())
}

/// Whoever wants it next fetches it again.
fn spoilt(root: &Root, digest: &Digest) -> anyhow::Error {
    tracing::warn!(%digest, "the cached artefact was changed after it was checked; it is removed");
    // One that cannot be removed is found spoilt again.
    let _ = root.cache.remove_file(digest.0.as_str());
    anyhow::anyhow!("it was changed in this node's cache after it was checked; the next try fetches it again")
}

/// Whether a cached file has the content it should have; one that has not is removed.
async fn is_good(root: &Arc<Root>, digest: &Digest) -> Result<bool> {
    let (checking, name) = (root.clone(), digest.0.clone());
    let found =
        tokio::task::spawn_blocking(move || hash(&mut checking.cache.file(name.as_str())?, &mut io::sink()));
    let found = found.await??;
    if found != *digest {
        tracing::warn!(%digest, "the cached artefact has another content; fetching it again");
        root.cache.remove_file(digest.0.as_str())?;
    }
    Ok(found == *digest)
}

/// The digest of what is read and written.
fn hash(from: &mut impl Read, to: &mut impl Write) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0u8; 256 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(Digest(hex(&hash.finalize()))),
            n => {
                hash.update(&buffer[..n]);
                to.write_all(&buffer[..n])?;
            }
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

//! Artefacts: fetched once from the resource manager's store, checked, and kept by digest.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use proto::Token;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use types::{Artefact, Digest};

use crate::root::Root;

/// How much the cache may hold beyond what containers use, bytes.
const CACHE_BYTES: u64 = 10 << 30;

/// How often a download is tried.
const TRIES: u32 = 3;
/// Before the second try; twice as long before the third.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a store may say nothing.
const PATIENCE: Duration = Duration::from_secs(5);

async fn soon<T>(answer: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, answer)
        .await
        .with_context(|| format!("the store has said nothing for {} s", PATIENCE.as_secs()))
}

/// Fetches artefacts. Those who want one that is on its way wait for it.
pub(crate) struct Localizer {
    rm: String,
    token: Option<Token>,
    /// By digest, what the file looked like when its content was last checked.
    checked: std::sync::Mutex<HashMap<Digest, Arc<Mutex<Option<Look>>>>>,
}

/// What changes when a file is tampered with: cheap to compare.
type Look = (u64, Option<SystemTime>);

impl Localizer {
    pub(crate) fn new(rm: String, token: Option<Token>) -> Localizer {
        Localizer { rm, token, checked: std::sync::Mutex::default() }
    }

    /// Returns when the artefact is in the cache with the right content.
    pub(crate) async fn fetch(&self, root: &Root, artefact: &Artefact) -> Result<()> {
        check_digest(&artefact.digest)?;
        let slot = {
            let mut checked = self.checked.lock().expect("no one panics while holding it");
            checked.entry(artefact.digest.clone()).or_default().clone()
        };
        let mut seen = slot.lock().await;
        let path = root.cache().join(&artefact.digest.0);
        let look = look(&path);
        if look.is_some() && *seen == look {
            return Ok(());
        }
        if look.is_some() {
            let (checking, digest) = (path.clone(), artefact.digest.clone());
            let good = tokio::task::spawn_blocking(move || digest_of(&checking).map(|found| found == digest))
                .await??;
            if good {
                *seen = look;
                return Ok(());
            }
            tracing::warn!(digest = %artefact.digest, "the cached artefact has another content; fetching it again");
            tokio::fs::remove_file(&path).await?;
        }
        self.download(root, artefact).await.with_context(|| format!("artefact `{}`", artefact.name))?;
        *seen = self::look(&path);
        Ok(())
    }

    async fn download(&self, root: &Root, artefact: &Artefact) -> Result<()> {
        let draft = root.cache().join(format!("{}.part", artefact.digest));
        let mut tries = 1;
        loop {
            let result = self.download_to(&draft, &artefact.digest).await;
            let Err(error) = result else { break };
            // The error that matters is the download's.
            let _ = tokio::fs::remove_file(&draft).await;
            let full = error
                .root_cause()
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == io::ErrorKind::StorageFull);
            if tries == TRIES || full {
                return Err(error);
            }
            tracing::warn!(digest = %artefact.digest, error = format!("{error:#}"), "fetching it again");
            tokio::time::sleep(PAUSE * tries).await;
            tries += 1;
        }
        tokio::fs::rename(&draft, root.cache().join(&artefact.digest.0)).await?;
        Ok(())
    }

    async fn download_to(&self, draft: &Path, digest: &Digest) -> Result<()> {
        let link = proto::connect(&self.rm, self.token.as_ref()).await?;
        let request = proto::pb::FetchRequest { digest: digest.0.clone() };
        let mut client = proto::artefact_service_client(&link);
        let fetch = soon(client.fetch(request)).await?;
        let mut chunks = fetch.context("the resource manager's store")?.into_inner();
        let mut file = tokio::fs::File::create(draft).await?;
        let mut hash = Sha256::new();
        while let Some(part) = soon(chunks.message()).await?? {
            hash.update(&part.chunk);
            file.write_all(&part.chunk).await?;
        }
        file.flush().await?;
        file.set_permissions(fs::Permissions::from_mode(0o555)).await?;
        let found = hex(&hash.finalize());
        ensure!(found == digest.0, "its content has digest {found}, not {digest}");
        Ok(())
    }
}

/// Removes the least recently changed files that no container uses, down to the bound. A linked file is in use.
pub(crate) fn sweep(root: &Root) {
    if let Err(error) = try_sweep(root) {
        tracing::warn!(%error, "the artefact cache cannot be swept");
    }
}

fn try_sweep(root: &Root) -> io::Result<()> {
    let mut unused = Vec::new();
    for entry in fs::read_dir(root.cache())? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.nlink() == 1 && entry.path().extension().is_none() {
            // Linking and unlinking change the inode: this is when it was last given to or taken from a container.
            unused.push((meta.ctime(), meta.len(), entry.path()));
        }
    }
    unused.sort();
    let mut total: u64 = unused.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in unused {
        if total <= CACHE_BYTES {
            break;
        }
        fs::remove_file(path)?;
        total -= bytes;
    }
    Ok(())
}

fn look(path: &Path) -> Option<Look> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.len(), meta.modified().ok()))
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    let mut file = fs::File::open(path)?;
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
    let valid =
        digest.0.len() == 64 && digest.0.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !valid {
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

//! What a job file names on this machine: the job's binary, found, looked at, digested; and its secrets.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use job_file::JobFile;
use sha2::{Digest as _, Sha256};
use types::{Artefact, Digest, Secrets};

use crate::failure::{Code, Failure};

/// The job's binary on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its name in a container's work directory.
    pub name: String,
}

/// Reads and parses a job file.
///
/// # Errors
/// `NoJobFile` if it cannot be read, `BadJobFile` with all its problems if it is not valid.
pub fn read_job_file(path: &Path) -> Result<JobFile, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(Code::NoJobFile, format!("cannot read {}: {why}", path.display()))
    })?;
    job_file::parse(&text, &path.display().to_string())
        .map_err(|problems| Failure::new(Code::BadJobFile, problems.to_string()))
}

/// Where a job's program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Here; the resource manager keeps it for the nodes.
    Here(Package),
    /// At a URL, from where the nodes fetch it.
    There(Artefact),
}

/// Finds what `[package]` names: a URL, or a binary relative to the folder of the job file.
///
/// # Errors
/// `BadJobFile` if the binary is not there, no file, or cannot be run.
pub fn find(file: &JobFile, job_file: &Path) -> Result<Found, Failure> {
    match &file.spec.package.artefact {
        Some(artefact) => Ok(Found::There(artefact.clone())),
        None => binary(file, job_file).map(Found::Here),
    }
}

fn binary(file: &JobFile, job_file: &Path) -> Result<Package, Failure> {
    let path = job_file.parent().unwrap_or(Path::new("")).join(&file.spec.package.source);
    let bad = |why: String| Failure::new(Code::BadJobFile, file.at("package.path", why).to_string());
    let shown = path.display();
    let metadata = std::fs::metadata(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => bad(format!(
            "there is no file {shown}; build it, or give its path relative to the job file's folder"
        )),
        _ => bad(format!("cannot look at {shown}: {error}")),
    })?;
    if !metadata.is_file() {
        return Err(bad(format!("{shown} is not a file; valid: the job's binary")));
    }
    if metadata.len() == 0 {
        return Err(bad(format!("{shown} is empty; valid: the job's binary")));
    }
    if file.spec.package.command.is_empty() && metadata.permissions().mode() & 0o111 == 0 {
        return Err(bad(format!(
            "{shown} is not executable; run `chmod +x {shown}`, or give `package.command`"
        )));
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| bad(format!("{shown} names no file")))?;
    Ok(Package { bytes: metadata.len(), path, name })
}

/// Reads the files of `[package.secrets]` and of the systems' security, relative to the folder of the job file.
///
/// # Errors
/// `BadJobFile` if one cannot be read, is no text, or all are too large together.
pub fn secrets(file: &JobFile, job_file: &Path) -> Result<Secrets, Failure> {
    let folder = job_file.parent().unwrap_or(Path::new(""));
    let mut secrets = Secrets::default();
    for (name, source) in &file.spec.package.secrets {
        let bad =
            |why: String| Failure::new(Code::BadJobFile, file.at(&file.secret_key(name), why).to_string());
        let path = folder.join(source);
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => bad(format!(
                "there is no file {}; give its path relative to the job file's folder",
                path.display()
            )),
            std::io::ErrorKind::InvalidData => {
                bad(format!("{} is not text in UTF-8; valid for other content: its base64", path.display()))
            }
            _ => bad(format!("cannot read {}: {error}", path.display())),
        })?;
        secrets.0.insert(name.clone(), text);
        if secrets.bytes() > Secrets::MAX_BYTES {
            return Err(bad(format!(
                "with it the job's secrets hold {} bytes; valid: {} together",
                secrets.bytes(),
                Secrets::MAX_BYTES
            )));
        }
    }
    Ok(secrets)
}

impl Package {
    /// Reads it all once for its digest.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn artefact(&self) -> Result<Artefact, Failure> {
        let failed =
            |error: std::io::Error| Failure::other(format!("cannot read {}: {error}", self.path.display()));
        let mut file = std::fs::File::open(&self.path).map_err(failed)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut bytes = 0;
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                read => {
                    hash.update(&buffer[..read]);
                    bytes += read as u64;
                }
            }
        }
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Artefact { name: self.name.clone(), digest: Digest(digest), bytes, from: None })
    }
}

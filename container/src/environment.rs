//! What the node manager tells a container, by environment variables.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use types::{AppId, ContainerId, Incarnation, JobSpec};

/// This container's place in the world.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    /// `SAMZA_APP_ID`.
    pub(crate) app: AppId,
    /// `SAMZA_CONTAINER_ID`; the incarnation is in it.
    pub(crate) container: ContainerId,
    /// `SAMZA_SLOT`.
    pub(crate) slot: u32,
    /// `SAMZA_STATE_DIR`: a folder per task below it.
    pub(crate) state: PathBuf,
    /// `SAMZA_MEMORY_BYTES`: the limit.
    pub(crate) memory_bytes: u64,
    /// `SAMZA_AM_ADDRESS_FILE`.
    pub(crate) address_file: PathBuf,
    /// `SAMZA_TOKEN_FILE`.
    pub(crate) token_file: Option<PathBuf>,
    /// `SAMZA_RACK`, for reading from near replicas; empty if unknown.
    pub(crate) rack: String,
    /// The job, from `SAMZA_JOB_FILE`.
    pub(crate) job: Arc<JobSpec>,
}

impl Environment {
    /// Reads the process's environment.
    pub(crate) fn read() -> Result<Environment> {
        Environment::from(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from(get: &dyn Fn(&str) -> Option<String>) -> Result<Environment> {
        let need = |name: &str| {
            get(name).with_context(|| {
                format!(
                    "{name} is not set: a job's binary is started by a node manager; submit it with `samza-submit job.toml`"
                )
            })
        };
        let container: ContainerId = need("SAMZA_CONTAINER_ID")?.parse().context("SAMZA_CONTAINER_ID")?;
        let role = get("SAMZA_ROLE").unwrap_or_else(|| "worker".into());
        if role != "worker" {
            bail!("SAMZA_ROLE is `{role}`: a job's binary can only be a worker");
        }
        let job_file = need("SAMZA_JOB_FILE")?;
        let text = std::fs::read_to_string(&job_file).with_context(|| format!("cannot read {job_file}"))?;
        let job: JobSpec = serde_json::from_str(&text).with_context(|| format!("{job_file} is not a job"))?;
        Ok(Environment {
            app: AppId(need("SAMZA_APP_ID")?),
            container,
            slot: need("SAMZA_SLOT")?.parse().context("SAMZA_SLOT")?,
            state: PathBuf::from(need("SAMZA_STATE_DIR")?),
            memory_bytes: match get("SAMZA_MEMORY_BYTES") {
                Some(text) => text.parse().context("SAMZA_MEMORY_BYTES")?,
                None => job.containers.resource.memory_bytes,
            },
            address_file: PathBuf::from(need("SAMZA_AM_ADDRESS_FILE")?),
            token_file: get("SAMZA_TOKEN_FILE").map(PathBuf::from),
            rack: get("SAMZA_RACK").unwrap_or_default(),
            job: Arc::new(job),
        })
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.container.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_binary_started_by_hand_is_told_how_to_start_it() {
        let error = Environment::from(&|_| None).expect_err("nothing is set").to_string();
        assert!(error.contains("SAMZA_CONTAINER_ID") && error.contains("samza-submit job.toml"), "{error}");
    }
}

//! What the node manager tells this process through its environment.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Context;
use types::{AppId, ContainerId, JobSpec};

/// The environment, parsed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The application.
    pub app: AppId,
    /// This attempt, from 1.
    pub attempt: u32,
    /// This container; its incarnation owns the coordinator topic.
    pub container: ContainerId,
    /// The job.
    pub spec: JobSpec,
    /// The resource manager, `host:port`.
    pub rm: String,
    /// The node's first name: where containers find this master if the cluster is not on loopback.
    pub node_host: String,
    /// The application's token.
    pub token_file: Option<PathBuf>,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// A variable is missing or not what it should be; the text names it.
    pub fn from_env() -> anyhow::Result<Settings> {
        Settings::from(&|name| env::var(name).ok().filter(|v| !v.is_empty()))
    }

    fn from(var: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Settings> {
        let need = |name: &str| {
            var(name).with_context(|| format!("{name} is not set: app-master is started by a node manager"))
        };
        let job_file = need("SAMZA_JOB_FILE")?;
        let job = std::fs::read_to_string(&job_file)
            .with_context(|| format!("reading SAMZA_JOB_FILE {job_file}"))?;
        Ok(Settings {
            app: AppId(need("SAMZA_APP_ID")?),
            attempt: need("SAMZA_ATTEMPT")?.parse().context("SAMZA_ATTEMPT is not a number")?,
            container: need("SAMZA_CONTAINER_ID")?.parse().context("SAMZA_CONTAINER_ID")?,
            spec: serde_json::from_str(&job).with_context(|| format!("{job_file} is not a job"))?,
            rm: need("SAMZA_RM")?,
            node_host: var("SAMZA_NODE_HOST").unwrap_or_else(|| "127.0.0.1".into()),
            token_file: var("SAMZA_TOKEN_FILE").map(PathBuf::from).filter(|p| has_content(p)),
        })
    }

    /// Where to listen for containers: on loopback if the resource manager is there too.
    #[must_use]
    pub fn listen_host(&self) -> String {
        let host = self.rm.rsplit_once(':').map_or(self.rm.as_str(), |(h, _)| h);
        let loopback =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if loopback { "127.0.0.1".into() } else { self.node_host.clone() }
    }
}

fn has_content(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_variable_is_named() {
        let error = Settings::from(&|_| None).expect_err("nothing is set");
        assert!(error.to_string().contains("SAMZA_JOB_FILE"), "{error}");
    }

    #[test]
    fn it_listens_on_loopback_only_beside_a_resource_manager_on_loopback() {
        let of = |rm: &str| {
            let settings = Settings {
                app: "a".into(),
                attempt: 1,
                container: ContainerId::default(),
                spec: crate::testing::spec(),
                rm: rm.into(),
                node_host: "node7".into(),
                token_file: None,
            };
            settings.listen_host()
        };
        assert_eq!(of("127.0.0.1:8030"), "127.0.0.1");
        assert_eq!(of("rm.example:8030"), "node7");
    }
}

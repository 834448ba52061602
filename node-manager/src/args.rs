//! The command line of `nm`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::health::Checks;
use crate::launch::Wall;
use crate::origins::{Origins, PUBLIC};
use crate::users::Range;

const EXAMPLES: &str = "\
Examples:
  One machine, trying things out:
    nm --rm 127.0.0.1:8030 --root /var/lib/samza --memory 4GiB --cpu 2

  A second machine, with the cluster's token, serving logs over the network:
    nm --rm rm.example.org:8030 --root /var/lib/samza \\
       --listen 0.0.0.0:8042 --token-file /etc/samza/token \\
       --host worker-2.example.org --rack r2

  What this machine can hold containers to:
    nm doctor

nm needs root and cgroups (v1 or v2) to limit containers; --unlimited does
without. Stopping nm leaves containers running: a new nm with the same --root
takes them over. A container whose nm stays away for ten minutes ends.";

/// What nm does instead of serving.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Verb {
    /// Tries out what this machine holds containers to, and says it; starts nothing else
    Doctor {
        /// How to say it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// How something is said.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Offers this machine to a samza-rs cluster and runs containers on it.
#[derive(Debug, Parser)]
#[command(name = "nm", version, after_help = EXAMPLES, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Verb>,
    /// The resource manager, host:port
    #[arg(long, value_name = "ADDR", env = "SAMZA_RM", default_value = "127.0.0.1:8030")]
    pub(crate) rm: String,
    /// Folder for containers, logs, local state and the artefact cache; survives restarts
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) root: Option<PathBuf>,
    /// Where logs are served; port 0 takes a free one. Beyond loopback it needs --token-file
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// The node's name in the cluster [default: the first --host, else the host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) node_id: Option<String>,
    /// A name or address by which this machine is known, as brokers advertise it; repeat for each
    /// [default: the host name, and the address towards the resource manager]
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// The machine's rack, as brokers name theirs
    #[arg(long, default_value = "")]
    pub(crate) rack: String,
    /// Memory for containers, such as 4GiB [default: all but an eighth of what the machine has]
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Cores for containers, such as 1.5 [default: all]
    #[arg(long, value_name = "CORES")]
    pub(crate) cpu: Option<f64>,
    /// A label that jobs can ask for; repeat for each
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub(crate) labels: Vec<String>,
    /// File with the cluster's shared secret
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The control group, below the root of each hierarchy, under which containers are put
    /// [default: with cgroup v2 the group that nm itself is in, if that is delegated to it or nm is not root; else samza]
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,
    /// Processes and threads that a container may have: far above what a job needs, far below what hurts the machine
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    pub(crate) container_pids: u64,
    /// What containers may not see or do, separated by commas; private-tmp, read-only-root and no-capabilities need root
    /// [default: no-new-privileges, seccomp, and of an nm that is root no-capabilities and private-tmp; none with
    /// --allow-root]
    #[arg(long, value_name = "WALLS", value_enum, value_delimiter = ',')]
    pub(crate) sandbox: Vec<Wall>,
    /// How much of each container's standard output is kept, and as much of its standard error; the oldest goes first
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = |text: &str| size("--log-size", text))]
    pub(crate) log_size: u64,
    /// How much the cache keeps of artefacts that no container uses, the least recently used going first; a larger one is
    /// refused
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = |text: &str| size("--cache-size", text))]
    pub(crate) cache_size: u64,
    /// How much of all containers' output together is kept: beyond it that of containers that are over goes, the oldest
    /// end first
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = |text: &str| size("--logs-total", text))]
    pub(crate) logs_total: u64,
    /// A host that jobs may have artefacts fetched from, wherever it is; repeat for each. `*` stands for all with public
    /// addresses [default: *]
    #[arg(long = "artefact-host", value_name = "HOST")]
    pub(crate) artefact_hosts: Vec<String>,
    /// A bucket that is read with nm's own credentials, for any job; repeat for each. Others are read as anybody may
    #[arg(long = "artefact-bucket", value_name = "BUCKET")]
    pub(crate) artefact_buckets: Vec<String>,
    /// A folder of this machine that jobs may take artefacts from, those that their user may read; repeat for each
    #[arg(long = "artefact-folder", value_name = "DIR")]
    pub(crate) artefact_folders: Vec<PathBuf>,
    /// Free space that the node's disks must have for it to get new containers; of one folder with containers=SIZE,
    /// logs=SIZE, state=SIZE or cache=SIZE [default: 256MiB]
    #[arg(long = "min-free", value_name = "[FOLDER=]SIZE")]
    pub(crate) min_free: Vec<String>,
    /// Percent of a minute that all work may wait for memory before the node gets no new containers
    #[arg(long, value_name = "PERCENT", default_value_t = 40.0)]
    pub(crate) max_memory_pressure: f64,
    /// The same for disks; 100 never keeps containers away
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0)]
    pub(crate) max_io_pressure: f64,
    /// A program that is run every 30 s: unless it ends with 0 the node gets no new containers, for the reason in the
    /// last line that it printed
    #[arg(long, value_name = "FILE")]
    pub(crate) health_script: Option<PathBuf>,
    /// Run containers without limits, for machines without cgroups or root
    #[arg(long)]
    pub(crate) unlimited: bool,
    /// Run all containers as this user: a name, with the groups it is in, or UID:GID [default: nm as root gives each job
    /// a user of its own; else as nm itself]
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The users, and the groups of the same numbers, that jobs get as their own
    #[arg(long, value_name = "FIRST-LAST", default_value = crate::users::RANGE)]
    pub(crate) uids: Range,
    /// Let containers of an nm that is root be root too: each job can then do to this machine whatever it wants
    #[arg(long)]
    pub(crate) allow_root: bool,
}

/// The folders below `--root` that may be disks of their own.
const FOLDERS: [&str; 4] = ["containers", "logs", "state", "cache"];

/// Where artefacts may come from.
pub(crate) fn origins(args: &Args) -> Origins {
    let hosts = args.artefact_hosts.clone();
    Origins {
        hosts: if hosts.is_empty() { vec![PUBLIC.to_owned()] } else { hosts },
        buckets: args.artefact_buckets.clone(),
        folders: args.artefact_folders.clone(),
        proxies: crate::origins::proxies(),
    }
}

/// What health is judged by.
pub(crate) fn checks(args: &Args, root: &Path) -> Result<Checks> {
    let mut least = FOLDERS.map(|folder| (root.join(folder), 256 << 20));
    for text in &args.min_free {
        let (folder, bytes) = match text.split_once('=') {
            Some((folder, bytes)) => (Some(folder), bytes),
            None => (None, text.as_str()),
        };
        let bytes = size("--min-free", bytes)?;
        ensure!(
            folder.is_none_or(|folder| FOLDERS.contains(&folder)),
            "--min-free `{text}`: valid folders are {}",
            FOLDERS.join(", ")
        );
        for (path, least) in &mut least {
            if folder.is_none_or(|folder| path.ends_with(folder)) {
                *least = bytes;
            }
        }
    }
    Ok(Checks {
        disks: least.into(),
        memory_pressure: args.max_memory_pressure,
        io_pressure: args.max_io_pressure,
        script: args.health_script.clone(),
    })
}

/// Reads `k=v` labels.
pub(crate) fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    texts
        .iter()
        .map(|text| {
            let (key, value) =
                text.split_once('=').with_context(|| format!("--label `{text}` is not KEY=VALUE"))?;
            ensure!(!key.is_empty(), "--label `{text}` has no key");
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Reads sizes such as `4GiB`, `512MiB`, `1000000`.
pub(crate) fn size(option: &str, text: &str) -> Result<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1_048_576.0,
        "g" | "gib" => 1_073_741_824.0,
        "t" | "tib" => 1_099_511_627_776.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => anyhow::bail!("{option} `{text}`: unknown unit `{unit}`; valid is for example 4GiB or 512MiB"),
    };
    let number: f64 = number.parse().with_context(|| format!("{option} `{text}` is no size such as 4GiB"))?;
    let bytes = number * factor;
    ensure!(bytes >= 1_048_576.0, "{option} `{text}` is less than 1 MiB");
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!(size("--memory", "4GiB").unwrap(), 4 << 30);
        assert_eq!(size("--memory", "1.5g").unwrap(), 3 << 29);
        assert_eq!(size("--memory", "512MB").unwrap(), 512_000_000);
        assert!(size("--memory", "12").unwrap_err().to_string().contains("less than"));
        assert!(size("--memory", "4 parsecs").unwrap_err().to_string().contains("unknown unit"));
    }

    #[test]
    fn labels_are_read() {
        assert_eq!(labels(&["a=b".into()]).unwrap()["a"], "b");
        assert!(labels(&["ab".into()]).is_err());
    }
}

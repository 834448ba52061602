//! job.toml of a test, as text: what users write, not what the client makes of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::brokers::Brokers;
use crate::cluster::program;

/// A job that a test submits; change fields before [`Job::write`].
#[derive(Debug, Clone)]
pub struct Job {
    /// `job.name`, unique in the run; topics begin with it.
    pub name: String,
    /// `package.path`.
    pub binary: PathBuf,
    /// The input topics, each read as stream `kafka.<topic>`.
    pub inputs: Vec<String>,
    /// More input topics, each read as stream `other.<topic>`, where `other` is a second system on the same brokers.
    pub other_inputs: Vec<String>,
    /// The output topic, written as stream `kafka.<topic>`.
    pub output: String,
    /// The brokers.
    pub bootstrap: String,
    /// `containers.count`.
    pub containers: u32,
    /// `containers.memory`.
    pub memory: String,
    /// `containers.cpu`.
    pub cpu: f64,
    /// `task.delivery`.
    pub delivery: String,
    /// `task.commit`.
    pub commit: String,
    /// `task.window`, if any.
    pub window: Option<String>,
    /// `task.config`.
    pub config: BTreeMap<String, String>,
    /// `package.command`; empty runs the binary itself.
    pub command: Vec<String>,
    /// `package.env`.
    pub env: BTreeMap<String, String>,
    /// The stores.
    pub stores: Vec<String>,
    /// Whether each of them has a changelog.
    pub changelogs: bool,
    /// `cache-rows` of each store: so many rows unflushed make it flush them to disk.
    pub cache_rows: Option<u32>,
    /// The lines of `[systems.kafka.security]`.
    pub security: String,
    /// The lines of `[placement]`.
    pub placement: String,
    /// The lines of `[restart]`.
    pub restart: String,
}

/// `name`, made unique among the runs that may share brokers.
#[must_use]
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_millis());
    format!("{name}-{:x}-{}-{}", now & 0xff_ffff, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Job {
    /// The example `counter`: counts keys of `<name>-in` in store `counts`, sends each new count to `<name>-out`;
    /// exactly-once, one container, commits every 200 ms.
    #[must_use]
    pub fn counter(name: &str, brokers: &Brokers) -> Job {
        let name = unique(name);
        let output = format!("{name}-out");
        Job {
            binary: program("examples/counter"),
            inputs: vec![format!("{name}-in")],
            config: BTreeMap::from([("output".to_owned(), format!("kafka.{output}"))]),
            other_inputs: Vec::new(),
            output,
            name,
            bootstrap: brokers.bootstrap.clone(),
            containers: 1,
            memory: "256MiB".into(),
            cpu: 0.2,
            delivery: "exactly-once".into(),
            commit: "200ms".into(),
            window: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            stores: vec!["counts".into()],
            changelogs: true,
            cache_rows: None,
            security: String::new(),
            placement: String::new(),
            restart: String::new(),
        }
    }

    /// The changelog topic of `store`.
    #[must_use]
    pub fn changelog(&self, store: &str) -> String {
        format!("{}-1-{store}-changelog", self.name)
    }

    /// The job's checkpoint topic.
    #[must_use]
    pub fn checkpoints(&self) -> String {
        let id = types::JobId { name: self.name.clone(), id: "1".into() };
        types::JobTopics::of(&id).checkpoint
    }

    /// The file's text.
    #[must_use]
    pub fn toml(&self) -> String {
        let inputs = self.inputs.iter().map(|topic| format!("\"kafka.{topic}\""));
        let inputs = inputs.chain(self.other_inputs.iter().map(|topic| format!("\"other.{topic}\"")));
        let table = |map: &BTreeMap<String, String>| {
            map.iter().map(|(key, value)| format!("{key} = {value:?}")).collect::<Vec<_>>().join(", ")
        };
        let command =
            if self.command.is_empty() { String::new() } else { format!("command = {:?}\n", self.command) };
        let mut text = format!(
            "[job]\nname = {:?}\n\n[package]\npath = {:?}\n{command}env = {{ {} }}\n\n\
             [containers]\ncount = {}\nmemory = {:?}\ncpu = {:?}\n\n\
             [task]\ninputs = [{}]\ndelivery = {:?}\ncommit = {:?}\nconfig = {{ {} }}\n",
            self.name,
            self.binary,
            table(&self.env),
            self.containers,
            self.memory,
            self.cpu,
            inputs.collect::<Vec<_>>().join(", "),
            self.delivery,
            self.commit,
            table(&self.config),
        );
        if let Some(window) = &self.window {
            let _ = writeln!(text, "window = {window:?}");
        }
        let _ = write!(text, "\n[systems.kafka]\ntype = \"kafka\"\nbootstrap = {:?}\n", self.bootstrap);
        if !self.other_inputs.is_empty() {
            let _ = write!(text, "\n[systems.other]\ntype = \"kafka\"\nbootstrap = {:?}\n", self.bootstrap);
        }
        for store in &self.stores {
            let _ = write!(text, "\n[stores.{store}]\nchangelog = {}\n", self.changelogs);
            if let Some(rows) = self.cache_rows {
                let _ = writeln!(text, "cache-rows = {rows}");
            }
        }
        if !self.security.is_empty() {
            let _ = write!(text, "\n[systems.kafka.security]\n{}\n", self.security);
        }
        for (section, lines) in [("placement", &self.placement), ("restart", &self.restart)] {
            if !lines.is_empty() {
                let _ = write!(text, "\n[{section}]\n{lines}\n");
            }
        }
        text
    }

    /// Writes the file into `folder` and returns its path.
    ///
    /// # Panics
    /// It cannot be written.
    #[must_use]
    pub fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join(format!("{}.toml", self.name));
        std::fs::write(&path, self.toml()).expect("a folder that can be written");
        path
    }
}

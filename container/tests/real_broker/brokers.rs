//! The brokers of these tests: those of SAMZA_TEST_KAFKA, or one that is started for all of them; and brokers that
//! one test has for itself, to hurt them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;

/// Running brokers.
pub struct Brokers {
    pub bootstrap: String,
    /// Of brokers that these tests started.
    data: Option<tempfile::TempDir>,
}

impl Brokers {
    /// One for all tests that run now.
    pub fn shared() -> Arc<Brokers> {
        static SHARED: Mutex<Weak<Brokers>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(brokers) = shared.upgrade() {
            return brokers;
        }
        let brokers = match std::env::var("SAMZA_TEST_KAFKA") {
            Ok(bootstrap) => Arc::new(Brokers { bootstrap, data: None }),
            Err(_) => Brokers::own(&[]),
        };
        *shared = Arc::downgrade(&brokers);
        brokers
    }

    /// Brokers of one's own, started with these options of kafka.sh.
    pub fn own(options: &[&str]) -> Arc<Brokers> {
        let data = tempfile::tempdir().expect("a folder");
        let mut brokers = Brokers { bootstrap: String::new(), data: Some(data) };
        brokers.script(&[&["start", "--port", "0"], options].concat());
        let file = brokers.folder().join("bootstrap");
        brokers.bootstrap = std::fs::read_to_string(file).expect("started").trim().to_owned();
        Arc::new(brokers)
    }

    fn folder(&self) -> &Path {
        self.data.as_ref().expect("only brokers of one's own may be hurt").path()
    }

    fn script(&self, arguments: &[&str]) {
        let mut command = Command::new(script());
        command.args(arguments).arg("--data").arg(self.folder()).stdout(Stdio::null());
        assert!(command.status().expect("kafka.sh runs").success(), "kafka.sh {arguments:?}");
    }

    pub fn kill(&self, id: i32) {
        self.script(&["kill", "--id", &id.to_string()]);
    }

    /// Starts again what was killed.
    pub fn restart(&self) {
        self.script(&["start"]);
    }

    /// Starts one again.
    pub fn restart_one(&self, id: i32) {
        self.script(&["start", "--id", &id.to_string()]);
    }

    pub fn signal(&self, id: i32, signal: Signal) {
        let pid = std::fs::read_to_string(self.folder().join(format!("k{id}.pid"))).expect("started");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Makes the first replica of every partition its leader again; waits for those that have to catch up first.
    pub fn prefer_first_replicas(&self) {
        let class = "org.apache.kafka.tools.LeaderElectionCommand";
        let start = Instant::now();
        loop {
            let mut command = Command::new(script());
            command.args(["tool", class, "--election-type", "preferred", "--all-topic-partitions"]);
            let told = command.args(["--bootstrap-server", &self.bootstrap]).output().expect("kafka.sh runs");
            if told.status.success() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&told.stderr));
        }
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        if let Some(data) = &self.data {
            let stopped = Command::new(script()).args(["stop", "--data"]).arg(data.path()).status();
            assert!(stopped.is_ok_and(|status| status.success()), "cannot stop the broker");
        }
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kafka/kafka.sh")
}

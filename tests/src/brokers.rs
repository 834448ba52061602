//! The real Kafka of a test run: three brokers on 127.0.0.1, .2 and .3, shared by all tests of the run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The brokers of this run.
#[derive(Debug)]
pub struct Brokers {
    /// host:port of each, comma separated; the broker on 127.0.0.N is number N, in rack rN.
    pub bootstrap: String,
    /// The folder of their data: `kN` is broker N's log folder.
    pub data: PathBuf,
}

/// The repository's root: the one around the current folder, since checkouts may share built programs; else the one
/// that this program was built from.
///
/// # Panics
/// There is none.
#[must_use]
pub fn repository() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = std::env::current_dir().expect("there is a current folder");
        let around = here.ancestors().find(|folder| folder.join("deploy/kafka/kafka.sh").is_file());
        let built = || Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in a folder");
        around.unwrap_or_else(built).to_owned()
    })
}

impl Brokers {
    /// Those that `make test` started (SAMZA_TEST_KAFKA, SAMZA_TEST_KAFKA_DATA), else three that are started now and
    /// end with this process.
    ///
    /// # Panics
    /// They do not start.
    #[must_use]
    pub fn shared() -> &'static Brokers {
        static SHARED: OnceLock<Brokers> = OnceLock::new();
        SHARED.get_or_init(|| {
            match (std::env::var("SAMZA_TEST_KAFKA"), std::env::var("SAMZA_TEST_KAFKA_DATA")) {
                (Ok(bootstrap), Ok(data)) => Brokers { bootstrap, data: data.into() },
                _ => {
                    let (brokers, guard) = Brokers::start(3);
                    // Held to the end of the process; its guardian does the rest.
                    std::mem::forget(guard);
                    brokers
                }
            }
        })
    }

    /// Starts `count` (1 or 3) brokers of their own on free ports. They are stopped and their data removed when the
    /// guard is dropped or this process ends, however it ends.
    ///
    /// # Panics
    /// They do not start.
    #[must_use]
    pub fn start(count: u32) -> (Brokers, BrokersGuard) {
        Brokers::launch(&["--brokers", &count.to_string()])
    }

    /// As [`Brokers::start`], one broker that listens on `host`.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_on(host: &str) -> (Brokers, BrokersGuard) {
        Brokers::launch(&["--hosts", host])
    }

    /// As [`Brokers::start`], one broker that lets nobody do anything but its user `admin`; `secure` in the folder of its
    /// data has what clients need.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_secured() -> (Brokers, BrokersGuard) {
        Brokers::launch(&["--secure"])
    }

    /// As [`Brokers::start_secured`]; it refuses clients without a certificate that its CA has signed.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn start_secured_with_certificates() -> (Brokers, BrokersGuard) {
        Brokers::launch(&["--secure", "--set", "listener.name.secure.ssl.client.auth=required"])
    }

    fn launch(options: &[&str]) -> (Brokers, BrokersGuard) {
        let data =
            tempfile::Builder::new().prefix("samza-kafka.").tempdir().expect("a temporary folder").keep();
        let script = repository().join("deploy/kafka/kafka.sh");
        // The guardian waits for the end of its input, which the kernel brings about when this process ends.
        let guardian = Command::new("setsid")
            .args(["bash", "-c", "read -r _; \"$0\" stop --data \"$1\"; rm -rf \"$1\""])
            .arg(&script)
            .arg(&data)
            .stdin(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let output = Command::new(&script)
            .args(["start", "--port", "0"])
            .args(options)
            .arg("--data")
            .arg(&data)
            .output()
            .expect("kafka.sh runs");
        assert!(output.status.success(), "kafka.sh: {}", String::from_utf8_lossy(&output.stderr));
        let bootstrap = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (Brokers { bootstrap, data }, BrokersGuard(guardian))
    }

    /// The bootstrap address of broker `id`.
    ///
    /// # Panics
    /// There is no such broker.
    #[must_use]
    pub fn address(&self, id: usize) -> &str {
        self.bootstrap.split(',').nth(id - 1).expect("brokers are numbered from 1")
    }
}

/// Ends the brokers that it was made for.
#[derive(Debug)]
pub struct BrokersGuard(std::process::Child);

impl Drop for BrokersGuard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

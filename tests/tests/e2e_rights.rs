//! Jobs on brokers that know their clients: with exactly the rights that docs/kafka-rights.md lists, and without each of
//! them in turn.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kafka::KafkaAdmin;
use task_api::system::{NewTopic, PlainMessage, SystemAdmin, TopicPartition};
use tests::brokers::{BrokersGuard, repository};
use tests::cluster::SOON;
use tests::wait::check;
use tests::{Brokers, Cluster, Job, Settings};
use types::AppState;

/// All jobs run side by side.
const LONG: Duration = Duration::from_secs(120);

/// One row of the tables.
#[derive(Debug, Clone, PartialEq)]
struct Right {
    resource: String,
    name: String,
    prefixed: bool,
    operation: String,
}

/// What docs/kafka-rights.md lists: what is always needed, and what only where topics are missing.
fn listed() -> (Vec<Right>, Vec<Right>) {
    let text = std::fs::read_to_string(repository().join("docs/kafka-rights.md")).expect("the document");
    let text = text.split("\n## ").find(|section| section.starts_with("Rights\n")).expect("a section Rights");
    let mut tables = text.split("|---|---|---|---|\n").skip(1).map(|table| {
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        rows.map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (name, rest) = cells[2].trim_start_matches('`').split_once('`').expect("a name in `…`");
            Right {
                resource: cells[1].to_owned(),
                name: name.to_owned(),
                prefixed: rest.trim() == "prefixed",
                operation: cells[3].to_owned(),
            }
        })
        .collect::<Vec<_>>()
    });
    (tables.next().expect("what is always needed"), tables.next().expect("what may be needed"))
}

impl Right {
    fn of(&self, job: &Job) -> Right {
        let named = [
            ("<input>", job.inputs[0].as_str()),
            ("<output>", &job.output),
            ("<changelog>", &job.changelog("counts")),
            ("<name>", &job.name),
            ("<id>", "1"),
        ];
        let name = named.iter().fold(self.name.clone(), |name, (word, instead)| name.replace(word, instead));
        Right { name, ..self.clone() }
    }

    fn line(&self) -> String {
        let prefixed = if self.prefixed { " prefixed" } else { "" };
        format!("{} {} {}{prefixed}\n", self.operation, self.resource, self.name)
    }
}

/// Secured brokers, and one who may do everything on them.
struct Secured {
    brokers: Brokers,
    admin: KafkaAdmin,
}

impl Secured {
    /// Those of all tests here.
    fn shared() -> &'static Secured {
        static SHARED: OnceLock<Secured> = OnceLock::new();
        SHARED.get_or_init(|| Secured::of(Brokers::start_secured()))
    }

    fn of((brokers, guard): (Brokers, BrokersGuard)) -> Secured {
        // Held to the end of the process; its guardian does the rest.
        std::mem::forget(guard);
        let secret = |name: &str| {
            std::fs::read_to_string(brokers.data.join("secure").join(name)).expect("it was made")
        };
        let settings = [
            ("security.protocol", "sasl_ssl".to_owned()),
            ("ssl.ca.pem", secret("ca.pem")),
            ("ssl.certificate.pem", secret("admin.crt")),
            ("ssl.key.pem", secret("admin.key")),
            ("sasl.mechanisms", "SCRAM-SHA-512".to_owned()),
            ("sasl.username", "admin".to_owned()),
            ("sasl.password", secret("admin.password").trim().to_owned()),
        ];
        let settings: BTreeMap<String, String> =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let admin = KafkaAdmin::new(&brokers.bootstrap, &settings).expect("settings are right");
        Secured { brokers, admin }
    }

    fn topic(&self, topic: &str, config: &[(&str, &str)]) {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let new = NewTopic { topic: topic.to_owned(), partitions: 1, replication: 1, config };
        self.admin.create(&[new]).unwrap_or_else(|error| panic!("{topic}: {error}"));
    }

    /// A job of the user `job` with its input, which has messages, and its output.
    fn job(&self, name: &str) -> Job {
        let secure = self.brokers.data.join("secure");
        let file = |name: &str| format!("{{ file = {:?} }}", secure.join(name));
        let job = Job {
            memory: "96MiB".into(),
            security: format!(
                "mechanism = \"SCRAM-SHA-512\"\nusername = \"job\"\npassword = {}\nca = {}",
                file("job.password"),
                file("ca.pem")
            ),
            restart: "retries = 0".into(),
            ..Job::counter(name, &self.brokers)
        };
        self.topic(&job.inputs[0], &[]);
        self.topic(&job.output, &[]);
        let to = TopicPartition { topic: job.inputs[0].clone(), partition: 0 };
        let message = |n: u8| PlainMessage { to: to.clone(), key: vec![n], value: Some(vec![n]) };
        self.admin.append(&(0..20).map(message).collect::<Vec<_>>()).expect("appended");
        job
    }

    fn grant(&self, rights: &[Right]) {
        let mut child = Command::new(repository().join("deploy/kafka/kafka.sh"))
            .args(["grant", "job", "--data"])
            .arg(&self.brokers.data)
            .stdin(Stdio::piped())
            .spawn()
            .expect("kafka.sh runs");
        let lines: String = rights.iter().map(Right::line).collect();
        child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
        assert!(child.wait().expect("a child").success(), "{lines}");
    }

    fn end(&self, topic: &str) -> u64 {
        let at = TopicPartition { topic: topic.to_owned(), partition: 0 };
        self.admin.watermarks(&[at]).map_or(0, |ends| ends[0].high)
    }
}

/// Waits until the job has failed; everything that it told.
fn failure(cluster: &Cluster, job: &Job) -> String {
    let app = cluster.wait(&format!("{} fails", job.name), LONG, |cluster| {
        let app = cluster.app(job)?;
        check(app.state == AppState::Failed, || format!("{:?}: {}", app.state, app.diagnostics)).map(|()| app)
    });
    let logs = cluster.client("samza", &["logs", &job.name, "--stderr"]);
    format!("{}\n{}", app.diagnostics, String::from_utf8_lossy(&logs.stdout))
}

#[test]
fn a_job_needs_the_rights_that_are_listed_and_each_of_them() {
    let secured = Secured::shared();
    let (always, missing) = listed();
    assert!(always.len() >= 9 && missing.len() >= 3, "{always:?} {missing:?}");
    let all: Vec<Right> = always.iter().chain(&missing).cloned().collect();
    let whole = secured.job("whole");
    let made = secured.job("made");
    for right in &missing {
        secured.topic(&right.of(&made).name, &[("cleanup.policy", "compact")]);
    }
    // A changelog is read by a job that has rows there, which these jobs have not yet.
    let at_once = |right: &&Right| (right.name.as_str(), right.operation.as_str()) != ("<changelog>", "Read");
    let without: Vec<(Job, Right)> = all
        .iter()
        .filter(at_once)
        .map(|right| {
            let job = secured.job(&format!("no-{}", right.operation.to_lowercase()));
            let right = right.of(&job);
            (job, right)
        })
        .collect();
    let mut granted: Vec<Right> = all.iter().map(|right| right.of(&whole)).collect();
    granted.extend(always.iter().map(|right| right.of(&made)));
    for (job, missing) in &without {
        granted.extend(all.iter().map(|right| right.of(job)).filter(|right| right != missing));
    }
    secured.grant(&granted);

    let mut settings = Settings::nodes(1);
    settings.nodes[0].memory = "16GiB".into();
    settings.nodes[0].cpu = "64".into();
    let cluster = Cluster::with(settings);
    for job in [&whole, &made].into_iter().chain(without.iter().map(|(job, _)| job)) {
        cluster.submit(job);
    }
    for job in [&whole, &made] {
        cluster.wait(&format!("{} writes", job.name), LONG, |_| {
            let end = secured.end(&job.output);
            check(end > 20, || format!("{end} of 20 messages and a commit in {}", job.output))
        });
        let since = Instant::now();
        cluster.stop(job);
        // Its consumers may tell no group of their positions; librdkafka would try for the 45 s of a session.
        assert!(since.elapsed() < Duration::from_secs(30), "{} stops in {:?}", job.name, since.elapsed());
    }
    let mut wrong = String::new();
    for (job, right) in &without {
        let told = failure(&cluster, job);
        let named =
            format!("User:job has no right to {} on {} {}", right.operation, right.resource, right.name);
        if !told.contains(&named) {
            let _ = writeln!(wrong, "{named}: it told\n{told}");
        }
        let command = format!(
            "--allow-principal User:job --operation {} --{} {}",
            right.operation, right.resource, right.name
        );
        if !told.contains(&command) {
            let _ = writeln!(wrong, "{command}: it told\n{told}");
        }
        let password =
            std::fs::read_to_string(secured.brokers.data.join("secure/job.password")).expect("it was made");
        assert!(!told.contains(password.trim()));
    }
    assert!(wrong.is_empty(), "{wrong}");
    let shown = cluster.client("samza", &["list", "-o", "json"]);
    assert!(
        shown.status.success() && !String::from_utf8_lossy(&shown.stdout).contains("password"),
        "{shown:?}"
    );
}

/// Makes the certificate `other.pem` of somebody whom the brokers do not know.
fn another_ca(secure: &Path) {
    let other = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=x",
        ])
        .arg("-keyout")
        .arg(secure.join("other.key"))
        .arg("-out")
        .arg(secure.join("other.pem"))
        .output()
        .expect("openssl runs");
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));
}

/// What `samza-submit` says of a job whose `[systems.kafka]` is this.
fn refusal(
    cluster: &Cluster,
    mut job: Job,
    bootstrap: &str,
    security: &str,
) -> (Option<i32>, String, Duration) {
    job.bootstrap = bootstrap.to_owned();
    job.security = security.to_owned();
    let since = Instant::now();
    let output = cluster.try_submit(&job, &[]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned(), since.elapsed())
}

#[test]
fn a_first_contact_that_fails_says_why_within_seconds_and_names_the_key() {
    let secured = Secured::shared();
    let plain = Brokers::shared();
    let cluster = Cluster::start(1);
    let secure = secured.brokers.data.join("secure");
    let file = |name: &str| format!("{{ file = {:?} }}", secure.join(name));
    let own = cluster.folder().join("wrong");
    std::fs::write(&own, "wrong\n").expect("our own folder");
    let wrong = format!("{{ file = {own:?} }}");
    let (ca, password) = (file("ca.pem"), file("job.password"));
    let scram = |password: &str, ca: &str| {
        format!("mechanism = \"SCRAM-SHA-512\"\nusername = \"job\"\npassword = {password}\n{ca}")
    };
    let (tls, here) = (secured.brokers.bootstrap.clone(), plain.address(1).to_owned());
    let with_ca = format!("ca = {ca}");
    let cases = [
        ("plaintext to TLS", &tls, String::new(), "bootstrap`: the listener seems to speak TLS"),
        (
            "TLS to plaintext",
            &here,
            scram(&password, &with_ca),
            "bootstrap`: the listener does not speak TLS",
        ),
        (
            "no CA",
            &tls,
            scram(&password, ""),
            "bootstrap`: nobody in `ca` vouches for the broker's certificate",
        ),
        (
            "another CA",
            &tls,
            scram(&password, &format!("ca = {}", file("other.pem"))),
            "security.ca`: nobody in `ca` vouches",
        ),
        (
            "wrong password",
            &tls,
            scram(&wrong, &with_ca),
            "security.password`: the brokers do not take the name",
        ),
        (
            "no such mechanism",
            &tls,
            format!("mechanism = \"GSSAPI\"\n{with_ca}"),
            "built without `sasl_gssapi`",
        ),
        ("no SASL", &tls, with_ca.clone(), "does it ask clients who they are"),
    ];
    another_ca(&secure);
    let job = Job::counter("contact", &secured.brokers);
    for (name, bootstrap, security, expected) in cases {
        let (code, told, took) = refusal(&cluster, job.clone(), bootstrap, &security);
        assert!(matches!(code, Some(5 | 65)), "{name}: {code:?} {told}");
        assert!(told.contains(expected), "{name}: {told}");
        assert!(told.contains(".toml:"), "{name} names a line: {told}");
        assert!(took < SOON, "{name} took {took:?}");
    }
    let output = cluster.client("samza", &["list"]);
    assert!(!String::from_utf8_lossy(&output.stdout).contains(&job.name), "nothing was submitted");
}

#[test]
fn every_mechanism_that_is_built_lets_a_job_in() {
    let secured = Secured::shared();
    let secure = secured.brokers.data.join("secure");
    let file = |name: &str| format!("{{ file = {:?} }}", secure.join(name));
    let cluster = Cluster::start(1);
    // Where the job's user can read it.
    let token = cluster.shared().join("token");
    // Claims: {"sub":"job","iat":1700000000,"exp":4000000000}, signed by nobody.
    let claims = "eyJzdWIiOiJqb2IiLCJpYXQiOjE3MDAwMDAwMDAsImV4cCI6NDAwMDAwMDAwMH0";
    std::fs::write(&token, format!("eyJhbGciOiJub25lIn0.{claims}.\n")).expect("our own folder");
    let with_password = |mechanism: &str| {
        format!(
            "mechanism = \"{mechanism}\"\nusername = \"job\"\npassword = {}\nca = {}",
            file("job.password"),
            file("ca.pem")
        )
    };
    let mechanisms = [
        with_password("PLAIN"),
        with_password("SCRAM-SHA-256"),
        with_password("SCRAM-SHA-512"),
        format!("mechanism = \"OAUTHBEARER\"\ntoken-file = {token:?}\nca = {}", file("ca.pem")),
    ];
    let job = secured.job("in");
    let (always, missing) = listed();
    secured.grant(&always.iter().chain(&missing).map(|right| right.of(&job)).collect::<Vec<_>>());
    for (round, security) in mechanisms.into_iter().enumerate() {
        let job = Job { security, restart: String::new(), ..job.clone() };
        cluster.submit(&job);
        cluster.wait_running(&job);
        let path = job.write(cluster.folder());
        let told = cluster.client("samza", &["checkpoint", path.to_str().expect("UTF-8")]);
        assert!(told.status.success(), "{round}: {}", String::from_utf8_lossy(&told.stderr));
        cluster.stop(&job);
    }
}

#[test]
fn where_brokers_ask_for_a_certificate_a_job_that_shows_one_runs_and_another_is_told_the_key() {
    let secured = Secured::of(Brokers::start_secured_with_certificates());
    let secure = secured.brokers.data.join("secure");
    let cluster = Cluster::start(1);
    let job = secured.job("shown");
    let (always, missing) = listed();
    secured.grant(&always.iter().chain(&missing).map(|right| right.of(&job)).collect::<Vec<_>>());

    let (code, told, took) = refusal(&cluster, job.clone(), &secured.brokers.bootstrap, &job.security);
    assert!(matches!(code, Some(5 | 65)) && took < SOON, "{code:?} after {took:?}: {told}");
    assert!(told.contains("`security.certificate`"), "{told}");

    let file = |name: &str| format!("{{ file = {:?} }}", secure.join(name));
    let shown = format!("certificate = {}\nkey = {}", file("job.crt"), file("job.key"));
    let job = Job { security: format!("{}\n{shown}", job.security), restart: String::new(), ..job };
    cluster.submit(&job);
    cluster.wait_running(&job);
    cluster.stop(&job);
}

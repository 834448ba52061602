//! What is said of settings of Kafka's clients and of how a job gets into a secured Kafka, as a user sees it.

mod stage;

use stage::{GOOD, errors, says};
use types::{Given, SecurityKey, SecurityProtocol};

#[test]
fn settings_that_the_runtime_sets_are_not_the_users() {
    says(
        &format!("{GOOD}consumer = {{ isolation.level = \"read_uncommitted\" }}\n"),
        "job.toml:13: `systems.kafka.consumer.isolation.level`: is set by the runtime: exactness rests on reading \
         committed messages only; leave it out",
    );
    says(
        &format!("{GOOD}[systems.kafka.producer]\npartitioner = \"random\"\nacks = 1\n"),
        "job.toml:14: `systems.kafka.producer.partitioner`: is set by the runtime: keys choose partitions as Java's \
         producer has them do (murmur2_random); a task can name the partition itself\n\
         job.toml:15: `systems.kafka.producer.acks`: is set by the runtime: exactness rests on it (it is on, and all); \
         leave it out",
    );
    for (name, _) in types::RUNTIME.iter().flat_map(|(names, why)| names.iter().map(move |name| (name, why)))
    {
        let told = errors(&format!("{GOOD}[systems.kafka.consumer]\n\"{name}\" = \"1\"\n"));
        assert!(told.contains("is set by the runtime: "), "{told}");
    }
}

#[test]
fn a_setting_that_no_client_knows_is_named_with_the_nearest() {
    says(
        &format!(
            "{GOOD}[systems.kafka.consumer]\nfetch.min.byte = 1\nmax.poll.records = 5\nfetch.max.wait.ms = 1\n"
        ),
        "job.toml:14: `systems.kafka.consumer.fetch.min.byte`: librdkafka has no such setting; did you mean \
         `fetch.min.bytes`?\n\
         job.toml:15: `systems.kafka.consumer.max.poll.records`: librdkafka has no such setting\n\
         job.toml:16: `systems.kafka.consumer.fetch.max.wait.ms`: librdkafka has no such setting; did you mean \
         `fetch.wait.max.ms`?",
    );
    says(
        &format!("{GOOD}consumer = {{ linger.ms = 5 }}\nproducer = {{ fetch.min.bytes = 1 }}\n"),
        "job.toml:13: `systems.kafka.consumer.linger.ms`: is a setting of producers; give it in \
         `systems.kafka.producer`, not in `consumer`\n\
         job.toml:14: `systems.kafka.producer.fetch.min.bytes`: is a setting of consumers; give it in \
         `systems.kafka.consumer`, not in `producer`",
    );
}

#[test]
fn a_value_that_a_client_would_refuse_is_named_with_what_is_valid() {
    says(
        &format!("{GOOD}producer = {{ compression.type = \"snapy\", linger.ms = -1 }}\n"),
        "job.toml:13: `systems.kafka.producer.compression.type`: \"snapy\" is not a value for it; valid: none, gzip, \
         snappy, lz4, zstd\n\
         job.toml:13: `systems.kafka.producer.linger.ms`: \"-1\" is not a value for it; valid: a number from 0 to 900000",
    );
    says(
        &format!("{GOOD}producer = {{ retries = 5, message.send.max.retries = 6 }}\n"),
        "job.toml:13: `systems.kafka.producer.message.send.max.retries`: and `retries` are the same setting; give one of \
         them\n\
         job.toml:13: `systems.kafka.producer.retries`: and `message.send.max.retries` are the same setting; give one of \
         them",
    );
    says(
        &format!("{GOOD}producer = {{ delivery.timeout.ms = 120000 }}\n"),
        "job.toml:13: `systems.kafka.producer.delivery.timeout.ms`: 120000 does not go with `transaction.timeout.ms`; \
         valid: 1 to 60000, or set `transaction.timeout.ms` higher",
    );
}

fn security(lines: &str) -> String {
    format!("{GOOD}[systems.kafka.security]\n{lines}\n")
}

#[test]
fn security_is_given_once_and_its_secrets_are_files() {
    let text = security(
        "mechanism = \"SCRAM-SHA-512\"\nusername = \"job\"\npassword = { file = \"pw\" }\nca = { file = \"ca.pem\" }",
    );
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    let of = spec.systems["kafka"].security.as_ref().expect("given");
    assert_eq!(of.protocol, SecurityProtocol::SaslSsl, "nobody else is to hear who it is");
    assert_eq!(of.values[&SecurityKey::Password], Given::Secret("systems.kafka.password".into()));
    assert_eq!(spec.package.secrets["systems.kafka.password"], "pw");
    assert_eq!(spec.package.secrets["systems.kafka.ca"], "ca.pem");
    let text =
        security("ca = { secret = \"our-ca\" }") + "[package.secrets]\nour-ca = { file = \"ca.pem\" }\n";
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    let of = spec.systems["kafka"].security.as_ref().expect("given");
    assert_eq!(
        (of.protocol, &of.values[&SecurityKey::Ca]),
        (SecurityProtocol::Ssl, &Given::Secret("our-ca".into()))
    );
}

#[test]
fn a_secret_does_not_stand_in_the_job_file() {
    says(
        &security("mechanism = \"PLAIN\"\nusername = \"job\"\npassword = \"swordfish\""),
        "job.toml:16: `systems.kafka.security.password`: a secret must not stand in the job file, which everyone may \
         read; write `password = { file = \"kafka-password\" }`, which is read at submit",
    );
    let told = errors(&format!("{GOOD}consumer = {{ sasl.password = \"swordfish\" }}\n"));
    assert_eq!(
        told,
        "job.toml:13: `systems.kafka.consumer.sasl.password`: security is given once for all clients: `password` in \
         [systems.kafka.security] (docs/job-file.md)"
    );
}

#[test]
fn what_security_lacks_or_has_no_use_for_is_named() {
    says(
        &security("mechanism = \"SCRAM-SHA-512\""),
        "job.toml:14: missing key `systems.kafka.security.username`, which mechanism \"SCRAM-SHA-512\" needs; write, for \
         example, `username = \"…\"`\n\
         job.toml:14: missing key `systems.kafka.security.password`, which mechanism \"SCRAM-SHA-512\" needs; write, for \
         example, `password = { file = \"kafka-secret\" }`",
    );
    says(
        &security("protocol = \"ssl\"\nusername = \"job\"\ncertificate = { file = \"c\" }"),
        "job.toml:15: `systems.kafka.security.username`: protocol \"ssl\" asks nobody who they are (\"sasl_ssl\" does); \
         leave it out\n\
         job.toml:16: `systems.kafka.security.certificate`: needs `key` beside it, as `{ file = \"…\" }`",
    );
    says(
        &security("protocol = \"sasl_plaintext\"\nca = { file = \"c\" }"),
        "job.toml:14: missing key `systems.kafka.security.mechanism`, which protocol \"sasl_plaintext\" needs; valid: \
         \"PLAIN\", \"SCRAM-SHA-256\", \"SCRAM-SHA-512\", \"OAUTHBEARER\", \"GSSAPI\"\n\
         job.toml:15: `systems.kafka.security.ca`: protocol \"sasl_plaintext\" has no TLS; leave it out",
    );
    says(
        &security("mechanism = \"OAUTHBEARER\"\ntoken-file = \"token\""),
        "job.toml:15: `systems.kafka.security.token-file`: \"token\" is no path from the root; valid: a file that is on \
         every machine",
    );
    says(
        &security("ca = { fiel = \"c\" }\nkey = { secret = \"x\" }\ncertificate = { secret = \"x\" }"),
        "job.toml:14: `systems.kafka.security.ca`: unknown key `fiel`; did you mean `file`? valid keys: file, secret\n\
         job.toml:15: `systems.kafka.security.key`: there is no secret `x`; valid are those of [package.secrets]; \
         `{ file = \"…\" }` names a file here\n\
         job.toml:16: `systems.kafka.security.certificate`: there is no secret `x`; valid are those of \
         [package.secrets]; `{ file = \"…\" }` names a file here",
    );
    says(
        &security(
            "settings = { ssl.cipher.suites = \"x\", sasl.password = \"swordfish\", ssl.cypher.suites = \"y\" }",
        ),
        "job.toml:14: `systems.kafka.security.settings.sasl.password`: has a key of its own: `security.password`\n\
         job.toml:14: `systems.kafka.security.settings.ssl.cypher.suites`: librdkafka has no such setting; did you mean \
         `ssl.cipher.suites`?",
    );
}

#[test]
fn dotted_settings_need_no_quotes() {
    let text = format!("{GOOD}consumer = {{ fetch.min.bytes = 1, \"fetch.wait.max.ms\" = 5 }}\n");
    let spec = job_file::parse(&text, "job.toml").expect("it is valid").spec;
    let consumer: Vec<_> = spec.systems["kafka"].consumer.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(consumer, ["fetch.min.bytes=1", "fetch.wait.max.ms=5"]);
}

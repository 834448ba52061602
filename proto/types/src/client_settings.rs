//! The settings that a Kafka client knows: which there are, and which of them a job does not set itself.
//!
//! The job file refuses by these tables and the Kafka crate tests that its clients follow them, so that nothing is
//! accepted and then dropped.

/// One setting of the linked librdkafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSetting {
    /// Its name.
    pub name: &'static str,
    /// Whether consumers know it.
    pub consumer: bool,
    /// Whether producers know it.
    pub producer: bool,
    /// The name that this one is another spelling of.
    alias_of: Option<&'static str>,
    valid: &'static str,
}

/// Name, `C`, `P` or `*`, the name that it is an alias of, what is valid; as the library itself tells them.
pub const LIBRDKAFKA: &str = include_str!("librdkafka.tsv");

impl ClientSetting {
    /// All of them.
    pub fn all() -> impl Iterator<Item = ClientSetting> {
        LIBRDKAFKA.lines().filter_map(|line| {
            let mut parts = line.split('\t');
            let (name, of) = (parts.next()?, parts.next()?);
            let alias_of = parts.next().filter(|name| !name.is_empty());
            let valid = parts.next().unwrap_or_default();
            Some(ClientSetting { name, consumer: of != "P", producer: of != "C", alias_of, valid })
        })
    }

    /// The one of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<ClientSetting> {
        ClientSetting::all().find(|setting| setting.name == name)
    }

    /// The name that all spellings of a setting share.
    #[must_use]
    pub fn canonical(&self) -> &'static str {
        self.alias_of.unwrap_or(self.name)
    }

    /// Whether a text can be its value at all: some take functions.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.valid != "api" && self.name != "builtin.features"
    }

    /// What is valid instead of `value`; none if `value` is.
    #[must_use]
    pub fn invalid(&self, value: &str) -> Option<String> {
        let words = |list: &'static str| list.split(", ");
        let known = |word: &str, list| words(list).any(|valid| valid.eq_ignore_ascii_case(word.trim()));
        let (fits, valid) = if let Some((least, most)) = self.range() {
            let number = value.trim().parse::<f64>().ok();
            let whole = self.valid.starts_with("float") || value.trim().parse::<i64>().is_ok();
            let text = format!("a number from {least} to {most}");
            (number.is_some_and(|n| whole && (least..=most).contains(&n)), text)
        } else if let Some(list) = self.valid.strip_prefix("csv ") {
            (value.split(',').all(|word| known(word, list)), format!("some of {list}, comma separated"))
        } else if self.valid.is_empty() {
            return None;
        } else {
            (known(value, self.valid), words(self.valid).collect::<Vec<_>>().join(", "))
        };
        (!fits).then_some(valid)
    }

    /// From where to where, as numbers. Clients that are idempotent take less of some than the library says.
    fn range(&self) -> Option<(f64, f64)> {
        match self.canonical() {
            "max.in.flight.requests.per.connection" => return Some((1.0, 5.0)),
            "message.send.max.retries" => return Some((1.0, 2_147_483_647.0)),
            "queue.buffering.backpressure.threshold" => return Some((1.0, 1.0)),
            _ => {}
        }
        let (least, most) = self.valid.trim_start_matches("float ").split_once(" .. ")?;
        Some((least.parse().ok()?, most.parse().ok()?))
    }
}

/// Whether two names are spellings of one setting.
#[must_use]
pub fn is_same_setting(one: &str, other: &str) -> bool {
    let canonical = |name| ClientSetting::find(name).map(|setting| setting.canonical());
    one == other || canonical(one).is_some_and(|name| canonical(other) == Some(name))
}

/// Why the runtime sets `name` itself, or what has its place; none if it is a job's to set.
#[must_use]
pub fn not_the_jobs(name: &str) -> Option<&'static str> {
    let canonical = ClientSetting::find(name).map_or(name, |setting| setting.canonical());
    RUNTIME.iter().find(|(names, _)| names.contains(&canonical)).map(|(_, instead)| *instead)
}

/// Settings that the runtime sets itself or that nothing would come of, by their first spelling, and what to do instead.
pub const RUNTIME: &[(&[&str], &str)] = &[
    (&["metadata.broker.list"], "give the system's `bootstrap`"),
    (
        &["client.id"],
        "clients are named after the job and its tasks, so that brokers' logs and quotas tell them apart; leave it out",
    ),
    (&["group.id"], "positions are shown as those of the group `<job.name>-<job.id>`; leave it out"),
    (
        &["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store", "auto.commit.interval.ms"],
        "positions are committed with the state; `task.commit` says how often",
    ),
    (
        &[
            "offset.store.method",
            "offset.store.path",
            "offset.store.sync.interval.ms",
            "consume.callback.max.messages",
        ],
        "positions are in the job's checkpoint topic; leave it out",
    ),
    (
        &["auto.offset.reset"],
        "the stream's `offset-default` says where reading starts, and `offset-lost` what follows when messages are gone",
    ),
    (&["isolation.level"], "exactness rests on reading committed messages only; leave it out"),
    (&["enable.partition.eof"], "the runtime follows positions to know where a partition ends; leave it out"),
    (
        &[
            "group.instance.id",
            "group.protocol",
            "group.protocol.type",
            "group.remote.assignor",
            "partition.assignment.strategy",
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "max.poll.interval.ms",
            "coordinator.query.interval.ms",
        ],
        "the application master assigns partitions and no consumer group is joined; leave it out",
    ),
    (&["transactional.id"], "it is made of the job and its task, and fencing rests on it; leave it out"),
    (
        &["enable.idempotence", "request.required.acks"],
        "exactness rests on it (it is on, and all); leave it out",
    ),
    (&["queuing.strategy"], "the order of messages rests on it (it is fifo); leave it out"),
    (
        &["partitioner"],
        "keys choose partitions as Java's producer has them do (murmur2_random); a task can name the partition itself",
    ),
    (
        &["delivery.report.only.error", "produce.offset.report", "enabled_events"],
        "the runtime waits for deliveries itself; leave it out",
    ),
    (&["log.queue"], "logs go to the container's log; leave it out"),
];

/// What has the place of a setting of security: a key of `[systems.<name>.security]`. None if `name` is no such
/// setting.
#[must_use]
pub fn security_key(name: &str) -> Option<&'static str> {
    let secures = ["ssl.", "ssl_", "sasl.", "https.", "security.", "enable.ssl.", "enable.sasl."];
    if !secures.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let (_, key) =
        SECURITY.iter().find(|(names, _)| names.contains(&name)).copied().unwrap_or((&[], "settings"));
    Some(key)
}

/// Settings that have a key of their own in `[systems.<name>.security]`. All that hold a secret are among them.
const SECURITY: &[(&[&str], &str)] = &[
    (&["security.protocol"], "protocol"),
    (&["ssl.ca.location", "ssl.ca.pem", "ssl_ca", "ssl.ca.certificate.stores"], "ca"),
    (
        &["ssl.certificate.location", "ssl.certificate.pem", "ssl_certificate", "ssl.keystore.location"],
        "certificate",
    ),
    (&["ssl.key.location", "ssl.key.pem", "ssl_key"], "key"),
    (&["ssl.key.password", "ssl.keystore.password"], "key-password"),
    (&["sasl.mechanism", "sasl.mechanisms"], "mechanism"),
    (&["sasl.username"], "username"),
    (&["sasl.password"], "password"),
    (&["sasl.oauthbearer.config", "enable.sasl.oauthbearer.unsecure.jwt"], "token-file"),
    (&["sasl.oauthbearer.method", "sasl.oauthbearer.token.endpoint.url"], "token-endpoint"),
    (&["sasl.oauthbearer.client.id", "sasl.oauthbearer.client.credentials.client.id"], "client-id"),
    (
        &[
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.client.credentials.client.secret",
            "sasl.oauthbearer.assertion.private.key.passphrase",
            "sasl.oauthbearer.assertion.private.key.pem",
        ],
        "client-secret",
    ),
    (&["sasl.oauthbearer.scope"], "scope"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_the_runtime_is_one_of_the_librarys_first_spellings() {
        for name in RUNTIME.iter().flat_map(|(names, _)| names.iter()) {
            let found = ClientSetting::find(name).unwrap_or_else(|| panic!("there is no {name}"));
            assert_eq!(found.canonical(), *name);
        }
    }

    #[test]
    fn every_spelling_of_a_setting_is_the_same_setting() {
        assert!(is_same_setting("acks", "request.required.acks"));
        assert!(is_same_setting("max.partition.fetch.bytes", "fetch.message.max.bytes"));
        assert!(!is_same_setting("fetch.max.bytes", "fetch.message.max.bytes"));
        assert!(not_the_jobs("acks").is_some() && not_the_jobs("bootstrap.servers").is_some());
        assert_eq!(not_the_jobs("fetch.max.bytes"), None);
    }

    #[test]
    fn every_setting_that_secures_has_a_key_and_every_secret_one_of_its_own() {
        for setting in ClientSetting::all() {
            let secret = ["password", "secret", "passphrase", "key.pem"]
                .iter()
                .any(|word| setting.name.contains(word));
            let key = security_key(setting.name);
            assert!(!secret || key.is_some_and(|key| key != "settings"), "{}", setting.name);
        }
        assert_eq!(security_key("ssl.cipher.suites"), Some("settings"));
        assert_eq!(security_key("fetch.min.bytes"), None);
    }

    #[test]
    fn a_value_that_the_library_would_refuse_is_refused() {
        let says = |name: &str, value: &str| ClientSetting::find(name).expect("it exists").invalid(value);
        assert_eq!(says("fetch.min.bytes", "1"), None);
        assert_eq!(says("fetch.min.bytes", "0").as_deref(), Some("a number from 1 to 100000000"));
        assert!(says("fetch.min.bytes", "1.5").is_some() && says("fetch.min.bytes", "many").is_some());
        assert_eq!(says("linger.ms", "0.5"), None);
        assert_eq!(says("compression.type", "snapy").as_deref(), Some("none, gzip, snappy, lz4, zstd"));
        assert_eq!(says("debug", "broker,topic"), None);
        assert!(says("debug", "brokers").is_some());
        assert_eq!(says("client.rack", "anything"), None);
        assert_eq!(says("max.in.flight", "6").as_deref(), Some("a number from 1 to 5"));
    }
}

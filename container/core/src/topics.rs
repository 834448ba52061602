//! The topics of a job as they are, against what the job needs of them: what is missing is created, what job.toml asks
//! for is altered, what would lose state is refused with the command that mends it, and what is harmless is left alone.
//!
//! | A setting | is wrong if | because |
//! |---|---|---|
//! | `cleanup.policy` | `compact` is not in it | rows go by their age, whatever their key |
//! | | `delete` is in it, its retention has an end, and the store has no `ttl` | the same |
//! | `retention.ms` | rows go by age, and sooner than the store's `ttl` says | the same |
//! | `retention.bytes` | rows go by age, and it has an end | rows go before their time |
//! | `max.message.bytes` | it is smaller than the largest row, or than a batch | no commit would succeed |
//! | `min.insync.replicas` | there are fewer copies | no commit would succeed |
//! | `unclean.leader.election.enable` | `true` | committed rows go with a broker |
//!
//! A topic with a name of ours is altered; of one that job.toml names only what job.toml also asks for.

use std::collections::{BTreeMap, BTreeSet};

use task_api::system::{ConfigSource, Configs, NewTopic, SystemAdmin, SystemError, TopicMetadata};
use types::{JobId, MOST_COPIES, TopicPlan, TopicRole, TopicStatus};

/// What is known of a system's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster<'a> {
    /// How it is reached, for commands.
    pub bootstrap: &'a str,
    /// Brokers that answer; none of a system that has no brokers.
    pub live: usize,
    /// Brokers with those that are down.
    pub size: usize,
}

/// What there is to do about a topic that exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Why it cannot be used, each with what mends it. If there is any, nothing is altered.
    pub refused: Vec<String>,
    /// Settings to set.
    pub alter: BTreeMap<String, String>,
    /// Settings that would be better: if they cannot be set, that is no harm.
    pub wishes: BTreeMap<String, String>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Why topics are not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unready {
    /// There are fewer live brokers than a topic shall have copies: it is not created with fewer.
    TooFewBrokers(String),
    /// The system failed, or a topic cannot be used.
    System(SystemError),
}

impl From<SystemError> for Unready {
    fn from(error: SystemError) -> Unready {
        Unready::System(error)
    }
}

/// How a topic that does not exist is created.
///
/// # Errors
/// Too few brokers are there for its copies.
pub fn creation(plan: &TopicPlan, cluster: &Cluster<'_>) -> Result<NewTopic, String> {
    let by_default =
        u16::try_from(cluster.size.max(cluster.live)).unwrap_or(MOST_COPIES).clamp(1, MOST_COPIES);
    let copies = plan.replication.unwrap_or(by_default);
    let TopicPlan { topic, system, partitions, .. } = plan;
    if usize::from(copies) > cluster.live && cluster.live > 0 {
        return Err(format!(
            "topic {topic} shall have {copies} copies, and {} of the brokers of {} answer: start the others, or set \
             `[systems.{system}] replication = {}` for fewer copies",
            cluster.live, cluster.bootstrap, cluster.live
        ));
    }
    let mut config = plan.config.clone();
    config.entry("min.insync.replicas".into()).or_insert_with(|| in_sync(copies).to_string());
    Ok(NewTopic { topic: topic.clone(), partitions: *partitions, replication: copies, config })
}

/// With three copies a commit outlives the loss of any broker, and commits go on without it.
fn in_sync(copies: u16) -> u16 {
    if copies >= 3 { 2 } else { 1 }
}

/// What there is to do about `there`, a topic with this configuration.
#[must_use]
pub fn judge(plan: &TopicPlan, there: &TopicMetadata, configs: &Configs, cluster: &Cluster<'_>) -> Verdict {
    let copies = u16::try_from(there.replication()).unwrap_or(u16::MAX);
    // Topics of a system without brokers are the job's alone, however they are named.
    let named = plan.named && cluster.live > 0;
    let mut judge = Judge { plan, configs, cluster, named, verdict: Verdict::default() };
    judge.partitions(there.partitions.len());
    judge.what_is_asked();
    judge.policy();
    judge.retention();
    judge.sizes();
    judge.tombstones();
    judge.elections();
    // A system without brokers has no copies.
    if copies > 0 {
        judge.copies(copies);
    }
    judge.wishes();
    judge.verdict
}

struct Judge<'a> {
    plan: &'a TopicPlan,
    configs: &'a Configs,
    cluster: &'a Cluster<'a>,
    named: bool,
    verdict: Verdict,
}

/// No restore takes so long.
const LONG_RESTORE_MS: i64 = 3_600_000;

/// `1d` and the like, where it comes out even.
fn span(ms: i64) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    let unit = UNITS.iter().find(|(unit, _)| ms > 0 && ms % unit == 0);
    unit.map_or_else(|| format!("{ms} ms"), |(unit, name)| format!("{}{name}", ms / unit))
}

impl Judge<'_> {
    /// The setting as it will be.
    fn text(&self, key: &str) -> &str {
        let altered = self.verdict.alter.get(key).map(String::as_str);
        altered.or_else(|| Some(self.configs.get(key)?.value.as_str())).unwrap_or_default()
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.text(key).trim().parse().ok()
    }

    fn words(&self, key: &str) -> BTreeSet<String> {
        words(self.text(key))
    }

    /// `key` must be `value`, else there is this harm: it is altered, or for a person to change.
    fn must(&mut self, key: &str, value: &str, harm: &str) {
        let TopicPlan { topic, asked, .. } = self.plan;
        let now = self.text(key);
        let what = if asked.get(key).is_some_and(|asked| same(key, asked, now)) {
            let section = self.plan.config_key();
            format!(
                "`{section}` asks for {key}={now} on topic {topic}: {harm}; leave it out, or say {key}={value}"
            )
        } else if self.named && !self.plan.implies(key) {
            let command = add_config(self.cluster.bootstrap, topic, key, value);
            format!("topic {topic} has {key}={now}: {harm}; valid: {value}; run: {command}")
        } else {
            self.verdict.alter.insert(key.to_owned(), value.to_owned());
            return;
        };
        self.verdict.refused.push(what);
    }

    fn partitions(&mut self, has: usize) {
        let TopicPlan { topic, partitions, .. } = self.plan;
        if i32::try_from(has).unwrap_or(i32::MAX) >= *partitions {
            return;
        }
        self.verdict.refused.push(if self.cluster.live == 0 {
            format!(
                "the job has run with {has} tasks and now has {partitions}: keys would part from their state; run it \
                 under a new [job] id, or start over with --fresh"
            )
        } else {
            format!(
                "topic {topic} exists with {has} partitions and the job needs {partitions}; run: kafka-topics.sh \
                 --bootstrap-server {} --alter --topic {topic} --partitions {partitions}",
                self.cluster.bootstrap
            )
        });
    }

    fn what_is_asked(&mut self) {
        for (key, value) in &self.plan.asked {
            if !same(key, self.text(key), value) {
                self.verdict.alter.insert(key.clone(), value.clone());
            }
        }
    }

    fn policy(&mut self) {
        let has = self.words("cleanup.policy");
        let wanted = if self.plan.ttl_ms.is_some() { "compact,delete" } else { "compact" };
        if !has.contains("compact") {
            self.must(
                "cleanup.policy",
                wanted,
                "rows would be dropped by their age, and state be lost with them",
            );
        } else if has.contains("delete") && self.plan.ttl_ms.is_none() && self.ends() {
            let harm = "rows that were not written for its retention would be dropped, and state be lost with them \
                        (a store that shall forget has a `ttl`)";
            self.must("cleanup.policy", wanted, harm);
        }
    }

    /// Whether its retention has an end.
    fn ends(&self) -> bool {
        self.number("retention.ms") != Some(-1) || self.number("retention.bytes") != Some(-1)
    }

    fn retention(&mut self) {
        let Some(ttl) = self.plan.ttl_ms.and_then(|ttl| i64::try_from(ttl).ok()) else { return };
        if !self.words("cleanup.policy").contains("delete") {
            return;
        }
        if !longer(self.number("retention.ms"), Some(ttl)) {
            let harm = format!("rows would be dropped before the store's ttl of {} is over", span(ttl));
            self.must("retention.ms", &ttl.to_string(), &harm);
        } else if self.number("retention.ms") != Some(ttl) && !self.plan.asked.contains_key("retention.ms") {
            // Somebody may have set it for a reason, and it loses nothing.
            let (topic, now) = (&self.plan.topic, self.text("retention.ms"));
            let command = add_config(self.cluster.bootstrap, topic, "retention.ms", &ttl.to_string());
            let note = format!(
                "topic {topic} keeps rows for longer than the store's ttl (retention.ms={now}); to have it forget \
                 sooner, run: {command}"
            );
            self.verdict.notes.push(note);
        }
        if self.number("retention.bytes") != Some(-1) {
            self.must("retention.bytes", "-1", "rows would be dropped before the store's ttl is over");
        }
    }

    fn sizes(&mut self) {
        let least = i64::try_from(self.plan.batch_bytes).unwrap_or(i64::MAX);
        if self.number("max.message.bytes").is_some_and(|most| most < least) {
            let is_metadata = !matches!(self.plan.role, TopicRole::Changelog(_));
            // Who says so for a topic of a few small records knows what a policy of theirs allows.
            if is_metadata && self.plan.asked.contains_key("max.message.bytes") {
                return;
            }
            let harm = format!(
                "batches of up to {least} bytes are sent to it, and larger ones would fail every commit"
            );
            self.must("max.message.bytes", &least.to_string(), &harm);
        }
    }

    /// A restore that takes longer than tombstones are kept may read a row and miss its deletion.
    fn tombstones(&mut self) {
        const KEY: &str = "delete.retention.ms";
        let is_changelog = matches!(self.plan.role, TopicRole::Changelog(_));
        if let Some(ms) = self.number(KEY).filter(|ms| is_changelog && *ms < LONG_RESTORE_MS) {
            let topic = &self.plan.topic;
            let command =
                add_config(self.cluster.bootstrap, topic, KEY, &types::DELETE_RETENTION_MS.to_string());
            self.verdict.notes.push(format!(
                "topic {topic} keeps tombstones for {} only: a restore that takes longer could bring deleted rows back; \
                 run: {command}",
                span(ms)
            ));
        }
    }

    fn elections(&mut self) {
        const KEY: &str = "unclean.leader.election.enable";
        if self.text(KEY) == "true" {
            self.must(
                KEY,
                "false",
                "a broker that missed commits could become the leader, and they would be lost",
            );
        }
    }

    fn copies(&mut self, copies: u16) {
        const KEY: &str = "min.insync.replicas";
        let TopicPlan { topic, replication: told, .. } = self.plan;
        let least = self.number(KEY).unwrap_or(1);
        if least > i64::from(copies) {
            let harm = format!("it has {copies} copies, so that every commit would fail");
            self.must(KEY, &in_sync(copies).to_string(), &harm);
        } else if least == 1 && copies >= 3 {
            let command = add_config(self.cluster.bootstrap, topic, KEY, "2");
            self.verdict.notes.push(format!(
                "topic {topic} has {KEY}=1: what one broker alone has taken can be lost with it; run: {command}"
            ));
        }
        let by_default = u16::try_from(self.cluster.live).unwrap_or(MOST_COPIES).min(2);
        let wanted = told.unwrap_or(by_default);
        if copies < wanted {
            let is =
                if copies == 1 { "has one copy only".to_owned() } else { format!("has {copies} copies") };
            self.verdict.notes.push(format!(
                "topic {topic} {is}: it can be lost with a broker; `kafka-reassign-partitions.sh --bootstrap-server {}` \
                 gives it {}",
                self.cluster.bootstrap,
                told.unwrap_or(MOST_COPIES)
            ));
        }
    }

    /// Of a topic of ours, what nobody has set on it and would make it quicker to read.
    fn wishes(&mut self) {
        const QUICKER: [&str; 4] =
            ["segment.bytes", "segment.ms", "min.cleanable.dirty.ratio", "delete.retention.ms"];
        let is_changelog = matches!(self.plan.role, TopicRole::Changelog(_));
        if self.named {
            return;
        }
        for key in QUICKER.into_iter().filter(|key| !(is_changelog && *key == "delete.retention.ms")) {
            let (Some(value), Some(now)) = (self.plan.config.get(key), self.configs.get(key)) else {
                continue;
            };
            let is_set = now.source == ConfigSource::Topic || self.verdict.alter.contains_key(key);
            if !is_set && !same(key, &now.value, value) {
                self.verdict.wishes.insert(key.to_owned(), value.clone());
            }
        }
    }
}

/// Whether what is kept for `ms` (-1: for ever) is kept at least for `than`.
fn longer(ms: Option<i64>, than: Option<i64>) -> bool {
    match (ms, than) {
        (Some(-1), _) => true,
        (_, Some(-1)) | (None, _) | (_, None) => false,
        (Some(ms), Some(than)) => ms >= than,
    }
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
}

/// Whether two texts are one value of `key`: the order of a list says nothing, nor how a number is written.
fn same(key: &str, left: &str, right: &str) -> bool {
    let numbers = || Some((left.trim().parse::<f64>().ok()?, right.trim().parse::<f64>().ok()?));
    match key {
        "cleanup.policy" => words(left) == words(right),
        _ => {
            left.trim() == right.trim()
                || numbers().is_some_and(|(left, right)| left.to_bits() == right.to_bits())
        }
    }
}

/// The command that sets a setting of a topic.
#[must_use]
pub fn add_config(bootstrap: &str, topic: &str, key: &str, value: &str) -> String {
    let value = if value.contains(',') { format!("[{value}]") } else { value.to_owned() };
    format!(
        "kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {topic} \
         --add-config {key}={value}"
    )
}

/// Topics by their system.
#[must_use]
pub fn by_system(plans: &[TopicPlan]) -> BTreeMap<&str, Vec<&TopicPlan>> {
    let mut by_system: BTreeMap<&str, Vec<&TopicPlan>> = BTreeMap::new();
    for plan in plans {
        by_system.entry(&plan.system).or_default().push(plan);
    }
    by_system
}

/// Looks at those topics of one system that exist, whatever their partitions, as [`ensure`] does, and changes nothing.
///
/// # Errors
/// The system did not answer, or (`Fatal`) a topic cannot be used, with what mends it.
pub fn look(admin: &dyn SystemAdmin, bootstrap: &str, plans: &[&TopicPlan]) -> Result<(), SystemError> {
    let live = admin.live_brokers()?;
    let known = Cluster { bootstrap, live, size: live };
    let names: Vec<String> = plans.iter().map(|plan| plan.topic.clone()).collect();
    let there = admin.describe(&names)?;
    let as_it_is = |plan: &&TopicPlan| {
        let of = there.iter().find(|t| t.topic == plan.topic)?;
        Some(TopicPlan { partitions: i32::try_from(of.partitions.len()).ok()?, ..(*plan).clone() })
    };
    let plans: Vec<TopicPlan> = plans.iter().filter_map(as_it_is).collect();
    judge_all(admin, &known, &plans.iter().collect::<Vec<_>>(), &there).map(drop)
}

/// That a job would begin anew, because its first input is of another system than it was.
#[must_use]
pub fn another_home(job: &JobId, home: &str, was: &str, coordinator: &str) -> String {
    format!(
        "the positions and the state of {job} are on system {was} (topic {coordinator}), since its first input was \
         there; [task] inputs now begins with one of system {home}, where the job would begin anew. Name an \
         input of {was} first, or, if it is to begin anew, give it another [job] id"
    )
}

/// Makes the topics of one system ready: looks at all of them before anything is changed, creates what is missing and
/// alters what must be. Asks no right for what is there and right.
///
/// # Errors
/// Why they are not ready; then nothing was changed, unless it is the system that failed.
pub fn ensure(
    admin: &dyn SystemAdmin,
    bootstrap: &str,
    plans: &[&TopicPlan],
) -> Result<Vec<TopicStatus>, Unready> {
    let live = admin.live_brokers()?;
    let known = Cluster { bootstrap, live, size: live };
    let names: Vec<String> = plans.iter().map(|plan| plan.topic.clone()).collect();
    let there = admin.describe(&names)?;
    let is_there = |plan: &&&TopicPlan| there.iter().any(|t| t.topic == plan.topic);
    let verdicts = judge_all(admin, &known, plans, &there)?;
    let missing: Vec<&&TopicPlan> = plans.iter().filter(|plan| !is_there(plan)).collect();
    if !missing.is_empty() {
        let cluster = Cluster { size: admin.cluster_size()?, ..known };
        let orders: Result<Vec<NewTopic>, String> =
            missing.iter().map(|plan| creation(plan, &cluster)).collect();
        let orders = orders.map_err(Unready::TooFewBrokers)?;
        admin.create(&orders).map_err(|error| not_created(error, &missing))?;
    }
    for (topic, verdict) in &verdicts {
        alter(admin, bootstrap, topic, verdict)?;
    }
    if missing.is_empty() {
        return Ok(there.iter().map(|t| status(t, &verdicts)).collect());
    }
    // Another process may have created one meanwhile, in its own way.
    let there = admin.describe(&names)?;
    if let Some(name) = names.iter().find(|name| !there.iter().any(|t| t.topic == **name)) {
        let why = format!("topic {name} is not there yet; if it is being deleted, that is waited for");
        return Err(SystemError::Retriable(why).into());
    }
    let verdicts = judge_all(admin, &known, plans, &there)?;
    for (topic, verdict) in &verdicts {
        alter(admin, bootstrap, topic, verdict)?;
    }
    Ok(there.iter().map(|t| status(t, &verdicts)).collect())
}

/// Clusters with policies refuse topics that look otherwise than they say.
fn not_created(error: SystemError, missing: &[&&TopicPlan]) -> SystemError {
    let keys: Vec<String> = missing.iter().map(|plan| format!("`{}`", plan.config_key())).collect();
    match error {
        SystemError::Fatal(why) => SystemError::Fatal(format!(
            "{why}; settings that the cluster asks for can be given with {}, or the topics be made by hand",
            keys.join(", ")
        )),
        other => other,
    }
}

type Verdicts = BTreeMap<String, Verdict>;

fn judge_all(
    admin: &dyn SystemAdmin,
    cluster: &Cluster<'_>,
    plans: &[&TopicPlan],
    there: &[TopicMetadata],
) -> Result<Verdicts, SystemError> {
    let names: Vec<String> = there.iter().map(|t| t.topic.clone()).collect();
    let configs = admin.describe_configs(&names)?;
    let mut verdicts = Verdicts::new();
    for plan in plans {
        let Some(metadata) = there.iter().find(|t| t.topic == plan.topic) else { continue };
        // A broker may not have heard yet of a topic that was created a moment ago.
        let Some(configs) = configs.get(&plan.topic) else { continue };
        verdicts.insert(plan.topic.clone(), judge(plan, metadata, configs, cluster));
    }
    let refused: Vec<&str> = verdicts.values().flat_map(|v| &v.refused).map(String::as_str).collect();
    if refused.is_empty() { Ok(verdicts) } else { Err(SystemError::Fatal(refused.join("; "))) }
}

fn alter(
    admin: &dyn SystemAdmin,
    bootstrap: &str,
    topic: &str,
    verdict: &Verdict,
) -> Result<(), SystemError> {
    if !verdict.alter.is_empty() {
        admin.alter_configs(topic, &verdict.alter).map_err(|error| match error {
            SystemError::Fatal(why) => {
                let commands: Vec<String> = verdict
                    .alter
                    .iter()
                    .map(|(key, value)| add_config(bootstrap, topic, key, value))
                    .collect();
                SystemError::Fatal(format!("{why}; or let who may run: {}", commands.join(" && ")))
            }
            other => other,
        })?;
    }
    if !verdict.wishes.is_empty() {
        // A topic that somebody else made works as it is.
        let _ = admin.alter_configs(topic, &verdict.wishes);
    }
    Ok(())
}

fn status(there: &TopicMetadata, verdicts: &Verdicts) -> TopicStatus {
    TopicStatus {
        topic: there.topic.clone(),
        partitions: u32::try_from(there.partitions.len()).unwrap_or(u32::MAX),
        replication: u32::try_from(there.replication()).unwrap_or(u32::MAX),
        notes: verdicts.get(&there.topic).map(|v| v.notes.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;

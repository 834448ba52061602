//! The metrics of the whole job in one place: the containers' own, asked for over their sessions when somebody looks,
//! each with the labels of its container, and the master's.
//!
//! `GET /metrics` on the master's address answers in Prometheus' text format. Where the listener asks for a token, so
//! does this page (`Authorization: Bearer …`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use types::{ContainerId, JobId, JobStatus};

/// How long a look waits for containers that do not answer.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Names and values of labels.
pub type Labels = Vec<(&'static str, String)>;

/// Several texts in Prometheus' format as one: every metric once, its lines with the labels of their text. Of a
/// name that is of several kinds the first counts, since a scraper refuses a text with both.
#[must_use]
pub fn federate(texts: &[(Labels, String)]) -> String {
    let mut families: BTreeMap<&str, (&str, Vec<String>)> = BTreeMap::new();
    for (labels, text) in texts {
        let written = write_labels(labels);
        let mut family: Option<&str> = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                family = declared.split_once(' ').and_then(|(name, kind)| {
                    (families.entry(name).or_insert_with(|| (kind, Vec::new())).0 == kind).then_some(name)
                });
            } else if let Some(name) = family.filter(|_| !line.starts_with('#'))
                && let Some(labelled) = with_labels(line, &written)
                && let Some((_, lines)) = families.get_mut(name)
            {
                lines.push(labelled);
            }
        }
    }
    let mut all = String::new();
    for (name, (kind, lines)) in &families {
        // Writing into a String does not fail.
        let _ = writeln!(all, "# TYPE {name} {kind}");
        for line in lines {
            let _ = writeln!(all, "{line}");
        }
    }
    all
}

fn write_labels(labels: &Labels) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let written: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    written.join(",")
}

/// `name{a="b"} 1` with more labels before its own; none if the line is no sample.
fn with_labels(line: &str, labels: &str) -> Option<String> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    if labels.is_empty() {
        return Some(line.to_owned());
    }
    Some(match rest.strip_prefix('{') {
        Some(own) if own.starts_with('}') => format!("{name}{{{labels}{own}"),
        Some(own) => format!("{name}{{{labels},{own}"),
        None => format!("{name}{{{labels}}}{rest}"),
    })
}

/// One look at the metrics, from the question to the containers to the answer.
#[derive(Debug)]
struct Look<A> {
    nonce: u64,
    waiting: BTreeSet<ContainerId>,
    texts: BTreeMap<ContainerId, String>,
    until_ms: u64,
    answer: A,
}

/// The looks under way; `A` is whom to answer.
#[derive(Debug)]
pub struct Looks<A> {
    nonces: u64,
    open: Vec<Look<A>>,
}

impl<A> Default for Looks<A> {
    fn default() -> Looks<A> {
        Looks { nonces: 0, open: Vec::new() }
    }
}

impl<A> Looks<A> {
    /// A look begins at `now_ms`; returns the number to ask `containers` with.
    pub fn begin(&mut self, now_ms: u64, containers: BTreeSet<ContainerId>, answer: A) -> u64 {
        self.nonces += 1;
        let until_ms = now_ms + PATIENCE.as_millis() as u64;
        let (nonce, texts) = (self.nonces, BTreeMap::new());
        self.open.push(Look { nonce, waiting: containers, texts, until_ms, answer });
        nonce
    }

    /// A container has told a part.
    pub fn told(&mut self, container: ContainerId, nonce: u64, text: &str, last: bool) {
        let look = self.open.iter_mut().find(|look| look.nonce == nonce);
        if let Some(look) = look.filter(|look| look.waiting.contains(&container)) {
            look.texts.entry(container).or_default().push_str(text);
            if last {
                look.waiting.remove(&container);
            }
        }
    }

    /// A container's session is over: it will not answer.
    pub fn gone(&mut self, container: ContainerId) {
        self.open.iter_mut().for_each(|look| _ = look.waiting.remove(&container));
    }

    /// When the next look has waited long enough.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.open.iter().map(|look| look.until_ms).min()
    }

    /// Takes the looks that are complete, or have waited long enough at `now_ms`, with what containers told. What a
    /// container has begun to tell and not finished is left out: half of its lines would read as a fall.
    pub fn take_done(&mut self, now_ms: u64) -> Vec<(A, BTreeMap<ContainerId, String>)> {
        let is_done = |look: &mut Look<A>| look.waiting.is_empty() || look.until_ms <= now_ms;
        let done: Vec<Look<A>> = self.open.extract_if(.., is_done).collect();
        done.into_iter()
            .map(|mut look| {
                look.texts.retain(|container, _| !look.waiting.contains(container));
                (look.answer, look.texts)
            })
            .collect()
    }
}

/// The whole page: `told` by containers, and what the master itself knows of its slots.
#[must_use]
pub fn page(job: &JobId, status: &JobStatus, told: &BTreeMap<ContainerId, String>) -> String {
    let job = job.to_string();
    let mut texts = Vec::new();
    for slot in &status.slots {
        let number = slot.slot.to_string();
        let labels = vec![("samza_job", job.clone()), ("slot", number)];
        let text = slot.container.and_then(|container| told.get(&container));
        // Whether its metrics are in this page: 0 also while it starts.
        let mut own =
            format!("# TYPE samza_container_up gauge\nsamza_container_up {}\n", i32::from(text.is_some()));
        let _ = write!(
            own,
            "# TYPE samza_slot_restarts_total counter\nsamza_slot_restarts_total {}\n",
            slot.restarts
        );
        texts.push((labels.clone(), own));
        if let (Some(container), Some(text)) = (slot.container, text) {
            let node = slot.node.as_ref().map(ToString::to_string).unwrap_or_default();
            let labels = [labels, vec![("container", container.to_string()), ("node", node)]].concat();
            texts.push((labels, text.clone()));
        }
    }
    let attempt =
        format!("# TYPE samza_app_master_attempt gauge\nsamza_app_master_attempt {}\n", status.attempt);
    texts.push((vec![("samza_job", job)], attempt));
    federate(&texts)
}

#[cfg(test)]
mod tests {
    use types::{Epoch, Incarnation, SlotStatus};

    use super::*;

    fn id(seq: u64) -> ContainerId {
        ContainerId(Incarnation { epoch: Epoch(7), seq })
    }

    #[test]
    fn texts_become_one_with_each_metric_declared_once() {
        let of = |slot: &str, text: &str| (vec![("slot", slot.to_owned())], text.to_owned());
        let first = "# TYPE rows counter\nrows{task=\"a}b {\"} 4\n# TYPE up gauge\nup 1\n";
        let second = "# TYPE rows counter\nrows 5\n# TYPE up counter\nup 9\nhalf";
        assert_eq!(
            federate(&[of("0", first), of("1\"", second)]),
            "# TYPE rows counter\nrows{slot=\"0\",task=\"a}b {\"} 4\nrows{slot=\"1\\\"\"} 5\n\
             # TYPE up gauge\nup{slot=\"0\"} 1\n"
        );
    }

    #[test]
    fn a_look_ends_when_every_container_has_told_all_or_is_gone() {
        let mut looks = Looks::default();
        let nonce = looks.begin(100, BTreeSet::from([id(1), id(2), id(3)]), "caller");
        looks.told(id(1), nonce, "a\n", false);
        looks.told(id(1), nonce, "b\n", true);
        looks.told(id(9), nonce, "not asked\n", true);
        looks.told(id(2), nonce + 1, "another question's\n", true);
        assert!(looks.take_done(101).is_empty());
        looks.told(id(2), nonce, "c\n", true);
        looks.gone(id(3));
        let done = looks.take_done(102);
        assert_eq!(
            done,
            [("caller", BTreeMap::from([(id(1), "a\nb\n".to_owned()), (id(2), "c\n".to_owned())]))]
        );
        assert_eq!(looks.next_deadline_ms(), None);
    }

    #[test]
    fn a_container_that_does_not_answer_is_left_out_in_time() {
        let mut looks = Looks::default();
        let nonce = looks.begin(100, BTreeSet::from([id(1), id(2)]), ());
        looks.told(id(1), nonce, "half\n", false);
        looks.told(id(2), nonce, "whole\n", true);
        let until = looks.next_deadline_ms().expect("one is open");
        assert!(looks.take_done(until - 1).is_empty());
        assert_eq!(looks.take_done(until), [((), BTreeMap::from([(id(2), "whole\n".to_owned())]))]);
    }

    #[test]
    fn the_page_tells_which_containers_it_is_of() {
        let slot =
            |slot, seq| SlotStatus { slot, container: Some(id(seq)), restarts: 2, ..SlotStatus::default() };
        let status = JobStatus { attempt: 3, slots: vec![slot(0, 1), slot(1, 2)], ..JobStatus::default() };
        let told = BTreeMap::from([(
            id(1),
            "# TYPE samza_commits_total counter\nsamza_commits_total 6\n".to_owned(),
        )]);
        let job = JobId { name: "count".into(), id: "1".into() };
        let page = page(&job, &status, &told);
        for line in [
            "samza_app_master_attempt{samza_job=\"count-1\"} 3",
            "samza_container_up{samza_job=\"count-1\",slot=\"0\"} 1",
            "samza_container_up{samza_job=\"count-1\",slot=\"1\"} 0",
            "samza_slot_restarts_total{samza_job=\"count-1\",slot=\"1\"} 2",
        ] {
            assert!(page.lines().any(|of| of == line), "{line} is not in\n{page}");
        }
        let (_, rows) = include_str!("../../docs/metrics.md").split_once("### The job").expect("a heading");
        let (rows, _) = rows.split_once("### ").expect("another heading");
        let documented: BTreeSet<&str> = rows
            .lines()
            .filter_map(|row| {
                row.strip_prefix("| `").and_then(|row| row.split_once('`')).map(|(name, _)| name)
            })
            .collect();
        let declared = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        let own: BTreeSet<&str> = declared.filter(|name| *name != "samza_commits_total").collect();
        assert_eq!(own, documented);
        let commits = page.lines().find(|line| line.starts_with("samza_commits_total{"));
        assert!(
            commits.is_some_and(
                |line| line.contains("slot=\"0\",container=\"container_7_") && line.ends_with(" 6")
            )
        );
    }
}

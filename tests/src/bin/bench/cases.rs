//! What is measured per message: a table of cases, of which a run takes all, the default ones or those it is asked for.

/// What a program does with each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Consume,
    /// Sends it on.
    Passthrough,
    /// Sends on one of ten, chosen by the key.
    Filter,
    /// Counts its key in a store.
    Count,
}

impl Work {
    /// As all programs call it.
    pub fn mode(self) -> &'static str {
        match self {
            Work::Consume => "consume",
            Work::Passthrough => "passthrough",
            Work::Filter => "filter",
            Work::Count => "count",
        }
    }
}

/// A topic that cases read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Input {
    /// How many different ones there are.
    pub keys: u64,
    /// Bytes of a value.
    pub value: usize,
    /// Whether messages have headers, at which no program looks.
    pub headers: bool,
}

/// Keys of inputs whose keys do not matter.
const KEYS: u64 = 200_000;
const SMALL: Input = Input { keys: KEYS, value: 100, headers: false };
const LARGE: Input = Input { value: 1_024, ..SMALL };
const HEADED: Input = Input { headers: true, ..SMALL };
/// As many bytes as with headers, all of them in the value.
const AS_LARGE: Input = Input { value: SMALL.value + HEADER_BYTES, ..SMALL };

/// What the headers of a message take in it.
pub const HEADER_BYTES: usize = 119;

impl Input {
    /// As part of names.
    pub fn name(self) -> String {
        format!("{}-{}b{}", short(self.keys), self.value, if self.headers { "-headers" } else { "" })
    }
}

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// What is done.
    pub work: Work,
    /// What is read.
    pub input: Input,
    /// Whether counts are logged.
    pub changelog: bool,
    /// Between commits; between writes of a changelog where there are no commits.
    pub commit_ms: u64,
    /// Exactly-once, else at-least-once.
    pub exactly_once: bool,
}

/// So many keys in few letters.
fn short(keys: u64) -> String {
    match keys {
        1_000_000.. => format!("{}m", keys / 1_000_000),
        _ => format!("{}k", keys / 1_000),
    }
}

impl Case {
    /// A case of the usual kind: 100-byte values, 200,000 keys, a changelog if there is a store, commits every
    /// second, at-least-once.
    fn usual(work: Work) -> Case {
        Case { work, input: SMALL, changelog: work == Work::Count, commit_ms: 1_000, exactly_once: false }
    }

    /// Names what is not usual.
    pub fn name(&self) -> String {
        let mut name = self.work.mode().to_owned();
        if self.work == Work::Count {
            name = format!("{name}-{}", short(self.input.keys));
        }
        let remarks = [
            (self.input.value == LARGE.value, "1kib"),
            (self.input.value == AS_LARGE.value, "219b"),
            (self.input.headers, "headers"),
            (self.work == Work::Count && !self.changelog, "nolog"),
            (self.commit_ms == 100, "100ms"),
            (self.commit_ms == 10_000, "10s"),
            (self.exactly_once, "eos"),
        ];
        for (_, remark) in remarks.iter().filter(|(applies, _)| *applies) {
            name = format!("{name}-{remark}");
        }
        name
    }

    /// Whether messages are sent on.
    pub fn sends(&self) -> bool {
        matches!(self.work, Work::Passthrough | Work::Filter)
    }

    /// The same for a program without modes of delivery.
    pub fn without_mode(self) -> Case {
        Case { exactly_once: false, ..self }
    }

    /// The same with the bytes of the headers in the value, if it has some: a larger message costs more by itself.
    pub fn without_headers(self) -> Option<Case> {
        self.input.headers.then_some(Case { input: AS_LARGE, ..self })
    }

    /// The share of a plain rust-rdkafka loop's CPU that ours should not exceed.
    pub fn share_of_rdkafka(&self) -> Option<f64> {
        (*self == Case::usual(Work::Consume)).then_some(0.55)
    }

    /// The share of Kafka Streams' CPU that ours should not exceed, in either mode.
    pub fn share_of_streams(&self) -> Option<f64> {
        let case = self.without_mode();
        if case == Case::usual(Work::Passthrough) {
            Some(0.9)
        } else if case == Case::usual(Work::Count) {
            Some(1.0 / 9.0)
        } else {
            None
        }
    }
}

/// Every case. The size of a value never reaches a store of counts, so large ones are counted with one number of keys
/// only.
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for input in [SMALL, LARGE] {
        cases.push(Case { input, ..Case::usual(Work::Consume) });
        for work in [Work::Passthrough, Work::Filter] {
            for exactly_once in [false, true] {
                cases.push(Case { input, exactly_once, ..Case::usual(work) });
            }
        }
    }
    // In this order: the second is compared with the first.
    for input in [AS_LARGE, HEADED] {
        cases.push(Case { input, ..Case::usual(Work::Passthrough) });
    }
    let with_keys = |keys| Input { keys, ..SMALL };
    for input in [SMALL, with_keys(10_000), LARGE, with_keys(10_000_000)] {
        for changelog in [true, false] {
            for commit_ms in [1_000, 100, 10_000] {
                for exactly_once in [false, true] {
                    cases.push(Case { work: Work::Count, input, changelog, commit_ms, exactly_once });
                }
            }
        }
    }
    cases
}

/// What a plain run measures.
const DEFAULT: [&str; 15] = [
    "consume",
    "passthrough",
    "passthrough-eos",
    "passthrough-1kib",
    "passthrough-219b",
    "passthrough-headers",
    "filter",
    "count-200k",
    "count-200k-eos",
    "count-200k-nolog",
    "count-200k-nolog-eos",
    "count-200k-100ms",
    "count-200k-100ms-eos",
    "count-200k-10s",
    "count-10k",
];

/// Which cases a run takes.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Every one.
    pub full: bool,
    /// The one of this name; if there is none, those whose names contain it.
    pub case: Option<String>,
}

impl Selection {
    /// Those of `names` that are selected, of which `default` are those of a plain run.
    pub fn of(&self, names: &[String], default: &[&str]) -> Vec<String> {
        let exact = |wanted: &str| names.iter().any(|name| name == wanted);
        let selected = |name: &str| match self.case.as_deref() {
            Some(wanted) if exact(wanted) => name == wanted,
            Some(part) => name.contains(part),
            None => self.full || default.contains(&name),
        };
        names.iter().filter(|name| selected(name)).cloned().collect()
    }

    /// The selected cases.
    pub fn cases(&self) -> Vec<Case> {
        let all = all();
        let names: Vec<String> = all.iter().map(Case::name).collect();
        let mut selected = self.of(&names, &DEFAULT);
        // What they are compared with.
        let with_headers = all.iter().filter(|case| selected.contains(&case.name()));
        let plain: Vec<String> =
            with_headers.filter_map(|case| Some(case.without_headers()?.name())).collect();
        selected.extend(plain);
        all.into_iter().filter(|case| selected.contains(&case.name())).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{DEFAULT, Selection, all};

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let names: BTreeSet<String> = all().iter().map(super::Case::name).collect();
        assert_eq!(names.len(), all().len());
        assert!(DEFAULT.iter().all(|name| names.contains(*name)), "{names:?}");
    }

    #[test]
    fn a_case_is_selected_by_its_name_else_all_by_a_part_of_it() {
        let named = |case: &str| Selection { full: false, case: Some(case.to_owned()) }.cases().len();
        assert_eq!(named("passthrough"), 1);
        assert_eq!(named("count-10m"), 1);
        assert_eq!(named("passthrough-headers"), 2, "with what it is compared with");
        assert_eq!(named("filter-"), 3);
        assert_eq!(named("nothing"), 0);
        assert_eq!(Selection::default().cases().len(), DEFAULT.len());
        assert_eq!(Selection { full: true, case: None }.cases().len(), all().len());
    }

    #[test]
    fn targets_hold_in_either_mode() {
        let shares: Vec<_> = all().iter().filter_map(|c| Some((c.name(), c.share_of_streams()?))).collect();
        let names: Vec<&str> = shares.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["passthrough", "passthrough-eos", "count-200k", "count-200k-eos"]);
        let plain: Vec<String> = all().iter().filter_map(|c| Some(c.without_headers()?.name())).collect();
        assert_eq!(plain, ["passthrough-219b"]);
    }
}

//! Which keys exist, and which of them is nearest to one that does not.

/// Every section and its keys; `*` stands for a name that the user chooses. The one list that unknown keys are
/// told from.
pub(crate) const SECTIONS: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "job",
            "app-master",
            "package",
            "containers",
            "task",
            "systems",
            "streams",
            "stores",
            "placement",
            "errors",
            "restart",
        ],
    ),
    ("job", &["name", "id", "queue", "priority", "coordinator-config"]),
    ("app-master", &["memory", "cpu"]),
    ("package", &["path", "url", "sha256", "command", "env", "secrets"]),
    ("package.secrets.*", &["file"]),
    ("containers", &["count", "memory", "cpu", "cpu-limit", "threads"]),
    (
        "task",
        &[
            "inputs",
            "former-inputs",
            "on-input-growth",
            "window",
            "commit",
            "delivery",
            "grouper",
            "timers",
            "concurrency",
            "state-lost",
            "stuck-after",
            "config",
            "checkpoint-config",
        ],
    ),
    ("errors", &["decode", "process", "send", "dead-letter"]),
    ("systems.*", &["type", "bootstrap", "security", "consumer", "producer", "replication", "path"]),
    (
        "systems.*.security",
        &[
            "protocol",
            "mechanism",
            "ca",
            "certificate",
            "key",
            "key-password",
            "username",
            "password",
            "token-file",
            "token-endpoint",
            "client-id",
            "client-secret",
            "scope",
            "settings",
        ],
    ),
    (
        "streams.*",
        &[
            "topic",
            "key-serde",
            "serde",
            "key",
            "timestamp",
            "envelope",
            "offset-default",
            "reset-offset",
            "offset-lost",
            "bounded",
            "bootstrap",
            "priority",
            "broadcast",
        ],
    ),
    (
        "stores.*",
        &[
            "type",
            "changelog",
            "changelog-system",
            "key-serde",
            "serde",
            "cache-rows",
            "ttl",
            "max-value",
            "on-large-value",
            "compression",
            "block-size",
            "state-lost",
            "changelog-config",
        ],
    ),
    ("placement", &["wait", "rack-wait", "host-affinity", "spread", "labels", "on-lease-loss"]),
    ("restart", &["retries", "window", "backoff", "on-exhausted"]),
    ("restart.backoff", &["min", "max"]),
];

/// Keys that a later version will have, and what to do until then.
pub(crate) const NOT_YET: &[(&str, &str)] = &[
    ("package.url", "packages from a URL come with a later version; give `package.path`"),
    ("package.sha256", "it belongs to `package.url`, which comes with a later version; give `package.path`"),
    ("package.secrets", "secrets come with a later version; `package.env` holds plain environment"),
    ("placement.standby", "standby containers come with a later version; leave it out"),
];

/// The keys of the section with pattern `pattern`, such as `systems.*`.
pub(crate) fn keys_of(pattern: &str) -> &'static [&'static str] {
    SECTIONS.iter().find(|(name, _)| *name == pattern).map_or(&[], |(_, keys)| keys)
}

/// The section, if there is one only, that has `key` exactly.
pub(crate) fn section_with(key: &str) -> Option<&'static str> {
    let mut with = SECTIONS.iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| *name);
    let first = with.next()?;
    with.next().is_none().then_some(first)
}

/// The one of `valid` nearest to `word`, if it is near enough to have been meant.
#[must_use]
pub fn nearest<'v>(word: &str, valid: impl IntoIterator<Item = &'v str>) -> Option<&'v str> {
    let plain = |text: &str| text.to_lowercase().replace('_', "-");
    let meant = plain(word);
    valid
        .into_iter()
        .map(|candidate| (distance(&meant, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            *distance <= candidate.chars().count().max(meant.chars().count()).div_ceil(3).min(4)
                || (meant.len() >= 3 && plain(candidate).starts_with(&meant))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("inptus", "inputs"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn the_nearest_key_is_one_that_could_have_been_meant() {
        let task = keys_of("task");
        assert_eq!(nearest("inptus", task.iter().copied()), Some("inputs"));
        assert_eq!(nearest("Delivery", task.iter().copied()), Some("delivery"));
        assert_eq!(nearest("conf", task.iter().copied()), Some("config"));
        assert_eq!(nearest("zebra", task.iter().copied()), None);
        assert_eq!(nearest("rack_wait", keys_of("placement").iter().copied()), Some("rack-wait"));
    }

    #[test]
    fn a_key_of_one_section_only_is_found_there() {
        assert_eq!(section_with("retries"), Some("restart"));
        assert_eq!(section_with("memory"), None, "two sections have it");
    }
}

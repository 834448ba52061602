//! Which files of a folder are the partitions of a stream, and in which order. Pure.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// How the names of files of JSON lines end, before `.gz` and the like.
const LINES: [&str; 3] = ["jsonl", "ndjson", "json"];
const COMPRESSED: [&str; 3] = ["gz", "zst", "zstd"];
/// Names that are numbers are those of partitions if one of them is smaller; years, for one, are not.
const NUMBERS: u64 = 1_000;

/// What is in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) is_folder: bool,
}

/// A file that is a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) name: OsString,
    /// Its name without endings: what it keeps when it is compressed.
    pub(crate) stem: String,
}

/// The partitions in their order: by number if the names are numbers, else by name. Names that begin with `.` or `_` are
/// left out.
///
/// # Errors
/// What is in the folder that cannot be told, and what makes it good.
pub(crate) fn partitions(entries: Vec<Entry>) -> Result<Vec<Partition>, String> {
    let mut found = Vec::new();
    for Entry { name, is_folder } in entries {
        let text = name.to_string_lossy().into_owned();
        if text.starts_with(['.', '_']) {
            continue;
        }
        if text.contains(char::is_control) {
            return Err(format!("{text:?} in it has a control character in its name: rename it"));
        }
        if is_folder {
            return Err(format!(
                "`{text}` in it is a folder: move its files up, or let its name begin with `_` to leave it out"
            ));
        }
        let Some(stem) = stem(&name) else {
            return Err(format!(
                "`{text}` in it is no file of JSON lines by its name (.jsonl, .ndjson or .json, also with .gz or .zst): \
                 rename it, or let its name begin with `_` to leave it out"
            ));
        };
        found.push(Partition { name, stem });
    }
    let number = |partition: &Partition| {
        let digits = partition.stem.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| partition.stem.parse::<u64>().ok()).flatten()
    };
    let is_small = |partition: &Partition| number(partition).is_some_and(|n| n < NUMBERS);
    if found.iter().any(is_small) { numbered(found, number) } else { named(found) }
}

/// A file's name without its endings; none if they are not those of JSON lines.
fn stem(name: &OsStr) -> Option<String> {
    let text = name.to_string_lossy();
    let without = |text: &str, endings: &[&str]| {
        let (stem, ending) = text.rsplit_once('.')?;
        endings.contains(&ending.to_ascii_lowercase().as_str()).then(|| stem.to_owned())
    };
    let plain = without(&text, &COMPRESSED).unwrap_or_else(|| text.into_owned());
    without(&plain, &LINES).filter(|stem| !stem.is_empty())
}

fn numbered(
    found: Vec<Partition>,
    number: impl Fn(&Partition) -> Option<u64>,
) -> Result<Vec<Partition>, String> {
    let mut by_number: BTreeMap<u64, Partition> = BTreeMap::new();
    for partition in found {
        let shown = partition.name.to_string_lossy().into_owned();
        let Some(number) = number(&partition) else {
            return Err(format!(
                "`{shown}` in it has no number as its name, and others have: rename it, or let its name begin with `_` \
                 to leave it out"
            ));
        };
        if let Some(other) = by_number.insert(number, partition) {
            let other = other.name.to_string_lossy().into_owned();
            return Err(format!(
                "`{other}` and `{shown}` in it are both partition {number}: remove one of them"
            ));
        }
    }
    let gap = by_number.keys().zip(0..).find(|(number, expected)| **number != *expected);
    if let Some((there, missing)) = gap {
        return Err(format!(
            "it has {there}.jsonl and not {missing}.jsonl: partitions have the numbers from 0 on; an empty file stands \
             for one that has nothing (`touch {missing}.jsonl`)"
        ));
    }
    Ok(by_number.into_values().collect())
}

fn named(mut found: Vec<Partition>) -> Result<Vec<Partition>, String> {
    found.sort_by(|a, b| (&a.stem, &a.name).cmp(&(&b.stem, &b.name)));
    if let Some(two) = found.windows(2).find(|two| two[0].stem == two[1].stem) {
        let [a, b] = [two[0].name.to_string_lossy(), two[1].name.to_string_lossy()];
        return Err(format!("`{a}` and `{b}` in it have one name but for their endings: remove one of them"));
    }
    Ok(found)
}

/// What has become of the partitions that there were, by their stems.
///
/// # Errors
/// Which file is missing or new, and the ways out.
pub(crate) fn compare(known: &[String], now: &[Partition]) -> Result<(), String> {
    let is_there = |stem: &String| now.iter().any(|partition| partition.stem == *stem);
    if let Some((number, stem)) = known.iter().enumerate().find(|(_, stem)| !is_there(stem)) {
        return Err(format!(
            "`{stem}`, which was its partition {number} in the last run, is not there: put it back, or start over with \
             --fresh"
        ));
    }
    if let Some(new) = now.iter().find(|partition| !known.contains(&partition.stem)) {
        return Err(format!(
            "`{}` is new in it: a job keeps the number of its partitions, {}; append its lines to one of those files, \
             start over with --fresh, or run it under another [job] id",
            new.name.to_string_lossy(),
            known.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Result<Vec<String>, String> {
        let entry = |name: &&str| {
            let folder = name.strip_suffix('/');
            Entry { name: folder.unwrap_or(name).into(), is_folder: folder.is_some() }
        };
        let found = partitions(names.iter().map(entry).collect())?;
        Ok(found.into_iter().map(|p| p.name.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn partitions_come_by_number_or_by_name() {
        let good = |names: &[&str], order: &[&str]| assert_eq!(of(names).expect("good"), order);
        good(
            &[
                "10.jsonl", "9.jsonl", "8.jsonl", "7.jsonl", "6.jsonl", "5.jsonl", "4.jsonl", "3.jsonl",
                "2.jsonl", "1.jsonl", "0.jsonl",
            ],
            &[
                "0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl", "4.jsonl", "5.jsonl", "6.jsonl", "7.jsonl",
                "8.jsonl", "9.jsonl", "10.jsonl",
            ],
        );
        good(&["1.jsonl.gz", "0.json"], &["0.json", "1.jsonl.gz"]);
        good(&["0001.jsonl", "0000.jsonl"], &["0000.jsonl", "0001.jsonl"]);
        good(&["b.jsonl", "A.JSONL", "a.ndjson.ZST"], &["A.JSONL", "a.ndjson.ZST", "b.jsonl"]);
        good(&["2020.jsonl", "2019.jsonl"], &["2019.jsonl", "2020.jsonl"]);
        good(
            &[
                "part-00001.json",
                "part-00000.json",
                "_SUCCESS",
                ".DS_Store",
                ".0.jsonl.swp",
                "_old/",
                ".git/",
            ],
            &["part-00000.json", "part-00001.json"],
        );
        good(&["one two.jsonl", "ünï.jsonl"], &["one two.jsonl", "ünï.jsonl"]);
        good(&[], &[]);
    }

    #[test]
    fn what_cannot_be_told_is_refused_with_what_makes_it_good() {
        let bad = |names: &[&str], what: &str| {
            let told = of(names).expect_err(what);
            assert!(told.contains(what), "{told}");
        };
        bad(&["0.jsonl", "1.jsonl", "3.jsonl"], "`touch 2.jsonl`");
        bad(&["1.jsonl", "2.jsonl"], "not 0.jsonl");
        bad(&["0.jsonl", "0.jsonl.gz"], "`0.jsonl` and `0.jsonl.gz` in it are both partition 0");
        bad(&["0.jsonl", "00.jsonl"], "both partition 0");
        bad(&["0.JSONL", "0.jsonl"], "both partition 0");
        bad(&["0.jsonl", "more.jsonl"], "`more.jsonl` in it has no number");
        bad(&["a.jsonl", "a.jsonl.zst"], "have one name but for their endings");
        bad(&["0.jsonl", "README.md"], "`README.md` in it is no file of JSON lines");
        bad(&["0.jsonl~"], "`0.jsonl~` in it is no file");
        bad(&["a\nb.jsonl"], "a control character");
        bad(&["0.jsonl", "more/"], "`more` in it is a folder");
    }

    #[test]
    fn files_that_come_go_or_change_their_names_between_runs_are_told() {
        let now = |names: &[&str]| {
            let entry = |name: &&str| Entry { name: name.into(), is_folder: false };
            partitions(names.iter().map(entry).collect()).expect("good")
        };
        let known = ["a".to_owned(), "b".into()];
        assert_eq!(compare(&known, &now(&["a.jsonl", "b.jsonl.gz"])), Ok(()));
        assert!(
            compare(&known, &now(&["a.jsonl"])).expect_err("gone").contains("`b`, which was its partition 1")
        );
        let new = compare(&known, &now(&["a.jsonl", "aa.jsonl", "b.jsonl"])).expect_err("new");
        assert!(new.contains("`aa.jsonl` is new") && new.contains("--fresh"), "{new}");
        assert!(compare(&known, &now(&["a.jsonl", "c.jsonl"])).expect_err("renamed").contains("`b`"));
    }
}

//! The log under torn, damaged and growing files, and against a map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// In memory where the system has such a place: every commit waits for the disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn put(log: &mut Log, partition: i32, rows: &[(&[u8], Option<&[u8]>)]) {
    let (topic, partition) = log.find("t", partition).expect("there");
    let mut made = Rows::default();
    rows.iter().for_each(|(key, value)| made.push(0, Some(key), *value));
    let first = log.reserve(topic, partition, made.span).expect("there");
    let head = RowsHead { topic, partition, first, end: first + made.span, unix_ms: crate::clock::unix_ms() };
    let mut frame = Frame::default();
    frame.push(&Item::Rows { head, rows: &made.bytes });
    log.append(frame).expect("written");
}

fn keeping(tombstones_ms: u64) -> BTreeMap<String, String> {
    [(TOMBSTONES.to_owned(), tombstones_ms.to_string())].into()
}

fn make(log: &mut Log, keeps_tombstones_ms: u64) {
    let mut frame = Frame::default();
    log.topic("t", 2, &keeping(keeps_tombstones_ms), &mut frame).expect("new");
    log.append(frame).expect("written");
}

type Found = Vec<(u64, Vec<u8>, Option<Vec<u8>>)>;

fn rows(log: &Log, partition: i32, from: u64, until: u64) -> Found {
    let Some((topic, partition)) = log.find("t", partition) else { return Vec::new() };
    let mut found = Found::new();
    let mut take = |messages: &[Message<'_>]| {
        found.extend(
            messages.iter().map(|m| (m.offset, m.key.unwrap().to_vec(), m.value.map(<[u8]>::to_vec))),
        );
        Ok(())
    };
    log.snapshot(topic, partition, from, until).rows(from, until, &mut take).expect("read");
    found
}

fn fold(found: Found) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut folded = BTreeMap::new();
    for (_, key, value) in found {
        match value {
            Some(value) => drop(folded.insert(key, value)),
            None => drop(folded.remove(&key)),
        }
    }
    folded
}

fn row(offset: u64, key: &str, value: Option<&str>) -> (u64, Vec<u8>, Option<Vec<u8>>) {
    (offset, key.into(), value.map(Into::into))
}

#[test]
fn rows_are_there_again_with_their_offsets() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = Log::open(&path).expect("made");
    make(&mut log, 1_000);
    put(&mut log, 0, &[(b"a", Some(b"1")), (b"b", Some(b"2"))]);
    put(&mut log, 1, &[(b"c", Some(b"3"))]);
    put(&mut log, 0, &[(b"a", None)]);
    let id = log.topics[0].id.clone();
    drop(log);
    let mut log = Log::open(&path).expect("opened");
    assert_eq!(log.topics[0].id, id);
    assert_eq!(rows(&log, 0, 0, 9), [row(0, "a", Some("1")), row(1, "b", Some("2")), row(2, "a", None)]);
    assert_eq!(rows(&log, 0, 1, 2), [row(1, "b", Some("2"))]);
    assert_eq!(rows(&log, 1, 0, 9), [row(0, "c", Some("3"))]);
    assert_eq!(log.topics[0].partitions[0].next, 3);
    let error = log.topic("t", 3, &keeping(1_000), &mut Frame::default()).expect_err("too many").to_string();
    assert!(error.contains("2 tasks and now has 3"), "{error}");
}

#[test]
fn settings_of_a_topic_are_kept_through_a_restart_and_a_rewrite() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = Log::open(&path).expect("made");
    make(&mut log, 1_000);
    let mut frame = Frame::default();
    let set = [("retention.ms".to_owned(), "5".to_owned()), (TOMBSTONES.to_owned(), "7".to_owned())];
    log.alter("t", &set.into(), &mut frame).expect("settings of Kafka");
    log.append(frame).expect("written");
    let unknown = [("retention".to_owned(), "5".to_owned())].into();
    assert!(log.alter("t", &unknown, &mut Frame::default()).is_err(), "Kafka has no such setting");
    assert!(log.alter("u", &BTreeMap::new(), &mut Frame::default()).is_err(), "there is no such topic");
    put(&mut log, 0, &[(b"a", Some(b"1"))]);
    log.rewrite(0).expect("rewritten");
    drop(log);
    let log = Log::open(&path).expect("opened");
    let configs = log.topics[0].configs();
    let of = |name: &str| configs[name].value.clone();
    assert_eq!(
        (of("retention.ms"), of(TOMBSTONES), of("cleanup.policy")),
        ("5".into(), "7".into(), "delete".into())
    );
    assert_eq!(log.topics[0].partitions.len(), 2);
}

#[test]
fn a_torn_last_frame_is_cut_off_wherever_it_is_torn() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = Log::open(&path).expect("made");
    make(&mut log, 1_000);
    put(&mut log, 0, &[(b"a", Some(b"1"))]);
    let two_frames = log.len;
    put(&mut log, 0, &[(b"a", Some(b"2")), (b"b", Some(&[7; 40]))]);
    drop(log);
    let whole = fs::read(&path).expect("read");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("written");
        let log = Log::open(&path).expect("a torn file is good");
        assert!(log.len <= length.max(MAGIC.len()) as u64);
        assert_eq!(fs::metadata(&path).expect("there").len(), log.len, "cut at {length}");
        if length as u64 >= two_frames {
            assert_eq!(rows(&log, 0, 0, 9), [row(0, "a", Some("1"))], "cut at {length}");
        }
    }
    // Pages that never came to the disk are zeros.
    for at in two_frames as usize..whole.len() {
        let mut torn = whole.clone();
        torn[at..].fill(0);
        fs::write(&path, &torn).expect("written");
        let mut log = Log::open(&path).expect("a torn file is good");
        assert_eq!(rows(&log, 0, 0, 1), [row(0, "a", Some("1"))], "zeros from {at}");
        put(&mut log, 0, &[(b"c", Some(b"3"))]);
        let log = Log::open(&path).expect("opened");
        assert_eq!(
            rows(&log, 0, 1, 9).last(),
            Some(&row(log.topics[0].partitions[0].next - 1, "c", Some("3")))
        );
    }
}

#[test]
fn damage_before_the_last_frame_is_told_and_nothing_is_lost() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = Log::open(&path).expect("made");
    make(&mut log, 1_000);
    put(&mut log, 0, &[(b"a", Some(b"1"))]);
    let at = log.len as usize - 1;
    put(&mut log, 0, &[(b"a", Some(b"2"))]);
    drop(log);
    let mut damaged = fs::read(&path).expect("read");
    damaged[at] ^= 1;
    fs::write(&path, &damaged).expect("written");
    let error = Log::open(&path).err().expect("damaged").to_string();
    assert!(error.contains("is damaged at byte") && error.contains("--fresh"), "{error}");
    assert_eq!(fs::read(&path).expect("read"), damaged);
    fs::write(&path, b"something else").expect("written");
    assert!(Log::open(&path).err().expect("foreign").to_string().contains("is not a log"));
}

#[test]
fn a_rewrite_leaves_out_what_is_replaced_and_tombstones_that_are_old() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = Log::open(&path).expect("made");
    make(&mut log, 60_000);
    let output = Item::Output { path: b"out", exact: true, foreign: false, start: 3, len: 9 };
    let mut frame = Frame::default();
    frame.push(&output);
    frame.push(&Item::Inputs { folder: b"in", names: "0\n1" });
    frame.push(&Item::Origin { device: 1, inode: 2, state: b"/j/.samza", project: b"/j" });
    frame.push(&Item::Run { open: true });
    log.append(frame).expect("written");
    put(&mut log, 0, &[(b"a", Some(b"1")), (b"b", Some(b"2")), (b"c", Some(b"3"))]);
    put(&mut log, 0, &[(b"a", Some(b"4")), (b"b", None)]);
    let (topic, partition) = log.find("t", 0).expect("there");
    log.reserve(topic, partition, 2).expect("there");
    let now = crate::clock::unix_ms();
    log.rewrite(now).expect("rewritten");
    let live = [row(2, "c", Some("3")), row(3, "a", Some("4"))];
    assert_eq!(rows(&log, 0, 0, 9), [&live[..], &[row(4, "b", None)]].concat());
    assert_eq!(log.topics[0].partitions[0].reserved, 7, "what was given away is not given away again");
    log.rewrite(now + 60_001).expect("rewritten");
    assert_eq!(rows(&log, 0, 0, 9), live);
    drop(log);
    let log = Log::open(&path).expect("opened");
    assert_eq!(rows(&log, 0, 0, 9), live);
    assert_eq!(log.topics[0].partitions[0].next, 5, "offsets are not used twice");
    assert_eq!(log.outputs[Path::new("out")], Output { exact: true, foreign: false, start: 3, len: 9 });
    assert_eq!(log.inputs[Path::new("in")], ["0", "1"]);
    assert_eq!(log.origin.as_ref().map(|origin| origin.inode), Some(2));
    assert!(log.run_is_open);
    assert!(log.base > 0 && log.base < log.len);
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let folder = folder();
    let path = folder.path().join("log");
    let mut log = Log::open_with(&path, 4_096).expect("made");
    make(&mut log, 1_000);
    for n in 0..2_000_u32 {
        put(&mut log, 0, &[(&(n % 10).to_be_bytes(), Some(&n.to_be_bytes()))]);
        assert!(log.len < 16_384);
    }
    let live = fold(rows(&log, 0, 0, u64::MAX));
    assert_eq!(live.len(), 10);
    assert!(live.values().all(|v| u32::from_be_bytes(v.as_slice().try_into().unwrap()) >= 1_990));
}

type Commit = Vec<(i32, u8, Option<u8>)>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rewrites_and_restarts_change_no_fold(
        commits in proptest::collection::vec(
            proptest::collection::vec((0..2_i32, 0..12_u8, proptest::option::of(any::<u8>())), 1..8), 1..20),
        restarts in proptest::collection::vec(0..4_u8, 20),
    ) {
        let commits: Vec<Commit> = commits;
        let folder = folder();
        let path = folder.path().join("log");
        let mut log = Log::open(&path).expect("made");
        make(&mut log, 0);
        let mut model: [BTreeMap<Vec<u8>, Vec<u8>>; 2] = Default::default();
        for (commit, restart) in commits.iter().zip(restarts) {
            for (partition, key, value) in commit {
                let value = value.map(|v| vec![v]);
                put(&mut log, *partition, &[(&[*key], value.as_deref())]);
                let of = &mut model[*partition as usize];
                match value {
                    Some(value) => drop(of.insert(vec![*key], value)),
                    None => drop(of.remove([*key].as_slice())),
                }
            }
            match restart {
                0 => log = Log::open(&path).expect("opened"),
                1 => log.rewrite(crate::clock::unix_ms()).expect("rewritten"),
                _ => {}
            }
            for partition in 0..2 {
                let found = rows(&log, partition, 0, u64::MAX);
                prop_assert!(found.is_sorted_by(|a, b| a.0 < b.0));
                prop_assert_eq!(&fold(found), &model[partition as usize]);
            }
        }
    }
}

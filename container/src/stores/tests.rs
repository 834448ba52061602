//! A store is a map: whatever is cached, evicted, committed, flushed, restored.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;
use task_api::store::{RawStore, Visit};

use super::Store;
use super::cache::Limits;
use super::disk::{DiskMemory, TaskDisk};
use super::fill::Fill;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn open(state: &Path) -> TaskDisk {
    TaskDisk::open(state, "Partition-0", "1-1", &["rows"], &DiskMemory::new(1 << 20, 1 << 20)).expect("opens")
}

fn all(store: &mut Store, from: Option<&[u8]>, to: Option<&[u8]>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        Ok(Visit::Continue)
    };
    store.scan(from, to, &mut visit).expect("scans");
    rows
}

fn on_disk(disk: &TaskDisk) -> Model {
    let mut rows = Model::new();
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.insert(key.to_vec(), value.to_vec());
        Ok(Visit::Continue)
    };
    disk.scan("rows", None, None, &mut visit).expect("scans");
    rows
}

#[derive(Debug, Clone)]
enum Op {
    Get(u8),
    Put(u8, u8),
    Delete(u8),
    Scan(u8, u8),
    FirstOf(u8),
    Commit,
    CommitAndFlush,
}

fn key(n: u8) -> Vec<u8> {
    // Some keys are prefixes of others, some share their first eight bytes.
    match n % 3 {
        0 => vec![n],
        1 => vec![n - 1, 0],
        _ => [b"eight___".as_slice(), &[n]].concat(),
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => any::<u8>().prop_map(Op::Get),
        6 => any::<(u8, u8)>().prop_map(|(k, v)| Op::Put(k, v)),
        2 => any::<u8>().prop_map(Op::Delete),
        1 => any::<(u8, u8)>().prop_map(|(a, b)| Op::Scan(a, b)),
        1 => any::<u8>().prop_map(Op::FirstOf),
        1 => Just(Op::Commit),
        1 => Just(Op::CommitAndFlush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_a_map_and_its_disk_holds_what_was_flushed(
        ops in proptest::collection::vec(op(), 1..400), rows in 1usize..40, bytes in 200usize..20_000,
    ) {
        let state = folder();
        let disk = Arc::new(open(state.path()));
        let full = Rc::new(Cell::new(false));
        let mut store = Store::new("rows".into(), Limits { rows, bytes }, Arc::clone(&disk), Rc::clone(&full));
        let (mut model, mut flushed) = (Model::new(), Model::new());
        for op in ops {
            match op {
                Op::Get(k) => {
                    let found = store.get(&key(k)).expect("reads").map(<[u8]>::to_vec);
                    prop_assert_eq!(found.as_ref(), model.get(&key(k)));
                }
                Op::Put(k, v) => {
                    store.put(&key(k), &vec![v; v as usize]).expect("writes");
                    model.insert(key(k), vec![v; v as usize]);
                }
                Op::Delete(k) => {
                    store.delete(&key(k)).expect("deletes");
                    model.remove(&key(k));
                }
                Op::Scan(a, b) => {
                    let (from, to) = (key(a).min(key(b)), key(a).max(key(b)));
                    let expected: Vec<_> =
                        model.range(from.clone()..to.clone()).map(|(k, v)| (k.clone(), v.clone())).collect();
                    prop_assert_eq!(all(&mut store, Some(&from), Some(&to)), expected);
                }
                Op::FirstOf(k) => {
                    let mut first = None;
                    let mut visit = |key: &[u8], _: &[u8]| {
                        first = Some(key.to_vec());
                        Ok(Visit::Stop)
                    };
                    store.scan(Some(&key(k)), None, &mut visit).expect("scans");
                    prop_assert_eq!(first.as_ref(), model.range(key(k)..).next().map(|(k, _)| k));
                }
                Op::Commit => store.cache().committed(),
                Op::CommitAndFlush => {
                    store.cache().committed();
                    disk.write_cache("rows", store.cache()).expect("flushes");
                    flushed = model.clone();
                    full.set(false);
                }
            }
            if store.cache().dirty_rows() >= rows {
                prop_assert!(full.get(), "a full cache says so");
            }
            prop_assert_eq!(&on_disk(&disk), &flushed, "only committed rows reach the disk");
        }
        let expected: Vec<_> = model.into_iter().collect();
        prop_assert_eq!(all(&mut store, None, None), expected);
        disk.flush(true).expect("flushes");
        drop((store, disk));
        prop_assert_eq!(on_disk(&open(state.path())), flushed);
    }

    #[test]
    fn a_restore_equals_the_fold_of_the_changelog(
        log in proptest::collection::vec((0u16..60, proptest::option::weighted(0.9, any::<u8>())), 0..400),
        cut in 0usize..400, chunk in 1usize..3_000,
    ) {
        let state = folder();
        let disk = open(state.path());
        let mut model = Model::new();
        let cut = cut.min(log.len());
        for (part, is_empty, number) in [(&log[..cut], true, 1), (&log[cut..], false, 2)] {
            let mut fill = Fill::new(&disk, "rows", is_empty, chunk);
            for (k, v) in part {
                let value = v.map(|v| vec![v; 9]);
                fill.take((&k.to_be_bytes(), value.as_deref())).expect("takes");
                match value {
                    Some(value) => model.insert(k.to_be_bytes().to_vec(), value),
                    None => model.remove(k.to_be_bytes().as_slice()),
                };
            }
            prop_assert_eq!(fill.finish(&[number]).expect("finishes"), part.len() as u64);
            prop_assert_eq!(&on_disk(&disk), &model);
        }
        drop(disk);
        let disk = open(state.path());
        prop_assert_eq!(&on_disk(&disk), &model);
        prop_assert_eq!(disk.offsets_row("rows").expect("reads"), Some(vec![2]));
        disk.clear("rows").expect("clears");
        drop(disk);
        let disk = open(state.path());
        prop_assert_eq!((on_disk(&disk), disk.offsets_row("rows").expect("reads")), (Model::new(), None));
    }
}

#[test]
fn a_folder_that_another_holds_is_left_alone_and_its_spare_is_removed_later() {
    let state = folder();
    let first = open(state.path());
    let spare = open(state.path());
    assert_eq!(first.folder(), state.path().join("Partition-0"));
    assert_eq!(spare.folder(), state.path().join("Partition-0@1-1"));
    drop((first, spare));
    let again = open(state.path());
    assert_eq!(again.folder(), state.path().join("Partition-0"));
    assert!(!state.path().join("Partition-0@1-1").exists());
}

#[test]
fn a_database_that_does_not_open_is_made_anew() {
    let state = folder();
    drop(open(state.path()));
    std::fs::write(state.path().join("Partition-0/CURRENT"), "nonsense").expect("writable");
    assert_eq!(on_disk(&open(state.path())), Model::new());
}

#[test]
fn a_hit_makes_no_new_slot_and_a_cache_of_clean_rows_stays_within_its_limits() {
    let state = folder();
    let disk = Arc::new(open(state.path()));
    let mut store =
        Store::new("rows".into(), Limits { rows: 10, bytes: 1 << 20 }, disk, Rc::new(Cell::new(false)));
    for n in 0..1_000u32 {
        assert_eq!(store.get(&n.to_be_bytes()).expect("reads"), None);
    }
    assert!(store.cache().rows_known() <= 21, "{}", store.cache().rows_known());
    assert_eq!(store.cache().dirty_rows(), 0);
}

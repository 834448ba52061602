//! Every file that nm and shims read back, with anything at its place: it is told and set aside, or refused by its name;
//! nobody panics, waits or reads without an end.

use std::fs;
use std::path::Path;

use nm_shim::files;
use nm_shim::{Claim, ExitFile, ProcessFile};
use proptest::prelude::*;
use types::{ContainerId, Epoch, Incarnation, Timestamp};

use crate::age::Ages;
use crate::root::Root;
use crate::{state, watch};

/// What lies where a file should be.
#[derive(Debug, Clone)]
enum Thing {
    Bytes(Vec<u8>),
    Link,
    Pipe,
    Folder,
    /// A file that seems to be a terabyte.
    Sparse,
}

impl Thing {
    fn put(&self, at: &Path) {
        let _ = fs::remove_file(at);
        match self {
            Thing::Bytes(bytes) => fs::write(at, bytes).unwrap(),
            Thing::Link => std::os::unix::fs::symlink("/dev/zero", at).unwrap(),
            Thing::Pipe => rustix::fs::mkfifoat(rustix::fs::CWD, at, rustix::fs::Mode::RWXU).unwrap(),
            Thing::Folder => fs::create_dir(at).unwrap(),
            Thing::Sparse => fs::File::create(at).unwrap().set_len(1 << 40).unwrap(),
        }
    }
}

/// Pieces of what such files hold, so that some of it is nearly right.
const PIECES: [&str; 16] = [
    "{",
    "}",
    "[",
    "null",
    "\"job\":",
    "{\"name\":\"a\",\"id\":\"1\"}",
    "\"uid\":",
    "4294967296",
    "-1",
    ",",
    "\"shim\":",
    "{\"pid\":1,\"start_ticks\":2}",
    "\"state_id\":",
    "\"x\"",
    "\"code\":",
    "1e400",
];

fn thing() -> impl Strategy<Value = Thing> {
    let pieces = prop::collection::vec(prop::sample::select(&PIECES[..]), 0..12);
    prop_oneof![
        4 => pieces.prop_map(|pieces| Thing::Bytes(pieces.concat().into_bytes())),
        2 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Thing::Bytes),
        1 => Just(Thing::Link),
        1 => Just(Thing::Pipe),
        1 => Just(Thing::Folder),
        1 => Just(Thing::Sparse),
    ]
}

fn id() -> ContainerId {
    ContainerId(Incarnation { epoch: Epoch(7), seq: 1 })
}

/// Those without which nm does not start.
const NEEDED: [&str; 2] = ["node.json", "nm.lock"];

/// Where they are, below the node's folder.
fn places() -> Vec<String> {
    let others =
        ["clock.json", "lease", "jobs/a-1.json", "jobs/b-1.json", "state/a-1/.job", "state/c-1/.job"];
    let of_container = ["record.json", "shim.json", "process.json", "exit.json", "given/am-address"];
    let of_container = of_container.map(|name| format!("containers/{}/{name}", id()));
    NEEDED.into_iter().chain(others).map(str::to_owned).chain(of_container).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_lies_where_files_are_read_back_nm_goes_on_or_names_it(
        things in prop::collection::vec((0..places().len(), thing()), 1..8)
    ) {
        let dir = tempfile::tempdir().unwrap();
        drop(Root::open(dir.path()).unwrap());
        for folder in ["state/a-1", "state/c-1", "logs", &format!("containers/{}/given", id())] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (place, thing) in &things {
            let at = dir.path().join(&places()[*place]);
            if !at.is_dir() {
                thing.put(&at);
            }
        }
        let root = match Root::open(dir.path()) {
            Ok(root) => root,
            Err(error) => {
                let told = format!("{error:#}");
                prop_assert!(NEEDED.iter().any(|name| told.contains(name)), "{told}");
                return Ok(());
            }
        };
        let container = root.container(id());
        let _ = files::read::<Claim>(&container, files::CLAIM);
        let _ = files::read::<ProcessFile>(&container, files::PROCESS);
        let _ = files::read::<ExitFile>(&container, files::EXIT);
        let _ = watch::claimed(&container);
        let _ = watch::look(&container);
        let _ = Ages::look(&root);
        let _ = root.write_lease(Timestamp(5));
        prop_assert!(root.records().is_ok());
        prop_assert!(state::scan(&root).is_empty());
        prop_assert!(root.clear().is_ok());
    }
}

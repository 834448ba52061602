//! The house's rules, checked: who may import whom, what a file may hold, that the documents name files that exist.

#[path = "tidy/floors.rs"]
mod floors;
#[path = "tidy/source.rs"]
mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

use source::{Function, SourceFile};

/// Lines a file may have.
const FILE_LINES: usize = 600;
/// Lines a function may have outside tests.
const FUNCTION_LINES: usize = 70;
/// Where `unsafe` is allowed, with the reason on the module itself.
const UNSAFE: [&str; 3] =
    ["container/kafka/src/native", "container/src/allocator.rs", "node-manager/shim/src/sys"];
/// Macros that mean "not done".
const UNFINISHED: [&str; 4] = ["todo!", "unimplemented!", "dbg!", "FIXME"];
/// What logic must not name: time is a parameter, effects are values.
const IMPURE: [&str; 12] = [
    "tokio",
    "tonic",
    "rdkafka",
    "rocksdb",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "rand::",
];
/// The folders of logic crates.
const LOGIC: [&str; 8] = [
    "proto/types/src",
    "proto/session/src",
    "client/job-file/src",
    "resource-manager/core/src",
    "node-manager/core/src",
    "app-master/core/src",
    "container/core/src",
    "container/api/src",
];
/// Names that say nothing.
const EMPTY_NAMES: [&str; 5] = ["util", "utils", "helper", "helpers", "common"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The repository's files with the ending `extension`, tracked or about to be.
fn files(extension: &str) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", &format!("*.{extension}")])
        .current_dir(root())
        .output();
    let paths: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(PathBuf::from).filter(|path| root().join(path).is_file()).collect()
        }
        _ => panic!("tidy lists files with git, in a clone"),
    };
    assert!(!paths.is_empty(), "git lists no *.{extension} file");
    paths
}

fn rust_sources() -> Vec<SourceFile> {
    files("rs").iter().map(|path| SourceFile::read(&root(), path)).collect()
}

fn report(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

#[test]
fn crates_import_only_what_their_floor_allows() {
    report("edges that the floors lack (tests/tests/tidy/floors.rs)", &floors::broken(&root()));
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut broken = Vec::new();
    for file in rust_sources() {
        if file.lines() > FILE_LINES {
            broken.push(format!("{}: {} lines, at most {FILE_LINES}", file.name, file.lines()));
        }
        if !file.text.trim_start().starts_with("//!") {
            broken.push(format!("{}: does not start with a //! header", file.name));
        }
        let stem = Path::new(&file.name).file_stem().unwrap().to_string_lossy().into_owned();
        if EMPTY_NAMES.contains(&stem.as_str()) {
            broken.push(format!("{}: `{stem}` says nothing", file.name));
        }
    }
    report("files", &broken);
}

#[test]
fn functions_are_short() {
    let mut broken = Vec::new();
    for file in rust_sources().iter().filter(|file| !file.is_test()) {
        for Function { name, line, lines } in file.functions() {
            if lines > FUNCTION_LINES {
                broken.push(format!(
                    "{}:{line}: fn {name} has {lines} lines, at most {FUNCTION_LINES}",
                    file.name
                ));
            }
        }
    }
    report("functions", &broken);
}

#[test]
fn unsafe_stays_in_its_modules() {
    let mut broken = Vec::new();
    for file in rust_sources() {
        if !UNSAFE.iter().any(|module| file.name.starts_with(module)) && file.names("unsafe") {
            broken.push(file.name.clone());
        }
    }
    report(&format!("`unsafe` outside {UNSAFE:?}"), &broken);
}

#[test]
fn nothing_unfinished_is_left() {
    let mut broken = Vec::new();
    for file in rust_sources().iter().filter(|file| !file.name.starts_with("tests/tests/tidy")) {
        for word in UNFINISHED.iter().filter(|word| file.code.contains(**word)) {
            broken.push(format!("{}: {word}", file.name));
        }
    }
    report("unfinished", &broken);
}

#[test]
fn logic_names_no_clock_no_runtime_and_no_input_or_output() {
    let mut broken = Vec::new();
    for file in rust_sources().iter().filter(|file| !file.is_test()) {
        if LOGIC.iter().any(|folder| file.name.starts_with(folder)) {
            for word in IMPURE.iter().filter(|word| file.code_outside_tests().contains(**word)) {
                broken.push(format!("{}: {word}", file.name));
            }
        }
    }
    report("logic that is not pure", &broken);
}

#[test]
fn documents_name_files_that_exist() {
    let mut broken = Vec::new();
    for document in files("md") {
        let text = std::fs::read_to_string(root().join(&document)).unwrap();
        for path in text.split('`').skip(1).step_by(2).filter(|word| looks_like_a_path(word)) {
            let path = path.trim_end_matches('/');
            if !root().join(path).exists() && !root().join(format!("{path}.rs")).exists() {
                broken.push(format!("{}: `{path}`", document.display()));
            }
        }
    }
    report("paths that do not exist", &broken);
}

/// Whether an inline code span names something in this repository: no blanks, and a first folder of ours.
fn looks_like_a_path(word: &str) -> bool {
    const TOP: [&str; 8] =
        ["proto", "resource-manager", "node-manager", "app-master", "container", "client", "tests", "deploy"];
    let Some((first, rest)) = word.split_once('/') else { return false };
    (TOP.contains(&first) || first == "docs")
        && !rest.is_empty()
        && !word.contains(|c: char| c.is_whitespace() || "*<>{}$".contains(c))
}

#[test]
fn rocksdb_is_built_at_the_version_that_is_linked() {
    let script = std::fs::read_to_string(root().join("deploy/rocksdb/build.sh")).unwrap();
    let env = std::fs::read_to_string(root().join("deploy/env.sh")).unwrap();
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let locked =
        lock.split("name = \"rocksdb\"\nversion = \"").nth(1).and_then(|rest| rest.split('"').next());
    let locked = locked.expect("Cargo.lock names rocksdb");
    assert!(
        script.contains(&format!("crate_version={locked} ")),
        "deploy/rocksdb/build.sh builds another than {locked}"
    );
    assert!(env.contains(&format!("/rocksdb/{locked}-")), "deploy/env.sh points to another than {locked}");
}

//! `samza new`: what it makes is a crate that builds, passes its own tests and runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn samza(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_samza"));
    command.current_dir(folder).arg("new").args(args).output().expect("the program runs")
}

fn made(folder: &Path) -> PathBuf {
    let output = samza(folder, &["my-job", "--samza", CHECKOUT]);
    let (told, bad) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{bad}");
    assert!(told.starts_with("my-job is there. Next:\n  cd my-job\n  cargo test\n  cargo local\n"), "{told}");
    folder.join("my-job")
}

/// Runs cargo in the crate and returns what it printed to stdout.
fn cargo(job: &Path, args: &[&str]) -> String {
    let target = job.join("target");
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(job).args(args).env("CARGO_TARGET_DIR", target);
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn text(job: &Path, name: &str) -> String {
    std::fs::read_to_string(job.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn a_new_job_has_all_its_files_and_nothing_is_left_to_fill_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let job = made(folder.path());
    let files = [
        ".cargo/config.toml",
        ".gitignore",
        "Cargo.toml",
        "README.md",
        "data/visits.jsonl",
        "job.toml",
        "rust-toolchain.toml",
        "src/main.rs",
        "src/tests.rs",
    ];
    for name in files {
        assert!(!text(&job, name).contains("{{"), "{name}");
    }
    let file = job_file::parse(&text(&job, "job.toml"), "job.toml").unwrap_or_else(|wrong| panic!("{wrong}"));
    assert_eq!(file.spec.job.name, "my-job");
    let metadata = cargo(&job, &["metadata", "--format-version", "1", "--offline", "--no-deps"]);
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("JSON");
    let package = &metadata["packages"][0];
    assert_eq!(
        (&package["name"], package["targets"][0]["kind"][0].as_str()),
        (&"my-job".into(), Some("bin"))
    );
    let path = package["dependencies"][0]["path"].as_str().expect("samza is a path");
    assert!(Path::new(path).join("Cargo.toml").is_file(), "{path}");
}

#[test]
fn a_folder_that_is_taken_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("mine")).expect("a folder");
    std::fs::write(folder.path().join("mine/notes"), "precious").expect("a file");
    let output = samza(folder.path(), &["my-job", "--path", "mine", "--samza", CHECKOUT]);
    assert_eq!(output.status.code(), Some(4));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(told, "samza: mine exists already; name another folder with --path\n");
    assert_eq!(std::fs::read_dir(folder.path().join("mine")).expect("it is there").count(), 1);
}

#[test]
fn a_bad_name_and_a_missing_checkout_are_told_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    for args in [&["My Job"][..], &["7up"], &["../x"], &["my-job", "--samza", "."]] {
        let output = samza(folder.path(), args);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {told}");
        assert!(
            told.contains("is not a name for a job's crate") || told.contains("is no checkout of samza"),
            "{told}"
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
}

/// A profile that differs would make every job compile all of samza and of what it depends on.
#[test]
fn a_new_job_is_compiled_as_samza_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let job = made(folder.path());
    let profile = |text: &str| {
        let manifest: toml::Table = text.parse().expect("a manifest");
        manifest["profile"].clone()
    };
    assert_eq!(profile(&text(&job, "Cargo.toml")), profile(&text(Path::new(CHECKOUT), "Cargo.toml")));
    let config: toml::Table = text(&job, ".cargo/config.toml").parse().expect("a configuration");
    let shared = Path::new(config["build"]["build-dir"].as_str().expect("a folder"));
    assert!(Path::new(env!("CARGO_BIN_EXE_samza")).starts_with(shared), "{}", shared.display());
}

/// As a new user would: it takes a minute or two; `make soak` runs it.
#[test]
#[ignore = "compiles a crate with all of samza; tests/soak.sh runs it"]
fn a_new_job_builds_passes_its_tests_and_runs_on_its_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let job = made(folder.path());
    let started = std::time::Instant::now();
    cargo(&job, &["build", "--offline"]);
    println!("samza new: built in {} s", started.elapsed().as_secs());
    cargo(&job, &["test", "--offline"]);
    cargo(&job, &["local"]);
    let pages = text(&job, "data/pages.jsonl");
    assert_eq!(pages.lines().count(), text(&job, "data/visits.jsonl").lines().count(), "{pages}");
    assert!(pages.contains(r#""visits":3,"ms":36"#), "{pages}");
    // It resumes: only what is new is counted.
    let more = text(&job, "data/visits.jsonl") + "{\"key\":\"/home\",\"value\":{\"ms\":4}}\n";
    std::fs::write(job.join("data/visits.jsonl"), more).expect("a file");
    cargo(&job, &["local"]);
    let last = text(&job, "data/pages.jsonl");
    assert!(last.lines().last().is_some_and(|line| line.contains(r#""visits":4,"ms":40"#)), "{last}");
}

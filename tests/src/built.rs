//! Whether a program that a test runs is of the sources as they are now. `cargo test --test NAME` builds the test and not
//! the programs that it starts: an old one would have the test judge code that is no longer there.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

const BUILD: &str = "run `cargo build --workspace --bins --examples` (or `make build`) first";

/// This program, if it is built and no older than what it is built of.
///
/// # Panics
/// It is not built, or one of its sources was changed since, or is gone.
#[must_use]
pub fn fresh(program: PathBuf) -> PathBuf {
    let built = modified(&program).unwrap_or_else(|| panic!("{} is not built: {BUILD}", program.display()));
    // Cargo says there what it was built of, outside the registry.
    let list = std::fs::read_to_string(program.with_extension("d")).unwrap_or_default();
    for source in sources(&list) {
        let is_newer = modified(&source).is_none_or(|changed| changed > built);
        assert!(!is_newer, "{} is older than {}: {BUILD}", program.display(), source.display());
    }
    program
}

fn modified(file: &Path) -> Option<SystemTime> {
    file.metadata().and_then(|of| of.modified()).ok()
}

/// Those of a file `<program>.d`: `<program>: <source> <source> …`, with spaces in names behind a `\`.
fn sources(list: &str) -> Vec<PathBuf> {
    let named = list.split_once(": ").map_or("", |(_, named)| named).replace("\\ ", "\0");
    named.split_whitespace().map(|source| source.replace('\0', " ").into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(program: PathBuf) -> Option<String> {
        let refused = std::panic::catch_unwind(|| fresh(program)).err()?;
        refused.downcast_ref::<String>().cloned()
    }

    #[test]
    fn a_program_is_refused_when_a_source_is_newer_or_gone_or_it_was_never_built() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let (source, program) = (at("its source.rs"), at("program"));
        assert!(
            told(program.clone()).is_some_and(|why| why.contains("program is not built: run `cargo build"))
        );
        std::fs::write(&source, "old").expect("writable");
        let path = source.display().to_string().replace(' ', "\\ ");
        std::fs::write(at("program.d"), format!("{}: {path}\n", program.display())).expect("writable");
        std::fs::write(&program, "built").expect("writable");
        assert_eq!(told(program.clone()), None);
        let later = SystemTime::now() + std::time::Duration::from_secs(1);
        std::fs::File::options().write(true).open(&source).expect("there").set_modified(later).expect("set");
        assert!(
            told(program.clone())
                .is_some_and(|why| why.contains("older than") && why.contains("its source.rs"))
        );
        std::fs::remove_file(source).expect("there");
        assert!(told(program).is_some_and(|why| why.contains("its source.rs")));
    }
}

//! `samza new my-job`: a crate with a small stateful job, its tests, its job file and data to try it on.

use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure};

/// Its files: the path in the crate and the text, where `{{…}}` stands for what is filled in.
const TEMPLATE: [(&str, &str); 8] = [
    ("Cargo.toml", include_str!("../template/Cargo.toml")),
    ("src/main.rs", include_str!("../template/src/main.rs")),
    ("src/tests.rs", include_str!("../template/src/tests.rs")),
    ("job.toml", include_str!("../template/job.toml")),
    ("data/visits.jsonl", include_str!("../template/data/visits.jsonl")),
    ("README.md", include_str!("../template/README.md")),
    (".gitignore", include_str!("../template/gitignore")),
    (".cargo/config.toml", include_str!("../template/cargo/config.toml")),
];

/// Where the `samza` crate is, unless told: in the checkout that this program was built from.
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What is to be made.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The crate's and the job's name.
    pub name: &'a str,
    /// Its folder; by default the name.
    pub path: Option<&'a Path>,
    /// A checkout of samza, if not the one this program was built from.
    pub samza: Option<&'a Path>,
}

/// Makes the crate; returns what to say about it.
///
/// # Errors
/// The name is not valid, the folder is taken, there is no checkout, or a file cannot be written.
pub fn new(request: &Request<'_>) -> Result<String, Failure> {
    valid_name(request.name)?;
    let checkout = checkout(request.samza.unwrap_or(Path::new(CHECKOUT)))?;
    let folder = request.path.map_or_else(|| PathBuf::from(request.name), Path::to_path_buf);
    if std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        let told = format!("{} exists already; name another folder with --path", folder.display());
        return Err(Failure::new(Code::Refused, told));
    }
    let rocksdb = rocksdb();
    let variables = rocksdb.as_ref().map_or_else(
        || "# ROCKSDB_LIB_DIR and ROCKSDB_STATIC, once `make setup` has run".to_owned(),
        |folder| format!("ROCKSDB_LIB_DIR = \"{folder}\"\nROCKSDB_STATIC = \"1\""),
    );
    let compiled = compiled().map_or_else(
        || "# build-dir, once samza is built where this user may write".to_owned(),
        |folder| format!("build-dir = \"{folder}\""),
    );
    let fill = |text: &str| {
        text.replace("{{name}}", request.name)
            .replace("{{samza}}", &checkout)
            .replace("{{rocksdb}}", &variables)
            .replace("{{compiled}}", &compiled)
    };
    for (name, text) in TEMPLATE {
        write(&folder.join(name), &fill(text))?;
    }
    // The versions and the compiler that the checkout was built with.
    for name in ["Cargo.lock", "rust-toolchain.toml"] {
        if let Ok(text) = std::fs::read_to_string(Path::new(&checkout).join(name)) {
            write(&folder.join(name), &text)?;
        }
    }
    let mut told =
        format!("{} is there. Next:\n  cd {}\n  cargo test\n  cargo local\n", request.name, folder.display());
    let there = rocksdb.as_ref().is_some_and(|folder| Path::new(folder).join("librocksdb.a").is_file());
    if !there {
        told.push_str(&format!(
            "note: RocksDB is not compiled on this machine yet, which would take ten minutes for each new job; \
             `make setup` in {checkout} does it once\n"
        ));
    }
    Ok(told)
}

/// The name of a crate, of a binary and of a job.
fn valid_name(name: &str) -> Result<(), Failure> {
    let begins_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    let legal = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
    if begins_well && legal && name.len() <= 64 && !["test", "samza"].contains(&name) {
        return Ok(());
    }
    let told = format!(
        "`{}` is not a name for a job's crate; valid: up to 64 lower-case letters, digits, `-` and `_`, beginning with a \
         letter, such as my-job",
        name.escape_debug()
    );
    Err(Failure::new(Code::Usage, told))
}

/// The absolute path of a checkout, fit for a TOML string.
fn checkout(path: &Path) -> Result<String, Failure> {
    let absolute = path.canonicalize().ok().filter(|path| path.join("container/Cargo.toml").is_file());
    let text = absolute.as_deref().and_then(Path::to_str).filter(|text| !text.contains(['"', '\\', '\n']));
    text.map(str::to_owned).ok_or_else(|| {
        let told = format!("{} is no checkout of samza; name one with --samza PATH", path.display());
        Failure::new(Code::Usage, told)
    })
}

/// Where RocksDB's static library is: as this shell says, else as it was when this program was built.
fn rocksdb() -> Option<String> {
    let here = std::env::var("ROCKSDB_LIB_DIR").ok().filter(|path| !path.is_empty());
    here.or_else(|| option_env!("ROCKSDB_LIB_DIR").map(str::to_owned))
        .filter(|path| !path.contains(['"', '\\', '\n']))
}

/// The target folder that this program was built in, if it is still in it and may be written to: its crates are compiled
/// with the template's profile and need not be compiled again for a job.
fn compiled() -> Option<String> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?.parent()?;
    let cargos = folder.join("CACHEDIR.TAG").is_file();
    let ours = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    let text = folder.to_str().filter(|path| cargos && ours && !path.contains(['"', '\\', '\n']));
    text.map(str::to_owned)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let made =
        path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(path, text));
    made.map_err(|error| Failure::other(format!("cannot write {}: {error}", path.display())))
}

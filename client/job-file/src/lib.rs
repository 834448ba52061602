//! job.toml to [`JobSpec`]: typed, with defaults filled in, and with errors that name the key, its line and what
//! would be valid. All errors of a file are found in one go.
//!
//! Pure: a text in, a spec or problems out. Whether the package exists and the brokers answer is the client's
//! question; [`JobFile::at`] lets it answer in the same form. `docs/job-file.md` is the reference for people.

mod check;
mod client_settings;
mod keys;
mod package;
mod problem;
mod render;
mod sections;
mod security;
mod start_point;
mod stores;
mod streams;
mod table;
mod topic_config;
mod units;
mod value;

use std::collections::BTreeMap;

use types::JobSpec;

pub use keys::nearest;
pub use problem::{Problem, Problems};
pub use render::render;
pub use start_point::{print_start_point, start_point};
pub use units::{MEMORY_FORM, memory_bytes};

/// A job file that is valid.
#[derive(Debug, Clone, PartialEq)]
pub struct JobFile {
    /// The job, with defaults filled in. `package.source` is the path or URL as written; only a URL's
    /// `package.artefact` is known.
    pub spec: JobSpec,
    /// The file's name as it was given to [`parse`].
    pub name: String,
    lines: BTreeMap<String, usize>,
}

impl JobFile {
    /// The line, from 1, of a key's full path such as `package.path`; none if the file does not have it.
    #[must_use]
    pub fn line_of(&self, key: &str) -> Option<usize> {
        self.lines.get(key).copied()
    }

    /// The full path of the key that names the file of the secret `name` of [`types::PackageSpec::secrets`].
    #[must_use]
    pub fn secret_key(&self, name: &str) -> String {
        security::secret_key(name)
    }

    /// A problem with the value of `key` that only the outside could find, such as a missing file.
    #[must_use]
    pub fn at(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem {
            file: self.name.clone(),
            line: self.line_of(key),
            key: key.to_owned(),
            message: format!("`{key}`: {}", message.into()),
        }
    }
}

/// Reads the text of a job file; `name` is what errors call the file.
///
/// # Errors
/// Everything that is wrong with it, in the order of its lines. Of a text that is not TOML only the syntax errors
/// are told.
pub fn parse(text: &str, name: &str) -> Result<JobFile, Problems> {
    let source = problem::Source::new(name, text);
    let (root, syntax) = toml::de::DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let mut problems: Vec<Problem> =
            syntax.iter().map(|error| source.syntax(error.span(), error.message())).collect();
        problems.sort_by_key(|problem| problem.line);
        return Err(Problems(problems));
    }
    let file = table::File::new(&source);
    let spec = sections::job(&file, root.get_ref());
    check::references(&file, &spec);
    let (problems, lines) = file.finish();
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    Ok(JobFile { spec, name: name.to_owned(), lines })
}

//! How many files and connections this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Where the hard limit says "any number".
const PLENTY: u64 = 1 << 20;

/// Raises the soft limit of open files, which is for programs that use `select`, to the hard one. What this process starts
/// inherits it. Returns what may be open then.
#[must_use]
pub fn raise_open_files() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let soft = current.unwrap_or(PLENTY);
    let most = maximum.unwrap_or(PLENTY).min(PLENTY);
    if most <= soft {
        return soft;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }) {
        Ok(()) => most,
        Err(error) => {
            warn!(%error, soft, "cannot raise the limit of open files");
            soft
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_may_be_open_as_the_machine_lets_us() {
        let may = raise_open_files();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current.unwrap_or(PLENTY), may);
        assert!(maximum.is_none_or(|most| may >= most.min(PLENTY)), "{may} of {maximum:?}");
    }
}

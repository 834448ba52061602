//! What a job needs to know and nobody else may see.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A job's secrets by name. They travel from the client to the work directories of the job's containers and are part
/// of no report, no job specification and no environment. Prints its names only.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secrets(pub BTreeMap<String, String>);

impl Secrets {
    /// The most that all of a job's secrets may hold together, bytes: keys and certificates, not data.
    pub const MAX_BYTES: usize = 256 << 10;

    /// Names and contents together, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, text)| name.len() + text.len()).sum()
    }

    /// Whether `name` can be a secret's: it becomes a file's.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(plain)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, "***"))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_print_their_names_only() {
        let secrets = Secrets(BTreeMap::from([("PASSWORD".into(), "swordfish".into())]));
        assert_eq!(format!("{secrets:?}"), r#"{"PASSWORD": "***"}"#);
    }

    #[test]
    fn a_name_is_a_plain_file_name() {
        assert!(Secrets::is_name("kafka.password"));
        for name in ["", "..", "a/b", ".hidden", "a b"] {
            assert!(!Secrets::is_name(name), "{name}");
        }
    }
}

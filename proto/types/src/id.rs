//! Names of things: applications, attempts, containers, nodes; and the two orders that fencing rests on,
//! [`Epoch`] and [`Incarnation`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not the printed form of the id it was parsed as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct ParseIdError {
    /// The text as given.
    pub text: String,
    /// What would be valid, with an example.
    pub expected: &'static str,
}

/// The life of one resource manager. A new one is `max(stored + 1, unix milliseconds)`, so that a resource
/// manager that lost its store still mints higher ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// (resource manager epoch, container sequence). Minted by the resource manager alone; higher is newer, everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation {
    /// The epoch of the resource manager that minted it.
    pub epoch: Epoch,
    /// Its number within the epoch, from 1.
    pub seq: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch.0, self.seq)
    }
}

impl FromStr for Incarnation {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bad = || ParseIdError { text: text.into(), expected: "an incarnation such as 1763800000000-7" };
        let (epoch, seq) = text.split_once('-').ok_or_else(bad)?;
        Ok(Incarnation {
            epoch: Epoch(epoch.parse().map_err(|_| bad())?),
            seq: seq.parse().map_err(|_| bad())?,
        })
    }
}

/// A container: the incarnation under which it was allocated. One id runs at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ContainerId(pub Incarnation);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container_{}_{:06}", self.0.epoch.0, self.0.seq)
    }
}

impl FromStr for ContainerId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bad = || ParseIdError {
            text: text.into(),
            expected: "a container id such as container_1763800000000_000007",
        };
        let rest = text.strip_prefix("container_").ok_or_else(bad)?;
        let (epoch, seq) = rest.split_once('_').ok_or_else(bad)?;
        Ok(ContainerId(Incarnation {
            epoch: Epoch(epoch.parse().map_err(|_| bad())?),
            seq: seq.parse().map_err(|_| bad())?,
        }))
    }
}

/// Serialises an id as its printed form, so that it can be a JSON object's key.
macro_rules! serde_as_text {
    ($($id:ty),*) => {$(
        impl Serialize for $id {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(Incarnation, ContainerId);

/// A name that is its own text.
macro_rules! text_id {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                $name(text.to_owned())
            }
        }
    )*};
}

text_id! {
    /// One submitted application, `application_<epoch>_<number>`, minted by the resource manager.
    AppId,
    /// A machine with a node manager: `nm --node-id`, else its first host name.
    NodeId,
    /// A task, `Partition <n>` under the default grouper (Samza's names).
    TaskName,
    /// An artefact's content: its lower-case hexadecimal SHA-256.
    Digest,
}

/// A job's identity: two applications of one (name, id) are never alive together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct JobId {
    /// `job.name`.
    pub name: String,
    /// `job.id`, "1" unless given.
    pub id: String,
}

impl fmt::Display for JobId {
    /// `<name>-<id>`, the form that topics, transactional ids and state directories carry.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.name, self.id)
    }
}

/// An ask's one-shot name: the attempt that made it, the slot it is for and its try, all from 1 but the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct RequestId {
    /// The application attempt that asks.
    pub attempt: u32,
    /// The container's logical number in the job, from 0.
    pub slot: u32,
    /// The try of this slot in this attempt; spent when its container exits.
    pub try_no: u32,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.attempt, self.slot, self.try_no)
    }
}

/// One life of a machine's node manager state: a new boot id means the old containers are gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NodeIncarnation {
    /// The kernel's `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Random, written once into the node's root folder: a wiped root is another node.
    pub state_id: String,
}

/// Milliseconds on the clock of the process that made it (its own start, or boot, is the origin).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment plus `ms` milliseconds.
    #[must_use]
    pub fn plus(self, ms: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(ms))
    }
    /// Milliseconds from `earlier` to this moment, zero if it is later.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
impl Digest {
    /// Whether it is one: 64 lower-case hexadecimal digits. Digests come from other machines and become file names.
    #[must_use]
    pub fn is_sha256(&self) -> bool {
        self.0.len() == 64 && self.0.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    }
}

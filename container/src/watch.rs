//! Whether the topics that a thread reads are still those that it began with. A consumer does not notice when a topic is
//! deleted and made again: it would go on in the new one at the old one's offset, and pass over what is before it.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use task_api::system::{SystemAdmin, SystemError};
use tracing::{debug, warn};

/// The topics of one system.
pub(crate) struct Topics {
    pub(crate) admin: Arc<dyn SystemAdmin>,
    /// By topic, the id that it had.
    pub(crate) ids: BTreeMap<String, String>,
}

/// Looks at topics now and then, on a thread of its own, until it is dropped.
pub(crate) struct Watch {
    of: Arc<Vec<Topics>>,
    found: Arc<OnceLock<String>>,
    _alive: Sender<()>,
}

/// How often it is looked. Meanwhile checkpoints carry the old topic's id, so that a restart knows as well.
pub(crate) const EVERY: Duration = Duration::from_secs(20);

impl Watch {
    pub(crate) fn start(of: Vec<Topics>, every: Duration) -> Watch {
        let found = Arc::new(OnceLock::new());
        let (alive, over) = mpsc::channel();
        let of = Arc::new(of);
        let (tell, topics) = (Arc::clone(&found), Arc::clone(&of));
        let look = move || {
            while over.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                if let Some(what) = topics.iter().find_map(Topics::look) {
                    let _ = tell.set(what);
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("topics-watch".into()).spawn(look) {
            warn!(%error, "nobody looks whether input topics are made again");
        }
        Watch { of, found, _alive: alive }
    }

    /// Looks now: that a topic is another one explains why it cannot be read.
    pub(crate) fn look(&self) -> Option<String> {
        self.of.iter().find_map(Topics::look)
    }

    /// What was found, if a topic is not the one it was.
    pub(crate) fn found(&self) -> Option<&str> {
        self.found.get().map(String::as_str)
    }
}

impl Topics {
    fn look(&self) -> Option<String> {
        let names: Vec<String> = self.ids.keys().cloned().collect();
        let found = match self.admin.describe(&names) {
            Ok(found) => found,
            Err(SystemError::Retriable(error) | SystemError::Fatal(error)) => {
                debug!(%error, "cannot look at the input topics now");
                return None;
            }
            Err(SystemError::Fenced(_) | SystemError::Refused(_)) => return None,
        };
        for name in names.iter().filter(|name| !found.iter().any(|topic| topic.topic == **name)) {
            warn!("input topic {name} is not there: waiting for it");
        }
        let other =
            found.iter().find(|topic| self.ids.get(&topic.topic).is_some_and(|id| *id != topic.topic_id))?;
        Some(format!(
            "topic {} was deleted and made again: the container must look anew where to go on in it",
            other.topic
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Broker, FakeSystem};
    use crate::systems::System;

    #[test]
    fn a_topic_that_is_made_again_is_told_and_one_that_is_gone_is_waited_for() {
        let broker = Broker::default();
        broker.topic("in", 1);
        let admin = FakeSystem::new(&broker, None, None, None).admin();
        let described = admin.describe(&["in".to_owned()]).expect("it is there");
        let ids = BTreeMap::from([("in".to_owned(), described[0].topic_id.clone())]);
        let topics = Topics { admin, ids };
        assert_eq!(topics.look(), None);
        broker.delete("in");
        assert_eq!(topics.look(), None);
        broker.topic("in", 1);
        let ids = topics.ids.clone();
        let patient = Watch::start(vec![Topics { admin: Arc::clone(&topics.admin), ids }], Duration::MAX);
        assert!(patient.look().is_some_and(|what| what.contains("topic in was deleted and made again")));
        let watch = Watch::start(vec![topics], Duration::from_millis(1));
        while watch.found().is_none() {
            std::thread::yield_now();
        }
        assert!(watch.found().is_some_and(|what| what.contains("topic in was deleted and made again")));
    }
}

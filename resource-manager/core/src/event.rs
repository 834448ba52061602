//! Every verb as data: for the simulator and for replay.

use types::{AmHello, AmWelcome, AppId, FromAm, FromNode, JobId, NodeHello, NodeId, NodeWelcome, Timestamp};

use crate::RmCore;
use crate::client::Submit;
use crate::command::{Command, Denied};

/// One verb with its arguments.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// [`RmCore::submit`].
    Submit(Box<Submit>),
    /// [`RmCore::stop`].
    Stop {
        /// The application or job.
        name: String,
        /// Without grace.
        kill: bool,
    },
    /// [`RmCore::purge`].
    Purge(JobId),
    /// [`RmCore::drain`].
    Drain {
        /// The node.
        node: NodeId,
        /// From TERM to KILL, ms; none takes it back.
        grace_ms: Option<u64>,
    },
    /// [`RmCore::node_hello`].
    NodeHello(Box<NodeHello>),
    /// [`RmCore::node_item`].
    NodeItem {
        /// The node.
        node: NodeId,
        /// The session it came on.
        session: u64,
        /// The item.
        item: FromNode,
    },
    /// [`RmCore::node_gone`].
    NodeGone {
        /// The node.
        node: NodeId,
        /// The session that is over.
        session: u64,
    },
    /// [`RmCore::am_hello`].
    AmHello(Box<AmHello>),
    /// [`RmCore::am_item`].
    AmItem {
        /// The application.
        app: AppId,
        /// The session it came on.
        session: u64,
        /// The item.
        item: FromAm,
    },
    /// [`RmCore::am_gone`].
    AmGone {
        /// The application.
        app: AppId,
        /// The session that is over.
        session: u64,
    },
    /// [`RmCore::handle_deadline`].
    Deadline,
}

/// What a verb answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing to say.
    Done,
    /// The application.
    App(AppId),
    /// To the node.
    NodeWelcome(NodeWelcome),
    /// To the application master.
    AmWelcome {
        /// The session's number.
        session: u64,
        /// The answer.
        welcome: Box<AmWelcome>,
    },
}

impl RmCore {
    /// Applies one event.
    ///
    /// # Errors
    /// The verb's.
    pub fn apply(&mut self, now: Timestamp, event: Event, out: &mut Vec<Command>) -> Result<Outcome, Denied> {
        match event {
            Event::Submit(submit) => self.submit(now, *submit, out).map(Outcome::App),
            Event::Stop { name, kill } => self.stop(now, &name, kill, out).map(Outcome::App),
            Event::Purge(job) => self.purge(now, &job, out).map(|()| Outcome::Done),
            Event::Drain { node, grace_ms } => self.drain(now, &node, grace_ms, out).map(|()| Outcome::Done),
            Event::NodeHello(hello) => self.node_hello(now, *hello, out).map(Outcome::NodeWelcome),
            Event::NodeItem { node, session, item } => {
                self.node_item(now, &node, session, item, out).map(|()| Outcome::Done)
            }
            Event::NodeGone { node, session } => {
                self.node_gone(&node, session);
                Ok(Outcome::Done)
            }
            Event::AmHello(hello) => self
                .am_hello(now, *hello, out)
                .map(|(session, welcome)| Outcome::AmWelcome { session, welcome: Box::new(welcome) }),
            Event::AmItem { app, session, item } => {
                self.am_item(now, &app, session, item, out).map(|()| Outcome::Done)
            }
            Event::AmGone { app, session } => {
                self.am_gone(&app, session);
                Ok(Outcome::Done)
            }
            Event::Deadline => {
                self.handle_deadline(now, out);
                Ok(Outcome::Done)
            }
        }
    }
}

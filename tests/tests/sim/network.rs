//! Links: ordered, delayed, cut and lost, as TCP connections are. What was sent on a link that is lost before it
//! arrives never arrives.

use std::collections::BTreeMap;

use types::{
    AmHello, AmWelcome, CommandStamp, ContainerHello, ContainerId, ContainerStatus, FromAm, FromNode,
    NodeHello, NodeWelcome, ToAm, ToNode,
};

/// A link's number.
pub type LinkId = u64;

/// Who dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialler {
    /// A node manager, by its place.
    Node(usize),
    /// An application master, by its container.
    Master(ContainerId),
    /// A container, towards its application master.
    Worker(ContainerId),
}

/// Who listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listener {
    /// The resource manager.
    ResourceManager,
    /// An application master.
    Master(ContainerId),
}

/// What travels.
#[derive(Debug, Clone)]
pub enum Message {
    NodeHello(Box<NodeHello>),
    NodeWelcome(NodeWelcome),
    FromNode(FromNode),
    ToNode(CommandStamp, Box<ToNode>),
    AmHello(Box<AmHello>),
    AmWelcome(Box<AmWelcome>),
    FromAm(Box<FromAm>),
    ToAm(Box<ToAm>),
    WorkerHello(Box<ContainerHello>),
    WorkerWelcome(Box<types::ContainerModel>),
    FromWorker(Box<ContainerStatus>),
    /// The listener refuses; true if for good.
    Refused(bool),
}

/// One end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Dialler,
    Listener,
}

/// A connection.
#[derive(Debug, Clone)]
pub struct Link {
    pub dialler: Dialler,
    pub listener: Listener,
    /// The machines at its ends; none is the resource manager's.
    pub machines: (Option<usize>, Option<usize>),
    /// The session's number at the resource manager, once welcomed.
    pub session: Option<u64>,
    /// Whether each end still believes in it.
    pub dialler_up: bool,
    pub listener_up: bool,
    /// When the last message of each direction arrives.
    pub last_to_listener: u64,
    pub last_to_dialler: u64,
}

/// All connections and cuts.
#[derive(Debug, Default)]
pub struct Network {
    pub links: BTreeMap<LinkId, Link>,
    next: LinkId,
    /// Pairs of machines that cannot hear each other, and until when.
    pub cuts: BTreeMap<(Option<usize>, Option<usize>), u64>,
}

impl Network {
    /// Opens a link.
    pub fn open(
        &mut self,
        now: u64,
        dialler: Dialler,
        listener: Listener,
        machines: (Option<usize>, Option<usize>),
    ) -> LinkId {
        self.next += 1;
        let link = Link {
            dialler,
            listener,
            machines,
            session: None,
            dialler_up: true,
            listener_up: true,
            last_to_listener: now,
            last_to_dialler: now,
        };
        self.links.insert(self.next, link);
        self.next
    }

    /// Whether the two machines can hear each other; until when not.
    pub fn cut_until(&self, machines: (Option<usize>, Option<usize>)) -> Option<u64> {
        if machines.0 == machines.1 {
            return None;
        }
        let pair = if machines.0 <= machines.1 { machines } else { (machines.1, machines.0) };
        self.cuts.get(&pair).copied()
    }

    /// When a message sent now with this delay arrives; none if that end is gone.
    pub fn arrival(&mut self, now: u64, link: LinkId, to: End, delay: u64) -> Option<u64> {
        let cut =
            self.links.get(&link).and_then(|link| self.cut_until(link.machines)).filter(|until| *until > now);
        let link = self.links.get_mut(&link)?;
        let (up, last) = match to {
            End::Dialler => (link.dialler_up, &mut link.last_to_dialler),
            End::Listener => (link.listener_up, &mut link.last_to_listener),
        };
        if !up {
            return None;
        }
        let at = (now.max(cut.unwrap_or(0)) + delay).max(*last);
        *last = at;
        Some(at)
    }

    /// The link of this session at the resource manager.
    pub fn of_session(&self, session: u64) -> Option<LinkId> {
        let is = |link: &Link| {
            link.session == Some(session) && link.listener_up && link.listener == Listener::ResourceManager
        };
        self.links.iter().rev().find(|(_, link)| is(link)).map(|(id, _)| *id)
    }

    /// Forgets links that both ends have given up.
    pub fn sweep(&mut self) {
        self.links.retain(|_, link| link.dialler_up || link.listener_up);
    }
}

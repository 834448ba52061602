//! Rebuilding from the store. What was live is held as it was until its nodes have reported or their leases are
//! over; nothing is started or stopped for it before.

use std::collections::{BTreeMap, BTreeSet};

use types::{ContainerState, Epoch, Role, Timestamp};

use crate::app::{App, Attempt};
use crate::command::Stored;
use crate::container::Container;
use crate::node::{Liveness, Nodes};
use crate::placing::Queue;
use crate::timers::{TimerKey, Timers};
use crate::{Config, RmCore};

impl RmCore {
    /// A core of life `epoch`, which must be higher than any before it and already stored, over what was stored.
    #[must_use]
    pub fn new(config: Config, epoch: Epoch, now: Timestamp, stored: Stored) -> RmCore {
        let mut core = RmCore {
            started_unix_ms: config.unix_at_zero_ms + now.0,
            config,
            epoch,
            next_seq: 1,
            next_app: 1,
            next_order: 1,
            next_session: 1,
            nodes: Nodes::default(),
            apps: BTreeMap::new(),
            orders: BTreeMap::new(),
            live: BTreeMap::new(),
            clients: BTreeMap::new(),
            containers: BTreeMap::new(),
            queue: Queue::default(),
            timers: Timers::default(),
            awaited: BTreeSet::new(),
            judge_from: now,
            place_due: None,
        };
        for node in stored.nodes {
            let ix = core.nodes.add_stored(node, now);
            if core.nodes.get(ix).liveness == Liveness::Suspect {
                core.awaited.insert(ix);
                core.timers.arm(TimerKey::Node(ix), now.plus(core.config.lost_ms()));
            }
        }
        let mut apps = stored.apps;
        apps.sort_by(|a, b| (a.submitted_unix_ms, &a.app).cmp(&(b.submitted_unix_ms, &b.app)));
        for stored in apps {
            core.recover_app(now, stored);
        }
        core
    }

    fn recover_app(&mut self, now: Timestamp, stored: crate::StoredApp) {
        let master = stored.master.clone();
        let order = self.next_order;
        self.next_order += 1;
        let mut app = App::from_stored(stored, order, now);
        let id = app.id.clone();
        if !app.state.is_over() {
            match master.and_then(|master| Some((master.container, self.nodes.ix(&master.node)?))) {
                Some((container, node)) => {
                    let resource = app.spec.app_master;
                    app.containers.insert(container);
                    self.nodes.get_mut(node).hold(container, resource);
                    self.containers.insert(
                        container,
                        Container {
                            id: container,
                            app: id.clone(),
                            role: Role::AppMaster { attempt: app.attempt_no },
                            node,
                            resource,
                            state: ContainerState::Allocated,
                            pid: None,
                            started_unix_ms: None,
                            ended_unix_ms: None,
                            usage: None,
                            stop: None,
                            acked: false,
                            settled: false,
                        },
                    );
                    if self.nodes.get(node).liveness == Liveness::Lost {
                        // Its node's loss was stored, what followed from it was not.
                        self.awaited.insert(node);
                        self.timers.arm(TimerKey::Node(node), now.plus(self.config.lost_ms()));
                        self.nodes.get_mut(node).liveness = Liveness::Suspect;
                    }
                }
                None => {
                    app.attempt = Attempt::Scheduling;
                    app.master = None;
                }
            }
            if app.waits_for.is_none() {
                self.live.insert(app.job().clone(), id.clone());
            }
        }
        self.clients.insert(app.client_id.clone(), id.clone());
        self.orders.insert(order, id.clone());
        self.apps.insert(id.clone(), app);
        self.timers.arm(TimerKey::App(id.clone()), now);
        self.queue_master(now, &id);
    }
}

//! A master on a stage: a job, its facts, and a resource manager that does what the test says.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;

use am_core::place::{Broker, Facts, PartitionPlace, Remembered, SlotPlace, Topology};
use am_core::{AmCore, AmIdentity, Command};
use types::*;

pub fn spec(containers: u32) -> JobSpec {
    let kafka = SystemSpec {
        kind: SystemKind::Kafka,
        bootstrap: "127.0.0.1:9092".into(),
        consumer: BTreeMap::new(),
        producer: BTreeMap::new(),
        replication: None,
        path: None,
        security: None,
    };
    let store = StoreSpec {
        cache_rows: 1000,
        ..StoreSpec::with_changelog(Some("j-1-seen-changelog".into()), "kafka")
    };
    JobSpec {
        job: JobId { name: "j".into(), id: "1".into() },
        queue: "default".into(),
        priority: 0,
        app_master: Resource { memory_bytes: 64 << 20, cpu_millis: 100 },
        package: PackageSpec {
            source: "job".into(),
            artefact: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        },
        containers: ContainersSpec {
            count: containers,
            resource: Resource { memory_bytes: 512 << 20, cpu_millis: 500 },
            threads: 1,
            cpu_limit_millis: None,
        },
        task: TaskSpec {
            inputs: vec!["kafka.in".into()],
            former_inputs: Vec::new(),
            on_input_growth: types::OnInputGrowth::Fail,
            window_ms: None,
            commit_ms: 1000,
            delivery: Delivery::ExactlyOnce,
            grouper: Grouper::Partition,
            timers: false,
            concurrency: 16,
            state_lost: StateLost::Fail,
            stuck_after_ms: Some(types::STUCK_AFTER_MS),
            config: BTreeMap::new(),
        },
        systems: BTreeMap::from([("kafka".to_owned(), kafka)]),
        streams: BTreeMap::new(),
        stores: BTreeMap::from([("seen".to_owned(), store)]),
        placement: PlacementSpec {
            wait_ms: 1000,
            rack_wait_ms: 1000,
            host_affinity: true,
            on_lease_loss: OnLeaseLoss::Keep,
            labels: BTreeMap::new(),
            spread: Spread::None,
        },
        errors: ErrorsSpec::default(),
        restart: RestartSpec {
            retries: 3,
            window_ms: 300_000,
            backoff_min_ms: 1000,
            backoff_max_ms: 4000,
            on_exhausted: OnExhausted::Fail,
        },
        metadata: MetadataSpec::default(),
    }
}

pub fn kafka_in() -> SystemStream {
    SystemStream { system: "kafka".into(), stream: "in".into() }
}

/// `leaders[p]` is partition p's leader; the next broker holds a replica. Broker n is host 127.0.0.n, rack rn.
pub fn topology(brokers: i32, leaders: &[i32]) -> Topology {
    let broker = |id: i32| Broker {
        host: format!("127.0.0.{id}"),
        aliases: vec![format!("b{id}")],
        rack: format!("r{id}"),
    };
    let place = |l: &i32| PartitionPlace { leader: Some(*l), replicas: vec![*l, l % brokers + 1] };
    Topology {
        brokers: BTreeMap::from([("kafka".to_owned(), (1..=brokers).map(|id| (id, broker(id))).collect())]),
        streams: BTreeMap::from([(kafka_in(), leaders.iter().map(place).collect())]),
    }
}

pub fn facts(leaders: &[i32]) -> Facts {
    Facts { topology: topology(3, leaders), remembered: Remembered::default() }
}

pub fn id(seq: u64) -> ContainerId {
    ContainerId(Incarnation { epoch: Epoch(7), seq })
}

pub fn placed(
    request: RequestId,
    container: ContainerId,
    node: &str,
    state: ContainerState,
) -> PlacedContainer {
    PlacedContainer {
        report: ContainerReport {
            id: container,
            app: "app".into(),
            job: JobId { name: "j".into(), id: "1".into() },
            role: Role::Worker { request },
            resource: Resource::default(),
            state,
            pid: None,
            started_unix_ms: None,
            ended_unix_ms: None,
        },
        node: node.into(),
        hosts: vec![node.to_owned()],
        rack: String::new(),
    }
}

pub fn exit(exit: ExitCause) -> ContainerState {
    ContainerState::Exited { exit }
}

pub struct Stage {
    pub core: AmCore,
    pub now: Timestamp,
    pub seq: u64,
}

impl Stage {
    pub fn of(spec: JobSpec, attempt: u32) -> Stage {
        let identity = AmIdentity { app: "app".into(), attempt, spec, unix_offset_ms: 1_000_000_000 };
        Stage { core: AmCore::new(identity), now: Timestamp(1_000), seq: 0 }
    }

    pub fn welcome_of(&self, containers: Vec<PlacedContainer>) -> AmWelcome {
        AmWelcome {
            epoch: Epoch(7),
            spec: Box::new(spec(1)),
            containers,
            state: Vec::new(),
            beat_ms: 500,
            stop: None,
        }
    }

    pub fn run<R>(
        &mut self,
        verb: impl FnOnce(&mut AmCore, Timestamp, &mut Vec<Command>) -> R,
    ) -> Vec<Command> {
        let mut out = Vec::new();
        verb(&mut self.core, self.now, &mut out);
        self.core.check().expect("invariants hold");
        out
    }

    pub fn welcome(&mut self, containers: Vec<PlacedContainer>) -> Vec<Command> {
        let welcome = self.welcome_of(containers);
        self.run(|c, now, out| c.welcome(now, welcome, out))
    }

    /// Facts, plan, welcome: after this the asks are out.
    pub fn begin(&mut self, facts: Facts, containers: Vec<PlacedContainer>) -> Vec<Command> {
        self.run(|c, now, out| c.facts_read(now, Ok(facts), out));
        self.run(|c, now, out| c.prepared(now, Ok(Vec::new()), out));
        self.welcome(containers)
    }

    pub fn report(&mut self, placed: PlacedContainer) -> Vec<Command> {
        self.run(|c, now, out| c.container(now, placed, out))
    }

    /// Answers an ask and runs the process; it says Hello.
    pub fn launch(&mut self, ask: &Ask, node: &str) -> ContainerId {
        self.seq += 1;
        let container = id(self.seq);
        self.report(placed(ask.request, container, node, ContainerState::Allocated));
        self.report(placed(ask.request, container, node, ContainerState::Running));
        self.hello(container, ask.request.slot).expect("welcome");
        container
    }

    pub fn hello(
        &mut self,
        container: ContainerId,
        slot: u32,
    ) -> Result<am_core::HelloAnswer, am_core::Denied> {
        let hello = ContainerHello {
            app: "app".into(),
            container,
            slot,
            status: ContainerStatus::default(),
            model: None,
            tells_metrics: false,
        };
        let answer = self.core.container_hello(self.now, &hello);
        self.core.check().expect("invariants hold");
        answer
    }

    pub fn exit(
        &mut self,
        request: RequestId,
        container: ContainerId,
        node: &str,
        cause: ExitCause,
    ) -> Vec<Command> {
        self.report(placed(request, container, node, exit(cause)))
    }

    /// Lets time pass, minding every deadline; the containers given speak all the time.
    pub fn pass(&mut self, ms: u64, talking: &[ContainerId]) -> Vec<Command> {
        let until = self.now.plus(ms);
        let mut all = Vec::new();
        while self.now < until {
            let step = self.core.next_deadline().map_or(until, |d| d.clamp(self.now.plus(1), until));
            self.now = step.min(self.now.plus(1_000));
            for container in talking {
                let now = self.now;
                self.core.container_status(now, *container, ContainerStatus::default());
            }
            if self.core.next_deadline().is_some_and(|d| d <= self.now) {
                all.extend(self.run(AmCore::handle_deadline));
            }
        }
        all
    }
}

pub fn asks(out: &[Command]) -> Vec<Ask> {
    out.iter().filter_map(|c| if let Command::Ask(a) = c { Some((**a).clone()) } else { None }).collect()
}

pub fn stops(out: &[Command]) -> Vec<(ContainerId, u64)> {
    out.iter()
        .filter_map(|c| {
            if let Command::Stop { container, grace_ms, .. } = c {
                Some((*container, *grace_ms))
            } else {
                None
            }
        })
        .collect()
}

pub fn acks(out: &[Command]) -> Vec<ContainerId> {
    out.iter().filter_map(|c| if let Command::AckExit(id) = c { Some(*id) } else { None }).collect()
}

pub fn finish(out: &[Command]) -> Option<JobOutcome> {
    out.iter().find_map(|c| if let Command::Finish(o) = c { Some(o.clone()) } else { None })
}

pub fn last_place(slot: u32, container: ContainerId) -> BTreeMap<u32, SlotPlace> {
    BTreeMap::from([(slot, SlotPlace { container, node: "n1".into(), host: "n1".into() })])
}

/// A job of `n` containers on `n` nodes n0, n1, …, all running and talking.
pub fn running(spec: JobSpec) -> (Stage, Vec<(Ask, ContainerId)>) {
    let n = spec.containers.count;
    let leaders: Vec<i32> = (0..n.cast_signed()).map(|p| p % 3 + 1).collect();
    let mut stage = Stage::of(spec, 1);
    let asked = asks(&stage.begin(facts(&leaders), Vec::new()));
    let mut first: BTreeMap<RequestId, Ask> = BTreeMap::new();
    for ask in asked {
        first.insert(ask.request, ask);
    }
    let launched = first
        .into_values()
        .map(|a| {
            let c = stage.launch(&a, &format!("n{}", a.request.slot));
            (a, c)
        })
        .collect();
    (stage, launched)
}

//! Nodes whose link to the resource manager is cut, whoever sleeps meanwhile. A container that must not outlive its
//! node's lease is dead, by its own machine's clock, before another one takes its place. Any other runs on until its
//! successor fences it in Kafka, or until its node is back and sweeps it. A cut shorter than the lease disturbs nobody.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tests::cluster::{SOON, master, worker};
use tests::feed::{self, Counts};
use tests::network::At;
use tests::wait::check;
use tests::{Brokers, Cluster, Feed, Job, Network, Pending, Settings, Topics, fencing, process};
use types::{AppContainer, ContainerId, NodeStateName};

/// In each round one is spared: without it there would be nobody to take a place before the first cut is over.
const NODES: usize = 6;
const CUTS: usize = NODES - 1;
/// Jobs of one container each that ends with its lease; two further ones do not.
const STOPPING: usize = 5;
/// A cut that leaves time to dial again before a lease ends, which began at most one beat before it, disturbs nobody.
const HARMLESS: Duration = Duration::from_millis(3_600);
/// So long that TCP by itself would send again only after the end of the lease.
const NEARLY_HARMFUL_MS: std::ops::Range<u64> = 3_450..3_550;
const CUT_MS: std::ops::Range<u64> = 100..15_000;
/// Long enough for a successor to be there before the node is back.
const LONG_MS: std::ops::Range<u64> = 11_000..15_000;
/// Stamps are written so often, and are so coarse, s.
const STAMP: f64 = 0.03;

/// What stands still while a link is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asleep {
    Nobody,
    /// The nm that started the node's shims.
    ShimsParent,
    /// An nm that took the node's shims over.
    Nm,
}

#[derive(Debug, Clone)]
struct Cut {
    place: usize,
    length: Duration,
    at: At,
    asleep: Asleep,
    /// CLOCK_BOOTTIME just before its end.
    mended: f64,
}

/// Where a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seat {
    id: ContainerId,
    pid: u32,
    place: usize,
}

struct Trial {
    job: Job,
    /// Whether its container runs on when the lease is over.
    keeps: bool,
    sent: Counts,
}

/// A job whose container writes down, every few ms, that it lives: by CLOCK_BOOTTIME, which all nodes here share.
fn stamping(name: &str, keeps: bool, stamps: &Path, topics: &Topics, brokers: &Brokers) -> Trial {
    let mut job = Job::counter(name, brokers);
    (job.memory, job.cpu) = ("128MiB".into(), 0.1);
    let on_loss = if keeps { "keep" } else { "stop" };
    job.placement = format!("on-lease-loss = \"{on_loss}\"\nwait = \"0s\"\nrack-wait = \"0s\"");
    let folder = stamps.join(&job.name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // Nobody writes to the pipe: reading it is a sleep that needs no process of its own.
    let script = format!(
        "exec 9<> <(:); (while read up idle < /proc/uptime; do echo $up; read -t 0.01 -u 9; done) \
         >> {}/$SAMZA_CONTAINER_ID & exec ./counter",
        folder.display()
    );
    job.command = ["/bin/bash", "-c", &script].map(str::to_owned).to_vec();
    topics.create(&job.inputs[0], 2);
    topics.create(&job.output, 1);
    Trial { job, keeps, sent: Counts::new() }
}

/// By container of a job, in the order of their incarnations: the first and the last moment at which it lived.
fn lives(folder: &Path) -> BTreeMap<ContainerId, (f64, f64)> {
    let mut lives = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).expect("a container's id");
        let text = std::fs::read_to_string(entry.path()).unwrap();
        // The last line of one that was killed may be torn.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let stamps: Vec<f64> = whole.lines().map(|line| line.parse().expect("a time")).collect();
        if let (Some(first), Some(last)) = (stamps.first(), stamps.last()) {
            lives.insert(id, (*first, *last));
        }
    }
    lives
}

fn boottime() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    stayed: usize,
    replaced: usize,
    /// Containers whose shim's parent slept.
    parents_slept: usize,
    /// Of containers that run on: by whom they were ended.
    fenced: usize,
    swept: usize,
}

struct World {
    cluster: Cluster,
    network: Arc<Network>,
    brokers: &'static Brokers,
    topics: Topics,
    trials: Vec<Trial>,
    tally: Tally,
}

impl World {
    /// Where the container and the master of a job run.
    fn seats(&self, job: &Job) -> [Seat; 2] {
        self.cluster.wait(&format!("{} running and alive", job.name), SOON, |cluster| {
            let app = cluster.all_running(job)?;
            let seat = |of: &AppContainer| -> Result<Seat, Pending> {
                let pid = of.pid.ok_or("no process")?;
                check(process::is_alive(pid), || format!("{} is dead", of.container))?;
                Ok(Seat { id: of.container, pid, place: cluster.place_of(&of.node) })
            };
            Ok([seat(worker(&app, 0)?)?, seat(master(&app)?)?])
        })
    }

    /// Every node but one, each for a random time. The first round sees to it that a cut is nearly too long, that those
    /// that run on have successors before their nodes are back, and that a shim's parent sleeps.
    fn plan(&self, before: &[[Seat; 2]], is_first: bool, rng: &mut StdRng) -> Vec<Cut> {
        let workers = |place: usize| before.iter().filter(|[worker, _]| worker.place == place).count();
        let keeps =
            |place: usize| self.trials.iter().zip(before).any(|(t, [w, _])| t.keeps && w.place == place);
        let spared = (0..NODES).min_by_key(|place| (keeps(*place), workers(*place))).expect("some node");
        let mut places: Vec<usize> = (0..NODES).filter(|place| *place != spared).collect();
        places.shuffle(rng);
        places.sort_by_key(|place| workers(*place) == 0);
        let mut asleep = [Asleep::Nobody, Asleep::ShimsParent, Asleep::Nm];
        asleep.shuffle(rng);
        let cut = |(place, asleep): (usize, Asleep)| Cut {
            place,
            length: Duration::from_millis(rng.random_range(CUT_MS)),
            at: [At::Node, At::ResourceManager, At::Between][rng.random_range(0..3)],
            asleep,
            mended: 0.0,
        };
        let mut cuts: Vec<Cut> = places.into_iter().zip(asleep.into_iter().cycle()).map(cut).collect();
        if is_first {
            for (n, cut) in cuts.iter_mut().filter(|cut| keeps(cut.place)).enumerate() {
                cut.length = Duration::from_millis(rng.random_range(LONG_MS));
                cut.asleep = if n == 0 { Asleep::ShimsParent } else { cut.asleep };
            }
            let short = cuts.iter_mut().find(|cut| !keeps(cut.place)).expect("two jobs run on");
            short.length = Duration::from_millis(rng.random_range(NEARLY_HARMFUL_MS));
            (short.at, short.asleep) = (At::Between, Asleep::Nobody);
        }
        cuts
    }

    /// Where an nm is to sleep that started no shim, another nm takes the shims over first.
    fn replace_nm(&mut self, place: usize) {
        let log = self.cluster.folder().join(format!("nm{}.log", place + 1));
        let joined = || std::fs::read_to_string(&log).unwrap().matches("joined").count();
        let before = joined();
        self.cluster.kill_nm(place);
        self.cluster.start_nm(place);
        self.cluster.wait("the new nm's session", SOON, |_| check(joined() > before, || "not yet".into()));
    }

    /// Checks who the parent of a sleeping node's shims is.
    fn count_parents(&mut self, cut: &Cut, before: &[[Seat; 2]]) {
        let nm = self.cluster.nm_pid(cut.place);
        let held = before.iter().map(|[worker, _]| worker).filter(|worker| worker.place == cut.place);
        let of_nm = held.filter(|w| process::parent(w.pid).and_then(process::parent) == Some(nm)).count();
        match cut.asleep {
            Asleep::Nobody => {}
            Asleep::ShimsParent => self.tally.parents_slept += of_nm,
            Asleep::Nm => assert_eq!(of_nm, 0, "nm {nm} was to be a stranger to the shims"),
        }
    }

    fn carry_out(&mut self, cuts: &mut [Cut], before: &[[Seat; 2]]) {
        for cut in cuts.iter().filter(|cut| cut.asleep == Asleep::Nm) {
            self.replace_nm(cut.place);
        }
        let mut begun = Vec::new();
        for cut in cuts.iter() {
            self.count_parents(cut, before);
            begun.push(Instant::now());
            self.network.cut(cut.place, cut.at);
            if cut.asleep != Asleep::Nobody {
                process::send(self.cluster.nm_pid(cut.place), Signal::STOP);
            }
        }
        let mut order: Vec<usize> = (0..cuts.len()).collect();
        order.sort_by_key(|n| begun[*n] + cuts[*n].length);
        for n in order {
            let cut = &mut cuts[n];
            sleep(cut.length.saturating_sub(begun[n].elapsed()));
            cut.mended = boottime();
            self.network.mend(cut.place);
            process::send(self.cluster.nm_pid(cut.place), Signal::CONT);
            // As long as it was: this machine may be busy.
            cut.length = begun[n].elapsed();
        }
    }

    fn round(&mut self, is_first: bool, rng: &mut StdRng) {
        let before: Vec<[Seat; 2]> = self.trials.iter().map(|trial| self.seats(&trial.job)).collect();
        let mut cuts = self.plan(&before, is_first, rng);
        println!("workers on nodes {:?}", before.iter().map(|[worker, _]| worker.place).collect::<Vec<_>>());
        self.carry_out(&mut cuts, &before);
        for Cut { place, length, at, asleep, .. } in &cuts {
            println!("node {place} was cut off for {length:.2?} at {at:?}, asleep: {asleep:?}");
        }
        self.tally.cuts += cuts.len();
        self.cluster.wait("every node back", SOON, |cluster| {
            let nodes = cluster.nodes()?.nodes;
            check(nodes.iter().all(|n| n.state == NodeStateName::Active), || format!("{nodes:?}"))
        });
        let after: Vec<[Seat; 2]> = self.trials.iter().map(|trial| self.seats(&trial.job)).collect();
        for (n, (before, after)) in before.iter().zip(&after).enumerate() {
            for (old, new) in before.iter().zip(after) {
                let length = cuts.iter().find(|c| c.place == old.place).map_or(Duration::ZERO, |c| c.length);
                let name = &self.trials[n].job.name;
                assert!(
                    old == new || length > HARMLESS,
                    "{name}: a cut of {length:?} disturbed {old:?}, now {new:?}\n{}",
                    self.cluster.diagnosis()
                );
            }
            let (old, new) = (&before[0], &after[0]);
            if old == new {
                self.tally.stayed += 1
            } else {
                self.tally.replaced += 1
            }
            if old != new && self.trials[n].keeps {
                let cut = cuts.iter().find(|cut| cut.place == old.place).expect("it was cut, or it stayed");
                self.ran_on(n, old, cut.mended);
            }
        }
    }

    /// Asserts that a container whose node was lost ran on until its successor fenced it, or else until its node was
    /// back at `mended`; and that nothing of it is left.
    fn ran_on(&mut self, trial: usize, old: &Seat, mended: f64) {
        let (name, id) = (&self.trials[trial].job.name, old.id.to_string());
        self.cluster.wait(&format!("{name}: {id} swept"), SOON, |cluster| {
            let mut left = cluster.node_processes(old.place);
            left.retain(|seen| seen.env("SAMZA_CONTAINER_ID") == Some(&id));
            check(left.is_empty(), || format!("{left:?}"))
        });
        let lives = lives(&self.cluster.shared().join("stamps").join(name));
        let (_, ended) = lives[&old.id];
        let (next, (began, _)) = lives.range(old.id..).nth(1).expect("it has a successor");
        if said(self.cluster.node_root(old.place), &id).contains("fenced: ") {
            self.tally.fenced += 1;
            assert!(ended + STAMP >= *began, "{name}: {id} ended at {ended}, {next} began at {began}");
        } else {
            self.tally.swept += 1;
            assert!(ended + STAMP >= mended, "{name}: {id} ended at {ended}, its node was back at {mended}");
        }
    }

    /// Feeds all jobs that have no feed of their own, and checks the counts; and who committed what.
    fn check_counts(&mut self) {
        for trial in self.trials.iter_mut().filter(|trial| !trial.job.name.starts_with("fed-")) {
            feed::send(&self.topics, &trial.job.inputs[0], 100, 200, &mut trial.sent);
        }
        for trial in self.trials.iter().filter(|trial| !trial.job.name.starts_with("fed-")) {
            self.wait_exact(trial);
        }
        for trial in self.trials.iter().filter(|trial| trial.keeps) {
            let judged = fencing::assert_fenced(&trial.job, &self.topics, self.brokers);
            // The first round was long enough for a successor.
            let name = &trial.job.name;
            assert!(judged.incarnations >= 2 && judged.batches > 0, "{name}: {judged:?}");
        }
    }

    fn wait_exact(&self, Trial { job, sent, .. }: &Trial) {
        let what = format!("{}: all of it", job.name);
        self.cluster.wait(&what, SOON, |_| feed::is_whole(&self.topics, &job.output, sent));
        feed::assert_exact(&self.topics, &job.output, sent);
    }

    /// Asserts that each container that ends with its lease was dead before its successor began.
    fn assert_apart(&self) {
        for Trial { job, .. } in self.trials.iter().filter(|trial| !trial.keeps) {
            let lives: Vec<_> =
                lives(&self.cluster.shared().join("stamps").join(&job.name)).into_iter().collect();
            for pair in lives.windows(2) {
                let ((old, (_, ended)), (new, (began, _))) = (pair[0], pair[1]);
                assert!(ended < began, "{}: {old} lived at {ended}, {new} began at {began}", job.name);
            }
        }
    }
}

/// All that container `id` has said on a node.
fn said(root: &Path, id: &str) -> String {
    let mut text = String::new();
    for app in std::fs::read_dir(root.join("logs")).unwrap().flatten() {
        for file in std::fs::read_dir(app.path().join(id)).into_iter().flatten().flatten() {
            text += &String::from_utf8_lossy(&std::fs::read(file.path()).unwrap());
        }
    }
    text
}

fn run(network: Arc<Network>, cuts: usize, rng: &mut StdRng) {
    let (brokers, _guard) = Brokers::start_on(&Network::kafka_host());
    // The feed's thread may outlive a test that fails.
    let brokers: &'static Brokers = Box::leak(Box::new(brokers));
    let topics = Topics::on(brokers);
    // Two nodes have room for all: those that the first round spares, or nearly. More would leave others without any.
    let cluster = Cluster::with(Settings::nodes_on(&network, "768MiB"));
    let stamps = cluster.shared().join("stamps");
    let mut trials: Vec<Trial> =
        (0..STOPPING).map(|n| stamping(&format!("stop{n}"), false, &stamps, &topics, brokers)).collect();
    trials.extend(["fed", "idle"].map(|name| stamping(name, true, &stamps, &topics, brokers)));
    let mut world = World { cluster, network, brokers, topics, trials, tally: Tally::default() };
    for trial in &mut world.trials {
        world.cluster.submit(&trial.job);
        feed::send(&world.topics, &trial.job.inputs[0], 100, 1_000, &mut trial.sent);
        // One after the other, so that each sees what the others use, and they spread over the nodes.
        world.cluster.wait_running(&trial.job);
    }
    for trial in &world.trials {
        world.wait_exact(trial);
    }
    // It finds out at its next commit that it was fenced; the idle one has no next commit.
    let fed = world.trials.iter().position(|trial| trial.job.name.starts_with("fed-")).expect("made above");
    let feed = Feed::start(brokers, &world.trials[fed].job.inputs[0], 100, 40);
    for round in 0..cuts.div_ceil(CUTS) {
        world.round(round == 0, rng);
        world.check_counts();
    }
    feed.finish(&mut world.trials[fed].sent);
    world.wait_exact(&world.trials[fed]);
    world.assert_apart();
    println!("{:?}", world.tally);
    assert!(world.tally.parents_slept > 0 && world.tally.fenced > 0 && world.tally.swept > 0);
}

#[test]
fn a_node_that_is_cut_off_stops_what_must_stop_and_keeps_what_may_run_on_until_it_is_fenced_or_swept() {
    let cuts: usize = std::env::var("SAMZA_LEASE_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let seed = std::env::var("SAMZA_LEASE_SEED").map_or(now, |seed| seed.parse().unwrap());
    println!("SAMZA_LEASE_SEED={seed}");
    let network = Network::of(NODES);
    network.hub().inside(|| run(Arc::clone(&network), cuts, &mut StdRng::seed_from_u64(seed)));
}

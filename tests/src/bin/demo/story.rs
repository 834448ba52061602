//! What happens in the demo, and what is told of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use tests::cluster::{master, pid_of, slot_of};
use tests::wait::check;
use tests::{Cluster, Job, process};
use types::{AppReport, NodeId};

use crate::feeder::Feeder;
use crate::watcher::Watcher;

/// For one act: long enough for a slow machine, short enough to give up.
const LIMIT: Duration = Duration::from_secs(120);

/// The actors.
pub struct Story<'a> {
    pub cluster: &'a mut Cluster,
    pub job: &'a Job,
    pub watcher: &'a Watcher,
    pub feeder: &'a Feeder,
    /// All flights.
    pub total: u64,
}

impl Story<'_> {
    /// Waits until the output speaks of `share` of all flights, telling how far things are each second.
    pub fn wait_share(&self, share: f64) -> Result<()> {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let wanted = (share * self.total as f64) as u64; // some hundred thousand
        let mut progressed = Instant::now();
        let mut last = 0;
        loop {
            let done = self.watcher.flights();
            if done >= wanted {
                self.tell(done);
                return Ok(());
            }
            if done != last {
                (last, progressed) = (done, Instant::now());
            }
            if progressed.elapsed() > LIMIT {
                bail!("no output for {} s\n{}", LIMIT.as_secs(), self.cluster.diagnosis());
            }
            self.tell(done);
            sleep(Duration::from_secs(1));
        }
    }

    fn tell(&self, done: u64) {
        let sent = self.feeder.sent();
        println!(
            "  sent {sent:>7} ({:>3} %)   counted in the output {done:>7} ({:>3} %)",
            100 * sent / self.total,
            100 * done / self.total
        );
    }

    fn app(&self) -> Result<AppReport> {
        self.cluster.app(self.job).map_err(|pending| anyhow::anyhow!(pending.0))
    }

    /// How many containers run near the brokers that lead their partitions.
    pub fn near_brokers(&self) -> Result<()> {
        let app = self.app()?;
        let slots = app.status.map(|status| status.slots).unwrap_or_default();
        let near = slots.iter().filter(|slot| slot.on_preferred == Some(true)).count();
        println!(
            "{near} of {} containers run on a preferred host (their state, or their brokers)",
            slots.len()
        );
        Ok(())
    }

    /// More than a fifth must be unread, else a kill would show nothing.
    fn ensure_unread(&self) -> Result<()> {
        let unread = self.total - self.watcher.flights();
        ensure!(
            unread * 5 > self.total,
            "only {unread} of {} unread: too late for a kill to show anything",
            self.total
        );
        Ok(())
    }

    /// Kills one container's process.
    pub fn kill_container(&mut self) -> Result<()> {
        self.ensure_unread()?;
        let before = self.app()?;
        let (pid, node) = (pid_of(&before, 0), slot_of(&before, 0).node.clone());
        println!("\nkilling container 0: process {pid} on {}", name(node.as_ref()));
        let killed = Instant::now();
        process::send(pid, Signal::KILL);
        self.follow(&[0], &before, killed)
    }

    /// Kills a node manager with everything under it, as a machine that loses its power.
    pub fn kill_node(&mut self) -> Result<()> {
        self.ensure_unread()?;
        let before = self.app()?;
        let masters_node = master(&before).ok().map(|container| container.node.clone());
        let slots: Vec<u32> = (0..self.job.containers).collect();
        let node_of = |slot: &u32| slot_of(&before, *slot).node.clone();
        // A node without the application master, if there is one: the usual case in a larger cluster.
        let slot = slots.iter().find(|slot| node_of(slot) != masters_node).unwrap_or(&0);
        let Some(node) = node_of(slot) else { bail!("container {slot} is nowhere") };
        let lost: Vec<u32> =
            slots.iter().filter(|slot| node_of(slot).as_ref() == Some(&node)).copied().collect();
        println!("\nkilling node {node} with everything on it: containers {lost:?}");
        let killed = Instant::now();
        self.cluster.kill_node(self.cluster.place_of(&node));
        self.follow(&lost, &before, killed)
    }

    /// Waits until each of `slots` runs anew and is heard of in the output again, and tells how.
    fn follow(&self, slots: &[u32], before: &AppReport, killed: Instant) -> Result<()> {
        for slot in slots {
            let pid = pid_of(before, *slot);
            let after = self.cluster.wait("the container back", LIMIT, |cluster| {
                let app = cluster.all_running(self.job)?;
                check(pid_of(&app, *slot) != pid, || "not yet".into()).map(|()| app)
            });
            let running = Instant::now();
            let status = slot_of(&after, *slot);
            let silence = self.cluster.wait("output again", LIMIT, |_| {
                self.watcher.silence(&status.tasks, killed, running).ok_or_else(|| "silent".into())
            });
            let restores: Vec<_> =
                status.status.tasks.iter().filter_map(|task| task.restore.as_ref()).collect();
            let local = !restores.is_empty() && restores.iter().all(|restore| restore.from_local);
            let rows: u64 = restores.iter().map(|restore| restore.rows).sum();
            let took = restores.iter().map(|restore| restore.took_ms).max().unwrap_or(0);
            println!(
                "container {slot} is back on {} (was on {}), seen running after {:.1} s; output silent for {:.1} s",
                name(status.node.as_ref()),
                name(slot_of(before, *slot).node.as_ref()),
                (running - killed).as_secs_f32(),
                silence.as_secs_f32()
            );
            let source =
                if local { "local state kept; the changelog's tail gave" } else { "the changelog gave" };
            println!("  restore took {took} ms: {source} {rows} rows");
        }
        println!();
        Ok(())
    }
}

fn name(node: Option<&NodeId>) -> &str {
    node.map_or("no node", |node| &node.0)
}

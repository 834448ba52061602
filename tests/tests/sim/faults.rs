//! What goes wrong, and when: a seeded plan of crashes and cuts before [`FAULTS_END`].

use nm_core::Outcome;
use types::ContainerId;

use crate::node::What;
use crate::world::{FAULTS_END, Happening, World};

/// Every kind of fault.
pub const KINDS: &[&str] = &[
    "rm killed",
    "nm killed",
    "machine lost",
    "master killed",
    "worker killed",
    "cut from rm",
    "machines cut",
    "node drained",
    "inputs grew",
];

/// One fault.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    RmKilled { down: u64 },
    NmKilled { node: usize, down: u64 },
    MachineLost { node: usize, down: u64 },
    MasterKilled,
    WorkerKilled { code: Option<i32> },
    CutFromRm { node: usize, during: u64 },
    MachinesCut { a: usize, b: usize, during: u64 },
    NodeDrained { node: usize, grace: u64, during: u64 },
    InputsGrew,
}

impl World {
    /// Plans this seed's faults.
    pub fn plan_faults(&mut self) {
        for _ in 0..self.random(4..16) {
            let at = self.random(1_500..FAULTS_END - 1_000);
            let fault = self.pick_fault();
            self.at(at, Happening::Fault(fault));
        }
    }

    fn pick_fault(&mut self) -> Fault {
        let machines = self.machines.len() as u64;
        let node = usize::try_from(self.random(0..machines)).expect("a small number");
        let other = usize::try_from(self.random(0..machines)).expect("a small number");
        match self.random(0..9) {
            0 => Fault::RmKilled { down: self.random(50..12_000) },
            1 => Fault::NmKilled { node, down: self.random(50..9_000) },
            2 => Fault::MachineLost { node, down: self.random(500..15_000) },
            3 => Fault::MasterKilled,
            4 => Fault::WorkerKilled { code: (self.random(0..2) == 0).then_some(3) },
            5 => Fault::CutFromRm { node, during: self.random(50..14_000) },
            6 => {
                let (grace, during) = (self.random(0..5_000), self.random(50..14_000));
                Fault::NodeDrained { node, grace, during }
            }
            7 => Fault::InputsGrew,
            _ => Fault::MachinesCut { a: node, b: other, during: self.random(50..14_000) },
        }
    }

    pub fn fault(&mut self, fault: Fault) {
        let done = match fault {
            Fault::RmKilled { down } => {
                self.crash_rm();
                self.later(down, Happening::RmStarts);
                Some("rm killed")
            }
            Fault::NmKilled { node, down } => self.machines[node].core.is_some().then(|| {
                self.crash_node(node);
                self.later(down, Happening::NodeStarts { node, new_boot: false });
                "nm killed"
            }),
            Fault::MachineLost { node, down } => self.machines[node].core.is_some().then(|| {
                self.crash_machine(node);
                self.later(down, Happening::NodeStarts { node, new_boot: true });
                "machine lost"
            }),
            Fault::MasterKilled => self.kill_one(true, Outcome::Signal(9)).then_some("master killed"),
            Fault::WorkerKilled { code } => {
                let outcome = code.map_or(Outcome::Signal(9), Outcome::Code);
                self.kill_one(false, outcome).then_some("worker killed")
            }
            Fault::CutFromRm { node, during } => {
                self.cut((None, Some(node)), during);
                Some("cut from rm")
            }
            Fault::MachinesCut { a, b, during } => (a != b).then(|| {
                self.cut((Some(a.min(b)), Some(a.max(b))), during);
                "machines cut"
            }),
            Fault::NodeDrained { node, grace, during } => self.drain(node, Some(grace)).then(|| {
                self.later(during, Happening::Undrained { node });
                "node drained"
            }),
            Fault::InputsGrew => {
                self.grow_inputs();
                Some("inputs grew")
            }
        };
        if let Some(done) = done {
            *self.faults_done.entry(done).or_insert(0) += 1;
        }
    }

    fn kill_one(&mut self, master: bool, outcome: Outcome) -> bool {
        let all: Vec<(usize, ContainerId)> = self
            .machines
            .iter()
            .enumerate()
            .flat_map(|(node, machine)| machine.running.iter().map(move |(id, running)| (node, *id, running)))
            .filter(|(_, _, running)| matches!(running.what, What::Master(_)) == master && !running.ending)
            .map(|(node, id, _)| (node, id))
            .collect();
        if all.is_empty() {
            return false;
        }
        let one = usize::try_from(self.random(0..all.len() as u64)).expect("a small number");
        self.end_process(all[one].0, all[one].1, 0, outcome);
        true
    }

    /// Cuts two machines off: what is under way waits, and each side gives up a link after some seconds.
    fn cut(&mut self, machines: (Option<usize>, Option<usize>), during: u64) {
        let until = self.now + during;
        let old = self.network.cuts.entry(machines).or_insert(0);
        *old = until.max(*old);
        let links: Vec<u64> = self
            .network
            .links
            .iter()
            .filter(|(_, link)| link.machines == machines || (link.machines.1, link.machines.0) == machines)
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            for end in [crate::network::End::Dialler, crate::network::End::Listener] {
                let patience = self.random(3_000..6_000);
                if during > patience {
                    self.later(patience, Happening::Lost { link, end });
                }
            }
        }
    }

    /// All faults end now.
    pub fn heal(&mut self) {
        self.network.cuts.clear();
        self.start_rm();
        for node in 0..self.machines.len() {
            self.drain(node, None);
        }
        for node in 0..self.machines.len() {
            if self.machines[node].core.is_none() && self.machines[node].running.is_empty() {
                self.machines[node].reboot();
            }
            self.start_node(node);
        }
    }
}

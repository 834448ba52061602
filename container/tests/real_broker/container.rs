//! Containers: processes of a job's binary, started as a node manager would.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use types::{ContainerPhase, ContainerStatus};

use crate::job::Job;
use crate::master::Master;
use crate::{PATIENCE, built};

/// The process of one container; killed if the test fails.
pub struct Container {
    pub id: String,
    process: Child,
    pub log: PathBuf,
}

impl Container {
    /// Starts incarnation `seq` with its state in the job's folder `state`, and more environment variables.
    pub fn start(job: &Job, master: &Master, seq: u64, state: &str, more: &[(&str, &str)]) -> Container {
        Container::limited(job, master, seq, state, more, "")
    }

    /// With limits that a shell sets before.
    pub fn limited(
        job: &Job,
        master: &Master,
        seq: u64,
        state: &str,
        more: &[(&str, &str)],
        limits: &str,
    ) -> Container {
        let id = format!("container_1_{seq:06}");
        let work = job.folder.path().join(&id);
        std::fs::create_dir_all(&work).expect("a folder");
        let file = |name: &str, text: &str| {
            std::fs::write(work.join(name), text).expect("writable");
            work.join(name)
        };
        let log = work.join("stderr");
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("{limits} exec \"$0\""))
            .arg(example(job.example))
            .current_dir(&work)
            .env("SAMZA_APP_ID", "application_1_1")
            .env("SAMZA_CONTAINER_ID", &id)
            .env("SAMZA_SLOT", "0")
            .env("SAMZA_STATE_DIR", job.folder.path().join(state))
            .env("SAMZA_MEMORY_BYTES", (256u64 << 20).to_string())
            .env("SAMZA_JOB_FILE", file("job.json", &serde_json::to_string(&job.spec).expect("a job")))
            .env("SAMZA_AM_ADDRESS_FILE", file("am", &format!("1 {}\n", master.address)))
            .env("RUST_LOG", "info,samza=debug")
            .stderr(std::fs::File::create(&log).expect("a log"));
        command.envs(more.iter().copied());
        Container { id, process: command.spawn().expect("the example is built"), log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is a child of this test");
    }

    /// Waits until it has stopped itself.
    pub fn wait_until_stopped(&self) {
        let start = Instant::now();
        loop {
            let state =
                std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("it lives");
            if state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{} does not stop itself:\n{}", self.id, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.process.wait().expect("a child");
    }

    pub fn exit_code(mut self) -> i32 {
        let status = self.ended();
        status.code().unwrap_or_else(|| panic!("{status}:\n{}", self.log()))
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{} does not end:\n{}", self.id, self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn is_over(&mut self) -> bool {
        self.process.try_wait().expect("a child").is_some()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Only if a test failed; an exited child is no longer there to be killed.
        if self.process.try_wait().is_ok_and(|over| over.is_none()) {
            let _ = self.process.kill();
            let _ = waitpid(Some(self.pid()), WaitOptions::empty());
        }
    }
}

pub fn is_running(status: &ContainerStatus) -> bool {
    status.phase == ContainerPhase::Running
}

/// An example beside this test's executable.
fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    path.pop();
    built::fresh(path.join("examples").join(name))
}

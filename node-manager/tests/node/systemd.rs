//! nm as a service of systemd, installed as docs/operating-nodes.md says. These tests need a machine of their own whose
//! first process is systemd; vm.rs makes one and runs them there.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use types::{ContainerId, ContainerState, ExitCause, ToNode};

use crate::stage::{FakeRm, Session, alive, id, shell, signal, until};

/// The unit whose group is nm's to divide.
const CONTAINERS: &str = "nm-containers";
/// A container that says so when it is asked to end.
const POLITE: &str = "trap 'echo asked > asked; exit 0' TERM; touch up; while :; do sleep 0.05; done";
/// Of the user `worker` of the machine.
const UID: u32 = 1000;

/// nm as installed in one of the two ways.
struct Service {
    unit: &'static str,
    /// Whose; None is root's.
    user: Option<u32>,
    /// The group of the unit for containers.
    group: PathBuf,
    /// nm's `--root`.
    root: PathBuf,
    /// Where the unit reads options from.
    options: PathBuf,
}

impl Service {
    fn of_root() -> Service {
        Service {
            unit: "nm",
            user: None,
            group: "/sys/fs/cgroup/system.slice/nm-containers.service".into(),
            root: "/var/lib/samza/nm".into(),
            options: "/etc/samza/nm.env".into(),
        }
    }

    fn of_a_user() -> Service {
        let slice = format!("user.slice/user-{UID}.slice/user@{UID}.service/app.slice");
        Service {
            unit: "nm-user",
            user: Some(UID),
            group: Path::new("/sys/fs/cgroup").join(slice).join("nm-containers.service"),
            root: "/home/worker/.local/share/samza/nm".into(),
            options: "/home/worker/.config/samza/nm.env".into(),
        }
    }

    /// Writes the options, then does what the documentation says.
    fn enable(&self, rm: &FakeRm, options: &str) {
        let text = format!("NM_OPTIONS=--rm {} --memory 512MiB --cpu 2 {options}\n", rm.addr);
        fs::create_dir_all(self.options.parent().unwrap()).unwrap();
        fs::write(&self.options, text).unwrap();
        self.systemctl(&["enable", "--now", self.unit]);
    }

    fn asked(&self, args: &[&str]) -> Output {
        let mut command = Command::new("systemctl");
        if let Some(uid) = self.user {
            command.arg("--user").uid(uid).gid(uid).env("XDG_RUNTIME_DIR", format!("/run/user/{uid}"));
        }
        command.args(args).output().unwrap()
    }

    fn systemctl(&self, args: &[&str]) -> String {
        let output = self.asked(args);
        assert!(output.status.success(), "systemctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A property of a unit.
    fn shows(&self, unit: &str, property: &str) -> String {
        self.systemctl(&["show", "--value", "--property", property, unit])
    }

    fn main_pid(&self) -> u32 {
        self.shows(self.unit, "MainPID").parse().unwrap()
    }

    /// What the unit has written to the journal since the machine began.
    fn journal(&self) -> String {
        let field = if self.user.is_some() { "_SYSTEMD_USER_UNIT" } else { "_SYSTEMD_UNIT" };
        run("journalctl", &["--output", "cat", &format!("{field}={}.service", self.unit)])
    }

    fn folder(&self, id: ContainerId) -> PathBuf {
        self.root.join("containers").join(id.to_string())
    }

    fn limit(&self, id: ContainerId) -> String {
        let file = self.group.join("vm").join(id.to_string()).join("memory.max");
        fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    }

    /// The groups of containers.
    fn groups(&self) -> Vec<String> {
        let entries = fs::read_dir(self.group.join("vm")).unwrap().map(Result::unwrap);
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    fn shim(&self, id: ContainerId) -> u32 {
        let claim = fs::read_to_string(self.folder(id).join("shim.json")).unwrap();
        let claim: serde_json::Value = serde_json::from_str(&claim).unwrap();
        claim["shim"]["pid"].as_u64().unwrap() as u32
    }
}

/// Runs a program as root; what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Where a process is, below the mount of cgroup v2.
fn group_of(pid: u32) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    Path::new("/sys/fs/cgroup").join(text.trim().strip_prefix("0::/").unwrap())
}

fn uid_of(pid: u32) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}")).unwrap())
}

/// nm comes up, tells what it enforces, and a container that it starts has its limits below the delegated group.
/// The first container goes on running.
async fn comes_up(nm: &Service, session: &mut Session) -> u32 {
    let journal = nm.journal();
    for told in [
        "memory limit         yes  memory.max\n",
        "pids                 yes  pids.max\n",
        "held to memory limit",
    ] {
        assert!(journal.contains(told), "{told:?} is not in the journal:\n{journal}");
    }
    session.start(&shell(1, 1, POLITE));
    let pid = session.running(id(1)).await.pid.unwrap();
    assert_eq!(group_of(pid), nm.group.join("vm").join(id(1).to_string()));
    let of_unit = nm.shows(CONTAINERS, "ControlGroup");
    assert_eq!(Path::new("/sys/fs/cgroup").join(of_unit.trim_start_matches('/')), nm.group);
    assert_eq!(nm.shows(CONTAINERS, "Delegate"), "yes");
    assert_eq!(nm.limit(id(1)), (64 << 20).to_string());
    assert_eq!(uid_of(pid), UID);
    assert_ne!(group_of(nm.main_pid()), nm.group, "nm itself is elsewhere");
    assert!(!Path::new("/sys/fs/cgroup/samza").exists());
    let before = nm.main_pid();
    session.start(&shell(2, 2, "tail /dev/zero"));
    let exit = session.exit(id(2)).await;
    assert!(matches!(exit, ExitCause::OutOfMemory { limit_bytes: 67_108_864, .. }), "{exit:?}");
    assert_eq!(nm.main_pid(), before, "a container out of memory is no matter of nm's");
    pid
}

/// The next session, whose Hello has the container as it was.
async fn taken_over(nm: &Service, rm: &mut FakeRm, pid: u32) -> Session {
    let session = rm.join().await;
    let kept = session.hello.containers.iter().find(|report| report.id == id(1)).expect("it is in the Hello");
    assert_eq!((&kept.state, kept.pid), (&ContainerState::Running, Some(pid)));
    assert_eq!(nm.limit(id(1)), (64 << 20).to_string());
    session
}

/// Restarts, kills, stops and reloads of everything: the container does not notice.
async fn outlives(nm: &Service, rm: &mut FakeRm, pid: u32) -> Session {
    nm.systemctl(&["restart", nm.unit]);
    taken_over(nm, rm, pid).await;
    signal(nm.main_pid(), Signal::KILL);
    taken_over(nm, rm, pid).await;
    for verb in ["daemon-reload", "daemon-reexec"] {
        nm.systemctl(&[verb]);
        assert_eq!(nm.limit(id(1)), (64 << 20).to_string(), "after {verb}");
    }
    nm.systemctl(&["stop", nm.unit]);
    assert_eq!(nm.shows(nm.unit, "ActiveState"), "inactive");
    assert_eq!(nm.shows(CONTAINERS, "ActiveState"), "active");
    assert!(alive(pid) && alive(nm.shim(id(1))));
    assert_eq!(nm.limit(id(1)), (64 << 20).to_string());
    nm.systemctl(&["start", nm.unit]);
    taken_over(nm, rm, pid).await
}

/// The nm that took the container over ends it and cleans up.
async fn cleans_up(nm: &Service, session: &mut Session) {
    session.stop(id(1), 20_000);
    assert_eq!(session.exit(id(1)).await, ExitCause::KilledByAm);
    for seq in [1, 2] {
        session.send(ToNode::Forget { container: id(seq) });
    }
    until("the removal", || !nm.folder(id(1)).exists() && !nm.folder(id(2)).exists()).await;
    assert_eq!(nm.groups(), Vec::<String>::new());
}

/// Stopping the unit for containers stops nm and asks them to end; the next nm tells how they did.
async fn stops_with_its_containers(nm: &Service, rm: &mut FakeRm, session: &mut Session) {
    session.start(&shell(3, 3, POLITE));
    let pid = session.running(id(3)).await.pid.unwrap();
    let (work, shim) = (nm.folder(id(3)).join("work"), nm.shim(id(3)));
    until("its trap", || work.join("up").exists()).await;
    nm.systemctl(&["stop", CONTAINERS]);
    assert_eq!(nm.shows(nm.unit, "ActiveState"), "inactive");
    assert!(!alive(pid));
    assert_eq!(fs::read_to_string(work.join("asked")).unwrap(), "asked\n");
    until("the end of its shim", || !alive(shim)).await;
    assert!(!nm.group.exists(), "{} stays", nm.group.display());
    nm.systemctl(&["start", nm.unit]);
    let mut session = rm.join().await;
    let exit = match session.state(id(3)) {
        Some(ContainerState::Exited { exit }) => exit,
        _ => session.exit(id(3)).await,
    };
    assert_eq!(exit, ExitCause::Success);
    session.send(ToNode::Forget { container: id(3) });
    until("the removal", || !nm.folder(id(3)).exists()).await;
    assert_eq!(nm.groups(), Vec::<String>::new());
    nm.systemctl(&["disable", "--now", nm.unit]);
}

async fn holds(nm: &Service, rm: &mut FakeRm) {
    let mut session = rm.join().await;
    let pid = comes_up(nm, &mut session).await;
    let mut session = outlives(nm, rm, pid).await;
    cleans_up(nm, &mut session).await;
    stops_with_its_containers(nm, rm, &mut session).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "vm.rs runs it, on a machine with systemd"]
async fn containers_of_a_root_nm_outlive_what_systemd_does_to_it() {
    let (mut rm, nm) = (FakeRm::start().await, Service::of_root());
    fs::create_dir_all("/etc/samza").unwrap();
    fs::write("/etc/samza/token", "a-secret-of-the-cluster-for-these-tests\n").unwrap();
    nm.enable(&rm, "--user worker --listen 0.0.0.0:0");
    holds(&nm, &mut rm).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "vm.rs runs it, on a machine with systemd"]
async fn containers_of_a_users_nm_outlive_what_systemd_does_to_it() {
    let (mut rm, nm) = (FakeRm::start().await, Service::of_a_user());
    run("cp", &["-r", "/etc/skel/.", "/home/worker"]);
    run("mkdir", &["-p", "/home/worker/.config/samza"]);
    run("chown", &["-R", "worker:worker", "/home/worker"]);
    run("loginctl", &["enable-linger", "worker"]);
    until("the user's systemd", || nm.asked(&["is-system-running"]).status.success()).await;
    nm.enable(&rm, "");
    holds(&nm, &mut rm).await;
    assert_eq!(fs::metadata(&nm.root).map(|meta| std::os::unix::fs::MetadataExt::uid(&meta)).unwrap(), UID);
}

#[test]
#[ignore = "vm.rs runs it, on a machine with systemd"]
fn nm_divides_the_group_that_systemd_delegates_to_it() {
    let told = |properties: &[&str]| {
        let mut args = vec!["--quiet", "--wait", "--pipe", "--unit", "trial"];
        args.extend(properties);
        args.extend(["/usr/local/bin/nm", "doctor"]);
        run("systemd-run", &args)
    };
    let delegated = told(&["--property", "Delegate=yes"]);
    assert!(
        delegated.contains("cgroup v2, /sys/fs/cgroup/system.slice/trial.service/doctor-"),
        "{delegated}"
    );
    let not = told(&[]);
    assert!(not.contains("cgroup v2, /sys/fs/cgroup/samza/doctor-"), "{not}");
    fs::remove_dir("/sys/fs/cgroup/samza").unwrap();
}

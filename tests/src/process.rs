//! Processes of a test, found through `/proc` by the folder that they work for, and the ends they come to.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A process as `/proc` shows it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its id.
    pub pid: u32,
    /// Its command line, blanks between the words.
    pub command: String,
    /// Its environment, one `NAME=value` each.
    pub environment: Vec<String>,
}

impl Seen {
    /// The value of environment variable `name`.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.environment.iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

/// Every process, zombies aside, whose command line, environment or folder names `mark`, and the shims that
/// hold them; except this one.
#[must_use]
pub fn naming(mark: &str) -> Vec<Seen> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<Seen> =
        pids.filter(|pid| *pid != std::process::id()).filter_map(|pid| look(pid, mark)).collect();
    // A shim says nothing of itself; it is known by the process that it holds.
    let parents: BTreeSet<u32> = found.iter().filter_map(|seen| parent(seen.pid)).collect();
    for pid in parents {
        let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = cmdline.trim_end_matches('\0').replace('\0', " ");
        if command.ends_with("nm-shim") && found.iter().all(|seen| seen.pid != pid) {
            found.push(Seen { pid, command, environment: Vec::new() });
        }
    }
    found
}

fn look(pid: u32, mark: &str) -> Option<Seen> {
    let folder = Path::new("/proc").join(pid.to_string());
    let words = |file: &str| -> Vec<String> {
        let bytes = std::fs::read(folder.join(file)).unwrap_or_default();
        bytes
            .split(|b| *b == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into())
            .collect()
    };
    let (command, environment) = (words("cmdline").join(" "), words("environ"));
    let works_there =
        std::fs::read_link(folder.join("cwd")).is_ok_and(|cwd| cwd.to_string_lossy().contains(mark));
    let named = works_there || command.contains(mark) || environment.iter().any(|pair| pair.contains(mark));
    (named && !is_zombie(pid)).then_some(Seen { pid, command, environment })
}

/// Whether `pid` runs (is there and no zombie).
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists() && !is_zombie(pid)
}

fn is_zombie(pid: u32) -> bool {
    stat(pid).is_none_or(|fields| fields.first().is_some_and(|state| state == "Z" || state == "X"))
}

/// The fields of `/proc/<pid>/stat` after the command's name; the first is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// The state of `pid` as `ps` shows it: `T` is stopped, `Z` is over and not yet waited for.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    stat(pid)?.first()?.chars().next()
}

/// The parent of `pid`; none if it is gone.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The code with which `pid` exited (128 + n for signal n), none while it runs. Only for one whose parent does not
/// reap it, as a stopped shim.
#[must_use]
pub fn exit_code(pid: u32) -> Option<i32> {
    if state(pid)? != 'Z' {
        return None;
    }
    let status: i32 = stat(pid)?.get(49)?.parse().ok()?;
    Some(if status & 0x7f == 0 { status >> 8 } else { 128 + (status & 0x7f) })
}

/// CPU that `pid` has used, in ticks of 10 ms; none if it is gone.
#[must_use]
pub fn cpu_ticks(pid: u32) -> Option<u64> {
    let fields = stat(pid)?;
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Sends `signal` to `pid`; one that is gone already is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills everything that names `mark`, and what it starts meanwhile, until nothing is left.
///
/// # Panics
/// Something cannot be killed.
pub fn kill_all_naming(mark: &str) {
    for _ in 0..400 {
        let left = naming(mark);
        if left.is_empty() {
            return;
        }
        for process in &left {
            send(process.pid, Signal::KILL);
        }
        sleep(Duration::from_millis(5));
    }
    let left: BTreeSet<String> =
        naming(mark).into_iter().map(|p| format!("{} {}", p.pid, p.command)).collect();
    assert!(left.is_empty(), "processes that do not die: {left:?}");
}

/// Keeps every thread of `pid` on processor `cpu`.
///
/// # Errors
/// The process is gone.
pub fn pin(pid: u32, cpu: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let tid = thread?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        rustix::thread::sched_setaffinity(tid, &set)?;
    }
    Ok(())
}

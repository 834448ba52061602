//! nm-shim: holds one container's process for a node manager that may come and go.
//!
//! It stays outside the container's cgroup and in a session of its own, so that neither an out-of-memory kill nor
//! the end of the node manager takes it along. It starts the process, keeps its exit status in a file, writes its
//! output to files of a bounded size, ends the
//! container at lease end if told so, or when there has been no node manager for too long, and leaves nothing of
//! the container behind.

mod output;
mod seccomp;
mod sys;
mod watch;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use nm_shim::files::{self, Pid};
use nm_shim::{Claim, ExitFile, Order, ProcessFile, Reply};

use crate::output::Output;

/// How long the shim keeps killing what its process left behind. Its node manager goes on after it.
const SWEEP: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        println!(
            "nm-shim {}: started by nm with an order on its standard input; not for people.",
            env!("CARGO_PKG_VERSION")
        );
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            reply(&Reply::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    // Fails only for a group leader, which is as good.
    let _ = rustix::process::setsid();
    let order = read_order()?;
    let children = sys::child_signals()?;
    // Orphans come to the shim, so that it can reap them, and find them when there is no cgroup.
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me))?;
    let own = Pid::of(std::process::id())?;
    if !files::claim(&order.dir, &Claim { shim: Some(own) })? {
        return Err(io::Error::other("the container was started or given up before"));
    }
    let (mut output, ends) = Output::new(&order.logs, order.log_bytes)?;
    let process = match start(&order, ends) {
        Ok(process) => process,
        Err(error) => {
            order.kill.kill_all(Some(own.pid), SWEEP)?;
            return Err(error);
        }
    };
    reply(&Reply::Running(process));
    close_pipes()?;
    let end = hold(&order, process, children, &mut output)?;
    // Not synced: it survives this process, and a machine that crashes comes back as another boot, in which the
    // container is lost however it ended.
    let recorded = files::replace(&order.dir, files::EXIT, &end, false);
    let killed = order.kill.kill_all(Some(own.pid), SWEEP);
    // Nobody is left that writes; the last words are in the pipes.
    output.drain();
    output.ended();
    killed?;
    recorded
}

fn read_order() -> io::Result<Order> {
    let mut text = Vec::new();
    io::stdin().read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn start(order: &Order, output: [OwnedFd; 2]) -> io::Result<ProcessFile> {
    let pid = sys::spawn(order, output).map_err(|error| {
        let program = order.argv.first().map(String::as_str).unwrap_or_default();
        io::Error::new(error.kind(), format!("cannot run `{program}`: {error}"))
    })?;
    let process = ProcessFile { process: Pid::of(pid)?, started_unix_ms: unix_ms() };
    files::replace(&order.dir, files::PROCESS, &process, false)?;
    Ok(process)
}

/// Waits for the process's end, or brings it about when it is due.
fn hold(order: &Order, process: ProcessFile, children: OwnedFd, output: &mut Output) -> io::Result<ExitFile> {
    let mut watch = watch::Watch::new(order, children)?;
    let mut by_shim = None;
    loop {
        if let Some(status) = watch::reap(process.process.pid)? {
            let (code, signal) = (status.exit_status(), status.terminating_signal());
            return Ok(ExitFile { code, signal, by_shim, ended_unix_ms: unix_ms() });
        }
        if let Some(reason) = watch.wait(process.process.pid, output)? {
            by_shim = Some(reason);
            order.kill.kill_once(Some(std::process::id()))?;
        }
    }
}

fn reply(reply: &Reply) {
    let line = serde_json::to_string(reply).unwrap_or_default();
    // A node manager that is gone reads the files instead.
    let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
}

/// The node manager sees the end of the pipe, and a shim that lives for months holds none.
fn close_pipes() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

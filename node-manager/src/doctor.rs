//! `nm doctor`: what this machine holds containers to, tried out and told to people.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use crate::args::{Args, Output};
use crate::cgroup::{self, Held};
use crate::root::Root;
use crate::users::Users;

/// Everything that is found out.
#[derive(Debug, Serialize)]
struct Findings {
    kernel: String,
    /// Which cgroups, where.
    cgroups: String,
    holds: Vec<Held>,
    /// Whom containers run as.
    user: String,
    /// Files that tell how long work waits for CPU, memory and disks.
    pressure: Held,
    /// What an operator should know.
    advice: Vec<String>,
}

/// Looks, and prints.
///
/// # Errors
/// Limits do not work here.
pub(crate) fn run(args: &Args, output: Output) -> Result<()> {
    let name = format!("doctor-{}", std::process::id());
    let (groups, holds) = cgroup::detect(args.cgroup_parent.as_deref(), &name, 1_000, args.unlimited)?;
    let cgroups = groups.describe();
    groups.dissolve()?;
    let findings = findings(args, cgroups, holds)?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Table => print!("{}", table(&findings)),
    }
    Ok(())
}

fn findings(args: &Args, cgroups: String, holds: Vec<Held>) -> Result<Findings> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let root = rustix::process::geteuid().is_root();
    let users = Users::choose(args.user.as_deref(), args.allow_root, args.uids)?;
    let pressure = std::path::Path::new("/proc/pressure/memory");
    let pressure = pressure.exists().then(|| "/proc/pressure".to_owned());
    let mut advice = Vec::new();
    if root && !users.are_others() {
        advice.push("containers run as root: each job can do to this machine whatever it wants".to_owned());
    }
    if let Some(path) = args.root.as_ref().filter(|path| path.is_dir()) {
        let tried = Root::open(path).and_then(|root| crate::reach::check(root.path(), &users));
        advice.extend(tried.err().map(|error| format!("{error:#}")));
    }
    for missing in holds.iter().filter(|held| held.by.is_none()) {
        advice.push(format!("{}: this kernel or its mounts have nothing that does it", missing.what));
    }
    Ok(Findings {
        kernel: read("/proc/sys/kernel/osrelease"),
        cgroups,
        holds,
        user: users.to_string(),
        pressure: Held { what: "pressure", by: pressure },
        advice,
    })
}

fn table(findings: &Findings) -> String {
    let mut text = String::new();
    let mut line = |what: &str, is: &str, by: &str| {
        let _ = writeln!(text, "{}", format!("{what:20} {is:4} {by}").trim_end());
    };
    line("kernel", "", &findings.kernel);
    line("cgroups", "", &findings.cgroups);
    for Held { what, by } in findings.holds.iter().chain([&findings.pressure]) {
        line(what, if by.is_some() { "yes" } else { "no" }, by.as_deref().unwrap_or_default());
    }
    line("containers run as", "", &findings.user);
    for advice in &findings.advice {
        let _ = writeln!(text, "note: {advice}");
    }
    text
}

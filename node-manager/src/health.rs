//! The node's health: room on its disks, how long work waits for memory and disks, and what a script of the
//! operator's says. A node that is not well keeps what it runs and gets nothing new; the reason is told to people.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// How often disks and pressure are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the script runs.
const SCRIPT_EVERY: Duration = Duration::from_secs(30);
/// How long the script may take.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(20);
/// How much of what the script says is told, characters.
const SAID: usize = 200;

/// What is looked at.
#[derive(Debug, Clone)]
pub(crate) struct Checks {
    /// Folders, with the free bytes that the disk of each must have.
    pub(crate) disks: Vec<(PathBuf, u64)>,
    /// The most that all work together may wait for memory, percent of the last minute.
    pub(crate) memory_pressure: f64,
    /// The same for disks.
    pub(crate) io_pressure: f64,
    /// Ends with 0 if the node is well, else says why not in its last line.
    pub(crate) script: Option<PathBuf>,
}

impl Checks {
    /// Looks again and again, and tells what changes, until nobody listens.
    pub(crate) async fn watch(self, tell: impl Fn(Option<String>) -> bool) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut ask = tokio::time::interval(SCRIPT_EVERY);
        for ticks in [&mut look, &mut ask] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let (mut told, mut by_script) = (None, None);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                _ = ask.tick(), if self.script.is_some() => {
                    if let Some(script) = &self.script {
                        by_script = verdict(script).await;
                    }
                }
            }
            let unhealthy = self.judge().or_else(|| by_script.clone());
            if unhealthy != told {
                match &unhealthy {
                    Some(why) => tracing::warn!(why, "this node is not well: it gets no new containers"),
                    None => tracing::info!("this node is well again"),
                }
                told.clone_from(&unhealthy);
                if !tell(unhealthy) {
                    return;
                }
            }
        }
    }

    /// Why the node is not well, by its disks and pressure. The words hold no number that changes with each look.
    fn judge(&self) -> Option<String> {
        let full = self.disks.iter().find(|(folder, least)| free(folder).is_some_and(|free| free < *least));
        if let Some((folder, least)) = full {
            return Some(format!("disk of {}: less than {} MiB free", folder.display(), least >> 20));
        }
        let waits = [("memory", self.memory_pressure), ("io", self.io_pressure)];
        let (what, most) =
            waits.into_iter().find(|(what, most)| pressure(what).is_some_and(|p| p > *most))?;
        Some(format!("{what} pressure: all work waits more than {most} % of the time"))
    }
}

/// Bytes that are free on the disk of `folder`; none if it cannot be said.
fn free(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    // Out of inodes is as full as out of blocks.
    let usable = stat.f_files == 0 || stat.f_favail > 0;
    Some(if usable { stat.f_bavail.saturating_mul(stat.f_frsize) } else { 0 })
}

/// How much of the last minute all work waited for `what`, percent.
fn pressure(what: &str) -> Option<f64> {
    waited(&std::fs::read_to_string(format!("/proc/pressure/{what}")).ok()?, "full", "avg60")
}

/// How much of the `span` that ends now `some` or all (`full`) work waited, percent, by a pressure file of the kernel's.
pub(crate) fn waited(text: &str, whose: &str, span: &str) -> Option<f64> {
    let mut words =
        text.lines().map(str::split_ascii_whitespace).find(|line| line.clone().next() == Some(whose))?;
    words.find_map(|word| word.strip_prefix(span)?.strip_prefix('=')?.parse().ok())
}

/// Runs the script; why the node is not well, if so.
async fn verdict(script: &Path) -> Option<String> {
    let name = script.display();
    let mut command = Command::new(script);
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(SCRIPT_PATIENCE, command.output()).await {
        Err(_) => Some(format!("{name} did not end within {} s", SCRIPT_PATIENCE.as_secs())),
        Ok(Err(error)) => Some(format!("{name} cannot be run: {error}")),
        Ok(Ok(output)) if output.status.success() => None,
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stdout);
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
            Some(format!("{name}: {}", last.trim().chars().take(SAID).collect::<String>()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_by_whose_it_is_and_its_span() {
        let text = "some avg10=1.00 avg60=2.00 avg300=3.00 total=4\nfull avg10=5.00 avg60=6.50 avg300=7.00 total=8\n";
        assert_eq!(waited(text, "full", "avg60"), Some(6.5));
        assert_eq!(waited(text, "some", "avg10"), Some(1.0));
        assert_eq!(waited("", "full", "avg60"), None);
    }

    #[test]
    fn a_disk_is_too_full_below_its_own_threshold() {
        let dir = tempfile::tempdir().unwrap();
        let checks = |least| Checks {
            disks: vec![(dir.path().to_owned(), least)],
            memory_pressure: 100.0,
            io_pressure: 100.0,
            script: None,
        };
        assert_eq!(checks(1).judge(), None);
        let why = checks(u64::MAX).judge().unwrap();
        assert!(why.starts_with(&format!("disk of {}: less than ", dir.path().display())), "{why}");
    }

    #[tokio::test]
    async fn a_script_that_fails_says_why_in_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("check");
        for (text, why) in [
            ("echo fine; exit 0", None),
            ("echo looking; echo disk sda is failing; exit 1", Some("disk sda is failing")),
            ("exit 1", Some("no reason given")),
        ] {
            std::fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            let expected = why.map(|why| format!("{}: {why}", script.display()));
            assert_eq!(verdict(&script).await, expected, "{text}");
        }
        let told = verdict(&dir.path().join("none")).await.unwrap();
        assert!(told.contains("cannot be run"), "{told}");
    }
}

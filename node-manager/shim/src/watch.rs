//! What a shim waits for: its children, what they say, the lease's end, and a node manager that stays away.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nm_shim::{ByShim, Folder, Order};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::output::Output;

/// More than a lease's end ever has, bytes.
const LEASE_MOST: u64 = 64;
/// How often to look whether a node manager lives, ms.
const NM_CHECK_MS: u64 = 10_000;
/// Between TERM and kill of a container that nobody manages, ms.
const ABANDONED_GRACE_MS: u64 = 30_000;
/// Between two rounds of killing, ms.
const KILL_AGAIN_MS: u64 = 50;

pub(crate) struct Watch<'a> {
    order: &'a Order,
    children: OwnedFd,
    timer: OwnedFd,
    nm_seen: u64,
    next_nm_check: u64,
    kill_abandoned_at: Option<u64>,
    next_kill: u64,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(order: &'a Order, children: OwnedFd) -> io::Result<Watch<'a>> {
        // BOOTTIME goes on while the machine sleeps, as the lease does.
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let now = boottime_ms();
        Ok(Watch {
            order,
            children,
            timer,
            nm_seen: now,
            next_nm_check: now + check_every_ms(order),
            kill_abandoned_at: None,
            next_kill: 0,
        })
    }

    /// Waits until a child ended, something was said or a deadline passed. Says why the container must be killed now,
    /// if it must; again and again until it is gone.
    pub(crate) fn wait(&mut self, process: u32, output: &mut Output) -> io::Result<Option<ByShim>> {
        let now = boottime_ms();
        let lease_end = self.order.lease.as_deref().map_or(u64::MAX, read_lease);
        self.look_for_nm(now, process);
        let due = if lease_end <= now {
            Some(ByShim::LeaseEnded)
        } else if self.kill_abandoned_at.is_some_and(|at| at <= now) {
            Some(ByShim::Abandoned)
        } else {
            None
        };
        if due.is_some() && self.next_kill <= now {
            self.next_kill = now + KILL_AGAIN_MS;
            return Ok(due);
        }
        let deadline = match due {
            Some(_) => self.next_kill,
            None => lease_end.min(self.kill_abandoned_at.unwrap_or(u64::MAX)),
        };
        self.sleep_until(deadline.min(self.next_nm_check))?;
        let mut fds =
            vec![PollFd::new(&self.children, PollFlags::IN), PollFd::new(&self.timer, PollFlags::IN)];
        fds.extend(output.pipes().map(|pipe| PollFd::from_borrowed_fd(pipe, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let said = fds[2..].iter().any(|pipe| !pipe.revents().is_empty());
        drop(fds);
        if said {
            output.pump();
        }
        drain(&self.children);
        drain(&self.timer);
        Ok(None)
    }

    /// The timer, not a timeout of poll: that one stands still while the machine sleeps.
    fn sleep_until(&self, boottime_ms: u64) -> io::Result<()> {
        let at = Timespec {
            tv_sec: i64::try_from(boottime_ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(boottime_ms % 1000).unwrap_or(0) * 1_000_000,
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)?;
        Ok(())
    }

    fn look_for_nm(&mut self, now: u64, process: u32) {
        if now < self.next_nm_check {
            return;
        }
        self.next_nm_check = now + check_every_ms(self.order);
        // A lock file that cannot be asked says nothing; only a free one says that nobody is there.
        let lives =
            File::open(&self.order.nm_lock).and_then(|file| crate::sys::is_locked(&file)).unwrap_or(false);
        if lives {
            self.nm_seen = now;
            return;
        }
        if self.kill_abandoned_at.is_none() && now.saturating_sub(self.nm_seen) >= self.order.abandon_ms {
            self.kill_abandoned_at = Some(now + ABANDONED_GRACE_MS);
            if let Some(group) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                // If it is gone already, the next look at the children finds it.
                let _ = kill_process_group(group, Signal::TERM);
            }
        }
    }
}

fn check_every_ms(order: &Order) -> u64 {
    NM_CHECK_MS.min(order.abandon_ms / 2).max(10)
}

/// Reaps every child that ended; the status of `process` if it was among them.
pub(crate) fn reap(process: u32) -> io::Result<Option<WaitStatus>> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if u32::try_from(pid.as_raw_nonzero().get()) == Ok(process) => {
                return Ok(Some(status));
            }
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) | Err(Errno::CHILD) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn drain(fd: &OwnedFd) {
    let mut buffer = [0u8; 1024];
    while read(fd, &mut buffer).is_ok_and(|n| n == buffer.len()) {}
}

/// A lease that cannot be read is no lease.
fn read_lease(file: &Path) -> u64 {
    let read = || {
        let name = file.file_name()?.to_str()?;
        let text = Folder::open(file.parent()?).ok()?.read(name, LEASE_MOST).ok()??;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    };
    read().unwrap_or(0)
}

fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

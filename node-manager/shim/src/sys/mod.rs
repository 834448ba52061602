//! The system calls that std and rustix leave to the brave: what happens between fork and exec, signals as a
//! file, and the question who holds a lock.
#![allow(unsafe_code)] // pre_exec, sigprocmask/signalfd and F_GETLK have no safe form.

mod sandbox;

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nm_shim::{Order, User};

use self::sandbox::Prepared;

/// How willingly the kernel kills a process when the machine is out of memory.
const SCORE: &std::ffi::CStr = c"/proc/self/oom_score_adj";
/// For so long a program may be busy. One that was just written is, while a process that nm forks at that moment has the
/// open file, which it closes when it becomes a program itself.
const BUSY: Duration = Duration::from_secs(2);

/// Starts the process of `order`; an error means that nothing runs. The child is in its cgroups, in a session of
/// its own, and dies with the shim. It writes into `output`.
pub(crate) fn spawn(order: &Order, output: [OwnedFd; 2]) -> io::Result<u32> {
    let [stdout, stderr] = output;
    let join = order
        .join
        .iter()
        .map(|path| OpenOptions::new().write(true).open(path))
        .collect::<io::Result<Vec<File>>>()?;
    let join_fds: Vec<RawFd> = join.iter().map(AsRawFd::as_raw_fd).collect();
    let is_spared = is_spared();
    let (user, groups, sandbox) = (order.user, order.groups.clone(), Prepared::new(&order.sandbox)?);
    let (program, args) = order
        .argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command line is empty"))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(&order.env)
        .current_dir(&order.work)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr);
    // SAFETY: the shim has one thread, and the closure makes only system calls on memory prepared before the fork.
    unsafe { command.pre_exec(move || in_child(&join_fds, is_spared, user, &groups, &sandbox)) };
    let start = Instant::now();
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && start.elapsed() < BUSY => {
                std::thread::sleep(BUSY / 200);
            }
            spawned => return Ok(spawned?.id()),
        }
    }
}

/// Runs in the child between fork and exec.
fn in_child(
    join: &[RawFd],
    is_spared: bool,
    user: Option<User>,
    groups: &[u32],
    sandbox: &Prepared,
) -> io::Result<()> {
    for fd in join {
        // SAFETY: writes one byte of a static string to a descriptor that the parent keeps open across the fork.
        check(unsafe { libc::write(*fd, c"0".as_ptr().cast(), 1) } as libc::c_int)?;
    }
    if is_spared {
        // SAFETY: plain system calls on static strings. Who is another user may not write this file any more.
        unsafe {
            let file = check(libc::open(SCORE.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
            check(libc::write(file, c"0".as_ptr().cast(), 1) as libc::c_int)?;
            check(libc::close(file))?;
        }
    }
    sandbox.enter()?;
    // SAFETY: plain system calls; `none` is initialised by sigemptyset before it is read.
    unsafe {
        check(libc::setsid())?;
        if let Some(user) = user {
            check(libc::setgroups(groups.len(), groups.as_ptr()))?;
            check(libc::setgid(user.gid))?;
            check(libc::setuid(user.uid))?;
        }
        // After the change of user, which clears it.
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        check(libc::sigemptyset(none.as_mut_ptr()))?;
        check(libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()))?;
    }
    sandbox.seal()
}

/// Whether the kernel spares this process, and so what it starts, when the machine is out of memory.
fn is_spared() -> bool {
    let score = std::fs::read_to_string("/proc/self/oom_score_adj");
    score.ok().and_then(|score| score.trim().parse::<i32>().ok()).is_some_and(|score| score < 0)
}

/// Blocks the signals that would end the shim, and returns a file that is readable when a child ended.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the sets are initialised by sigemptyset before use; signalfd returns a descriptor that we own.
    unsafe {
        let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
        check(libc::sigemptyset(blocked.as_mut_ptr()))?;
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE]
        {
            check(libc::sigaddset(blocked.as_mut_ptr(), signal))?;
        }
        check(libc::sigprocmask(libc::SIG_BLOCK, blocked.as_ptr(), std::ptr::null_mut()))?;
        let mut child = MaybeUninit::<libc::sigset_t>::uninit();
        check(libc::sigemptyset(child.as_mut_ptr()))?;
        check(libc::sigaddset(child.as_mut_ptr(), libc::SIGCHLD))?;
        let fd = check(libc::signalfd(-1, child.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Whether some process holds a lock on the file: a node manager lives.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    // SAFETY: an all-zero flock is valid, and F_GETLK only reads and writes that struct.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::F_WRLCK as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        check(libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

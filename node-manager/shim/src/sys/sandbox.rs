//! What a container may not see or do beyond its limits. Runs in the child between fork and exec, so everything that
//! needs memory is prepared before.
#![allow(unsafe_code)] // mounts, namespaces and prctl between fork and exec have no safe form.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nm_shim::files::Sandbox;
use seccompiler::BpfProgram;

/// Where devices are: always writable, or programs miss `/dev/shm`.
const DEVICES: &std::ffi::CStr = c"/dev";

/// A sandbox, ready to be entered.
pub(crate) struct Prepared {
    no_new_privileges: bool,
    no_capabilities: bool,
    private_tmp: Option<CString>,
    /// How the `/dev/shm` of its own is mounted, where there is one.
    shm: Option<CString>,
    filters: Option<[BpfProgram; 2]>,
    /// None: everything may be written that the user may write.
    writable: Option<Vec<CString>>,
}

impl Prepared {
    pub(crate) fn new(sandbox: &Sandbox) -> io::Result<Prepared> {
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
        let writable = sandbox.writable.as_ref();
        Ok(Prepared {
            no_new_privileges: sandbox.no_new_privileges,
            no_capabilities: sandbox.no_capabilities,
            private_tmp: sandbox.private_tmp.as_deref().map(text).transpose()?,
            shm: Path::new("/dev/shm")
                .is_dir()
                .then(|| CString::new(format!("size={},mode=1777", sandbox.shm_bytes)))
                .transpose()?,
            filters: sandbox.seccomp.then(crate::seccomp::filters).transpose()?,
            writable: writable.map(|all| all.iter().map(|path| text(path)).collect()).transpose()?,
        })
    }

    /// Before the change of user.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // SAFETY: plain system calls on strings that were prepared before the fork.
        unsafe {
            if self.private_tmp.is_some() || self.writable.is_some() {
                check(libc::unshare(libc::CLONE_NEWNS))?;
                mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
            }
            if let Some(folder) = &self.private_tmp {
                check(libc::unshare(libc::CLONE_NEWIPC))?;
                mount(Some(folder), c"/tmp", libc::MS_BIND)?;
                if let Some(how) = &self.shm {
                    mount_tmpfs(c"/dev/shm", how)?;
                }
            }
            if let Some(writable) = &self.writable {
                // Each a mount of its own, which can then be told from the rest.
                for folder in writable {
                    mount(Some(folder), folder, libc::MS_BIND | libc::MS_REC)?;
                }
                set_read_only(c"/", true)?;
                let tmp = self.private_tmp.as_ref().map(|_| c"/tmp");
                for folder in writable.iter().map(CString::as_c_str).chain(tmp).chain([DEVICES]) {
                    set_read_only(folder, false)?;
                }
                // The first is where it works; it must be there through the new mount, not the old one.
                if let Some(work) = writable.first() {
                    check(libc::chdir(work.as_ptr()))?;
                }
            }
            if self.no_capabilities {
                for capability in 0..64 {
                    if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                        break; // the kernel has no more
                    }
                }
            }
        }
        Ok(())
    }

    /// After the change of user.
    pub(crate) fn seal(&self) -> io::Result<()> {
        if self.no_new_privileges {
            // SAFETY: a plain system call.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        }
        // Last: they refuse what was done until now.
        for filter in self.filters.iter().flatten() {
            seccompiler::apply_filter(filter).map_err(|_| io::Error::last_os_error())?;
        }
        Ok(())
    }
}

/// # Safety
/// None beyond that of a system call; strings are checked by their types.
unsafe fn mount(from: Option<&CString>, to: &std::ffi::CStr, flags: libc::c_ulong) -> io::Result<()> {
    let from = from.map_or(std::ptr::null(), |from| from.as_ptr());
    // SAFETY: null or terminated strings; no data.
    check(unsafe { libc::mount(from, to.as_ptr(), std::ptr::null(), flags, std::ptr::null()) })
}

/// # Safety
/// As that of [`mount`].
unsafe fn mount_tmpfs(to: &std::ffi::CStr, how: &CString) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: terminated strings, of which the last is what this file system reads as text.
    check(unsafe {
        libc::mount(c"tmpfs".as_ptr(), to.as_ptr(), c"tmpfs".as_ptr(), flags, how.as_ptr().cast())
    })
}

/// As `mount_attr` of Linux 5.12.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes the mount at `path` and all below it read-only, or writable.
fn set_read_only(path: &std::ffi::CStr, read_only: bool) -> io::Result<()> {
    const AT_RECURSIVE: libc::c_uint = 0x8000;
    const RDONLY: u64 = 1;
    let (set, clear) = if read_only { (RDONLY, 0) } else { (0, RDONLY) };
    let attributes = Attributes { set, clear, propagation: 0, user_namespace: 0 };
    // SAFETY: a terminated string and a struct of the size that is told, both alive during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            AT_RECURSIVE,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

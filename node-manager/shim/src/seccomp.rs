//! The system calls that containers do without: those that change the machine, its clock, its mounts or its kernel, look
//! into it, or have been the way out of many a container. As the default profiles of container engines have it: what is
//! refused says "not permitted", and `clone3`, whose flags cannot be seen, is not there, so that libraries use `clone`.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Refused whatever their arguments.
const REFUSED: [libc::c_long; 56] = [
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    libc::SYS_pidfd_getfd,
    libc::SYS_memfd_secret,
];

/// What a new process may not have of its own: namespaces, in which it would be root.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The other numbers of the same calls, in the processor's mode of 32-bit addresses.
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: Option<i64> = Some(0x4000_0000);
#[cfg(not(target_arch = "x86_64"))]
const OTHER_NUMBERS: Option<i64> = None;

/// The filters, ready to be set between fork and exec.
///
/// # Errors
/// There are none for this processor.
pub(crate) fn filters() -> io::Result<[BpfProgram; 2]> {
    let mut refused = rules(REFUSED.iter().map(|call| (*call, Vec::new())));
    refused.extend(rules(namespaces()?.map(|(call, rule)| (call, vec![rule]))));
    let absent = rules([(libc::SYS_clone3, Vec::new())].into_iter());
    Ok([compiled(refused, libc::EPERM)?, compiled(absent, libc::ENOSYS)?])
}

/// One rule for each flag: a call with any of them is refused.
fn namespaces() -> io::Result<impl Iterator<Item = (libc::c_long, SeccompRule)>> {
    let flags = (0..u64::BITS).map(|bit| 1 << bit).filter(|flag| NAMESPACES & flag != 0);
    let rules: Result<Vec<_>, _> = flags
        .map(|flag| {
            let has = SeccompCmpOp::MaskedEq(flag);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, has, flag)?;
            Ok((libc::SYS_clone, SeccompRule::new(vec![condition])?))
        })
        .collect();
    rules.map(Vec::into_iter).map_err(|error: seccompiler::BackendError| io::Error::other(error.to_string()))
}

fn rules(calls: impl Iterator<Item = (libc::c_long, Vec<SeccompRule>)>) -> BTreeMap<i64, Vec<SeccompRule>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, of_call) in calls {
        for number in [Some(call), OTHER_NUMBERS.map(|other| call | other)].into_iter().flatten() {
            rules.entry(number).or_default().extend(of_call.iter().cloned());
        }
    }
    rules
}

fn compiled(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> io::Result<BpfProgram> {
    let other = |error: seccompiler::BackendError| io::Error::other(error.to_string());
    let here = std::env::consts::ARCH.try_into().map_err(other)?;
    let refused = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, refused, here).and_then(TryInto::try_into).map_err(other)
}

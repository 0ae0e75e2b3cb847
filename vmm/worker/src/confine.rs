//! What a worker may do once it is confined: serve its machine, or its machine's network, with the handles that it
//! has.
//!
//! Two walls, each for itself. A **seccomp** filter leaves the system calls that a machine needs; all
//! others do not exist (`ENOSYS`): no program can be started, no other process be traced or signalled,
//! no socket be made. A **Landlock** domain leaves the files that were handed over, `/dev/kvm`, and what
//! stands below shares; no TCP port, no abstract socket and no other process is in reach. A kernel
//! without one of them gives the other alone, and the engine hears of it.
//!
//! A worker for a network ([`confine_network`]) may make sockets and read the system's configuration, which the
//! host's resolver needs, and has neither `/dev/kvm` nor any folder of the user's.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// The Landlock generation whose rights are asked for; an older kernel gives those that it knows.
const ASKED: ABI = ABI::V6;

/// What was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// System calls are filtered.
    pub system_calls: bool,
    /// Files are out of reach but for those handed over.
    pub files: bool,
}

/// What a handed-over file or folder may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// Confines the calling thread and all that it starts from now on. To be called before the process has
/// a second thread and before it reads what others wrote.
pub fn confine<'a>(
    files: impl IntoIterator<Item = (BorrowedFd<'a>, bool)>,
) -> Result<Confinement, ConfineError> {
    let uses = files.into_iter();
    let uses = uses.map(|(file, write)| (file, if write { Use::Write } else { Use::Read }));
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let files =
        confine_files(uses, &[(Path::new("/dev/kvm"), device)], AccessNet::from_all(ASKED))?;
    confine_system_calls(&[COMMON, READING, FILES])?;
    Ok(Confinement { system_calls: true, files })
}

/// As [`confine`], for a process that serves a network: `files` are written. `readable` are where the certificates are
/// that this host trusts, if somewhere else than usual, and the script that names proxies.
pub(crate) fn confine_network<'a>(
    files: impl IntoIterator<Item = BorrowedFd<'a>>,
    readable: &[PathBuf],
) -> Result<Confinement, ConfineError> {
    let uses = files.into_iter().map(|file| (file, Use::Write));
    let paths = SYSTEM.iter().map(Path::new).chain(readable.iter().map(PathBuf::as_path));
    let readable: Vec<_> = paths.map(|path| (path, rights(Use::Read, path.is_dir()))).collect();
    let files = confine_files(uses, &readable, BitFlags::empty())?;
    confine_system_calls(&[COMMON, READING, SOCKETS])?;
    Ok(Confinement { system_calls: true, files })
}

/// What a resolver reads: its configuration, the modules that it loads, and who answers for the network at the moment.
const SYSTEM: [&str; 6] = ["/etc", "/usr", "/lib", "/lib64", "/run", "/var/run"];

/// Why a worker cannot confine itself.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Landlock.
    #[error("Landlock refused: {0}")]
    Files(#[from] RulesetError),
    /// The filter.
    #[error("the system-call filter was refused: {0}")]
    SystemCalls(String),
    /// A handle.
    #[error("a handle cannot be looked at: {0}")]
    Handle(#[from] io::Error),
}

/// `paths` are what is there beside the handles, with its rights; one that is missing stays so. `ports` are those
/// uses of TCP that there are not.
fn confine_files<'a>(
    files: impl Iterator<Item = (BorrowedFd<'a>, Use)>,
    paths: &[(&Path, BitFlags<AccessFs>)],
    ports: BitFlags<AccessNet>,
) -> Result<bool, ConfineError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ASKED))?;
    if !ports.is_empty() {
        rules = rules.handle_access(ports)?;
    }
    let mut rules = rules.scope(Scope::from_all(ASKED))?.create()?;
    for (path, rights) in paths {
        if let Ok(there) = PathFd::new(path) {
            rules = add(rules, there, *rights)?;
        }
    }
    for (file, purpose) in files {
        let metadata = std::fs::File::from(file.try_clone_to_owned()?).metadata()?;
        rules = add(rules, file, rights(purpose, metadata.is_dir()))?;
    }
    let status = rules.restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn add(
    rules: RulesetCreated,
    file: impl AsFd,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    rules.add_rule(PathBeneath::new(file, rights))
}

fn rights(purpose: Use, is_folder: bool) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let all = match purpose {
        Use::Read => read,
        Use::Write => AccessFs::from_all(ASKED) & !never,
    };
    if is_folder { all } else { all & AccessFs::from_file(ASKED) }
}

fn confine_system_calls(allowed: &[&[i64]]) -> Result<(), ConfineError> {
    let refused = |error: &dyn std::fmt::Display| ConfineError::SystemCalls(error.to_string());
    let arch: TargetArch = std::env::consts::ARCH.try_into().map_err(|error| refused(&error))?;
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let rules = rules(allowed).map_err(|error| refused(&error))?;
    let filter = SeccompFilter::new(rules, missing, SeccompAction::Allow, arch)
        .map_err(|error| refused(&error))?;
    let program: BpfProgram = filter.try_into().map_err(|error| refused(&error))?;
    apply_filter(&program).map_err(|error| refused(&error))
}

fn rules(allowed: &[&[i64]]) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let allowed = allowed.iter().flat_map(|calls| calls.iter());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        allowed.map(|call| (*call, Vec::new())).collect();
    let only = |argument, operator, value| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    // Threads, and no processes. `clone3` hides its flags, so the C library is to use `clone`.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![only(0, SeccompCmpOp::MaskedEq(thread), thread)?]);
    // Threads of this process are kicked out of the guest by a signal.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, own)?]);
    // Names of threads and mappings.
    let names = [libc::PR_SET_NAME as u64, libc::PR_SET_VMA as u64];
    let names = names.map(|option| only(0, SeccompCmpOp::Eq, option));
    rules.insert(libc::SYS_prctl, names.into_iter().collect::<Result<_, _>>()?);
    Ok(rules)
}

/// What every worker needs, whatever its arguments.
const COMMON: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_memfd_create,
    // Threads and signals.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Time and chance.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    // Who and how much.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getuid,
    libc::SYS_prlimit64,
    libc::SYS_uname,
    // Handles; `ioctl` is the hypervisor.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Bytes.
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Files that are written to, too.
const FILES: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_flock,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_lgetxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_lremovexattr,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_openat2,
    libc::SYS_removexattr,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    // What x86-64 has beside the newer forms.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
];

/// Files that are read, within what Landlock leaves.
const READING: &[i64] = &[
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
];

/// Sockets of any kind that an ordinary user may have.
const SOCKETS: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    libc::SYS_setsockopt,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_sysinfo,
];

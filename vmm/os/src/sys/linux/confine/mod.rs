//! What a process may do once it is confined: work with the handles that it has.
//!
//! Two walls, each for itself. A **seccomp** filter leaves the system calls that its work needs; all
//! others do not exist (`ENOSYS`): no program can be started, no other process be traced or signalled,
//! no socket be made. A **Landlock** domain leaves the files that were handed over, and for a machine `/dev/kvm` and what
//! stands below shares; no TCP port, no abstract socket and no other process is in reach. A kernel
//! without one of them gives the other alone, and the caller hears of it.

mod calls;

use std::collections::BTreeMap;
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

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

pub use crate::sys::confinement::{ConfineError, Confinement};
use calls::{COMMON, COMPUTING, FILES, READING, SOCKETS};

/// The Landlock generation whose rights are asked for; an older kernel gives those that it knows.
const ASKED: ABI = ABI::V6;

/// What a handed-over file or folder may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// Confines the calling thread and all that it starts from now on to what a machine needs: these files, and whether they are
/// written. To be called before the process has a second thread and before it reads what others wrote.
pub fn machine<'a>(
    files: impl IntoIterator<Item = (BorrowedFd<'a>, bool)>,
) -> Result<Confinement, ConfineError> {
    let uses = files.into_iter();
    let uses = uses.map(|(file, write)| (file, if write { Use::Write } else { Use::Read }));
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let files =
        confine_files(uses, &[(Path::new("/dev/kvm"), device)], AccessNet::from_all(ASKED))?;
    confine_system_calls(rules(&[COMMON, READING, FILES]))?;
    Ok(Confinement { system_calls: true, files })
}

/// As [`machine`], for a process that serves a network: it may make sockets and read the system's configuration, which the
/// host's resolver needs, and has neither `/dev/kvm` nor any folder of the user's. `files` are written; `readable` are where
/// the certificates are that this host trusts, if somewhere else than usual, and the script that names proxies.
pub fn network<'a>(
    files: impl IntoIterator<Item = BorrowedFd<'a>>,
    readable: &[PathBuf],
) -> Result<Confinement, ConfineError> {
    let uses = files.into_iter().map(|file| (file, Use::Write));
    let paths = SYSTEM.iter().map(Path::new).chain(readable.iter().map(PathBuf::as_path));
    let readable: Vec<_> = paths.map(|path| (path, rights(Use::Read, path.is_dir()))).collect();
    let files = confine_files(uses, &readable, BitFlags::empty())?;
    confine_system_calls(rules(&[COMMON, READING, SOCKETS]))?;
    Ok(Confinement { system_calls: true, files })
}

/// As [`machine`], for a process that does nothing but compute in so many bytes of address space, and answer by a channel that
/// it has. Nothing of the kernel's files, ports and processes is in reach.
pub fn computation(memory: u64) -> Result<(), ConfineError> {
    let all = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    for (resource, most) in [(Resource::As, memory), (Resource::Core, 0)] {
        setrlimit(resource, all(most)).map_err(refused("a limit"))?;
    }
    confine_files(std::iter::empty(), &[], AccessNet::from_all(ASKED))?;
    confine_system_calls(computing())?;
    Ok(())
}

/// Gives this process its time anew, in seconds of a processor; when that is over the kernel ends it.
pub fn limit_time(seconds: u64) -> std::io::Result<()> {
    let used = clock_gettime(ClockId::ProcessCPUTime).tv_sec;
    let used = u64::try_from(used).unwrap_or_default();
    let maximum = getrlimit(Resource::Cpu).maximum;
    Ok(setrlimit(Resource::Cpu, Rlimit { current: Some(used + seconds), maximum })?)
}

/// What a resolver reads: its configuration, the modules that it loads, and who answers for the network at the moment.
const SYSTEM: [&str; 6] = ["/etc", "/usr", "/lib", "/lib64", "/run", "/var/run"];

impl From<RulesetError> for ConfineError {
    fn from(error: RulesetError) -> Self {
        refused("Landlock")(error)
    }
}

/// An error of a wall.
fn refused<E: std::fmt::Display>(wall: &'static str) -> impl Fn(E) -> ConfineError {
    move |error| ConfineError::Refused { wall, why: error.to_string() }
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

/// The calls with what they may be called with, or why there is no such filter.
type Rules = Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError>;

fn confine_system_calls(rules: Rules) -> Result<(), ConfineError> {
    let apply = || -> Result<(), seccompiler::Error> {
        let arch: TargetArch = std::env::consts::ARCH.try_into()?;
        let missing = SeccompAction::Errno(libc::ENOSYS as u32);
        let filter = SeccompFilter::new(rules?, missing, SeccompAction::Allow, arch)?;
        let program: BpfProgram = filter.try_into()?;
        apply_filter(&program)
    };
    apply().map_err(refused("the system-call filter"))
}

fn rules(allowed: &[&[i64]]) -> Rules {
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

fn computing() -> Rules {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        COMPUTING.iter().map(|call| (*call, Vec::new())).collect();
    // Limits are its own.
    let own = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![own])?]);
    Ok(rules)
}

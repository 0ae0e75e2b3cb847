//! The system call filter of sessions: what of the kernel their processes cannot reach.
//!
//! It refuses what compilers, test runners, package managers and language runtimes do without and what
//! kernel exploits are made of. Programs that probe for an interface are told that the kernel lacks it
//! (ENOSYS); what only root may do anyway is EPERM. Numbers that this kernel's generation does not know
//! are ENOSYS too, so that a newer kernel offers nothing more.
//!
//! The verdict is found by a binary search over the numbers: the kernel runs the filter once for every
//! number when it is set, to remember what is always allowed (`seccomp_cache_prepare`), and that is paid
//! by every exec.

use std::io;
use std::sync::OnceLock;

use libc::{c_long, sock_filter};

/// The last system call of Linux 6.12: `mseal`.
const LAST: u32 = 462;

/// `AUDIT_ARCH_*` of this processor (`linux/audit.h`).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data` (`linux/seccomp.h`); the low halves of arguments, little endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Every flag of `clone` and `unshare` that makes a namespace.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
const CLONE_NEWTIME: u32 = 0x80;

/// Requests of `ioctl`: injecting terminal input, and the flags and project of a file, which decide
/// whose quota it counts to (`asm-generic/ioctls.h`, `linux/fs.h`).
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC32_SETFLAGS: u32 = 0x4004_6602;
const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

/// Personalities (`linux/personality.h`): the ordinary one, without address randomization (debuggers),
/// and the question for the one in force.
const PERSONALITIES: [u32; 3] = [0, 0x0004_0000, 0xffff_ffff];

/// `kexec_file_load`, which `libc` names for one processor only.
#[cfg(target_arch = "x86_64")]
const KEXEC_FILE_LOAD: c_long = libc::SYS_kexec_file_load;
#[cfg(target_arch = "aarch64")]
const KEXEC_FILE_LOAD: c_long = 294;

/// `mount_setattr` and the like are not in `libc` for every processor, but their numbers are the same
/// everywhere from 424 on.
const OPEN_TREE: c_long = 428;
const MOVE_MOUNT: c_long = 429;
const FSOPEN: c_long = 430;
const FSCONFIG: c_long = 431;
const FSMOUNT: c_long = 432;
const FSPICK: c_long = 433;
const MOUNT_SETATTR: c_long = 442;
const QUOTACTL_FD: c_long = 443;
const STATMOUNT: c_long = 457;
const LISTMOUNT: c_long = 458;
const LSM_GET_SELF_ATTR: c_long = 459;
const LSM_SET_SELF_ATTR: c_long = 460;
const LSM_LIST_MODULES: c_long = 461;

/// What only root may do: mounts, namespaces, clocks, names, the kernel itself.
const FORBIDDEN: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    OPEN_TREE,
    MOVE_MOUNT,
    FSOPEN,
    FSCONFIG,
    FSMOUNT,
    FSPICK,
    MOUNT_SETATTR,
    libc::SYS_quotactl,
    QUOTACTL_FD,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    KEXEC_FILE_LOAD,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_vhangup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

/// What programs ask for and do without: they fall back to something older.
const MISSING: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    // Its contexts come out of one number for the whole machine.
    libc::SYS_io_setup,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_nfsservctl,
    STATMOUNT,
    LISTMOUNT,
    LSM_GET_SELF_ATTR,
    LSM_SET_SELF_ATTR,
    LSM_LIST_MODULES,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// Sets the filter for this thread and what it executes. It takes `PR_SET_NO_NEW_PRIVS`. Between a fork
/// and an exec it is safe if [`program`] has been called before.
pub(super) fn apply() -> io::Result<()> {
    let program = program();
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads a program of the length that it says, and copies it.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The filter, made once.
pub(crate) fn program() -> &'static [sock_filter] {
    static PROGRAM: OnceLock<Vec<sock_filter>> = OnceLock::new();
    PROGRAM.get_or_init(assemble)
}

fn assemble() -> Vec<sock_filter> {
    let mut verdicts: Vec<(u32, Vec<sock_filter>)> = Vec::new();
    verdicts.extend(FORBIDDEN.iter().map(|number| (*number as u32, vec![refuse(libc::EPERM)])));
    verdicts.extend(MISSING.iter().map(|number| (*number as u32, vec![refuse(libc::ENOSYS)])));
    verdicts.extend(by_argument().map(|(number, code)| (number as u32, code)));
    verdicts.sort_by_key(|(number, _)| *number);

    // Ranges of numbers by their first: what is named, and between the names what is allowed.
    let mut ranges = vec![(0, vec![allow()])];
    for (number, code) in verdicts {
        if ranges.last().is_some_and(|(first, _)| *first == number) {
            ranges.pop();
        }
        ranges.push((number, code));
        ranges.push((number + 1, vec![allow()]));
    }
    // Also those of the x32 interface, which are large.
    ranges.retain(|(first, _)| *first <= LAST);
    ranges.push((LAST + 1, vec![refuse(libc::ENOSYS)]));

    let kill = statement(libc::BPF_RET, libc::SECCOMP_RET_KILL_PROCESS);
    let mut program = vec![load(ARCH), except_if(ARCHITECTURE), kill, load(NUMBER)];
    program.extend(search(&ranges));
    program
}

/// Calls whose arguments decide.
fn by_argument() -> impl Iterator<Item = (c_long, Vec<sock_filter>)> {
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6].map(|family| family as u32);
    let no_family = refuse(libc::EAFNOSUPPORT);
    let mut socket = vec![load(argument(0))];
    for family in families {
        socket.extend([only_if(family), allow()]);
    }
    socket.extend([
        // Addresses and routes, for getifaddrs(3); no other protocol of netlink.
        except_if(libc::AF_NETLINK as u32),
        no_family,
        load(argument(2)),
        only_if(libc::NETLINK_ROUTE as u32),
        allow(),
        no_family,
    ]);
    let refuse_values = |index, values: &[u32], errno| {
        let mut code = vec![load(argument(index))];
        for value in values {
            code.extend([only_if(*value), refuse(errno)]);
        }
        code.push(allow());
        code
    };
    let terminal_and_quota =
        [TIOCSTI, TIOCLINUX, FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR];
    let mut personality = vec![load(argument(0))];
    for value in PERSONALITIES {
        personality.extend([only_if(value), allow()]);
    }
    personality.push(refuse(libc::EPERM));
    let no_namespaces =
        |flags| vec![load(argument(0)), only_if_any_of(flags), refuse(libc::EPERM), allow()];
    [
        (libc::SYS_socket, socket.clone()),
        (libc::SYS_socketpair, socket),
        (libc::SYS_ioctl, refuse_values(1, &terminal_and_quota, libc::ENOTTY)),
        (libc::SYS_personality, personality),
        // The low byte of clone's flags is a signal.
        (libc::SYS_clone, no_namespaces(NAMESPACES)),
        (libc::SYS_unshare, no_namespaces(NAMESPACES | CLONE_NEWTIME)),
    ]
    .into_iter()
}

/// Code that runs the code of the range in which the loaded number stands.
fn search(ranges: &[(u32, Vec<sock_filter>)]) -> Vec<sock_filter> {
    match ranges {
        [] => vec![refuse(libc::ENOSYS)],
        [(_, code)] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let (first, low, high) = (high[0].0, search(low), search(high));
            // A jump reaches 255 instructions; a test sees to it that the halves are shorter.
            let mut code = vec![jump(libc::BPF_JGE, first, low.len() as u8, 0)];
            code.extend(low);
            code.extend(high);
            code
        }
    }
}

fn statement(code: u32, value: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

fn jump(condition: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    let code = (libc::BPF_JMP | condition | libc::BPF_K) as u16;
    sock_filter { code, jt: yes, jf: no, k: value }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

/// The next instruction counts only if the loaded value is this one.
fn only_if(value: u32) -> sock_filter {
    jump(libc::BPF_JEQ, value, 0, 1)
}

/// The next instruction counts except if the loaded value is this one.
fn except_if(value: u32) -> sock_filter {
    jump(libc::BPF_JEQ, value, 1, 0)
}

/// The next instruction counts only if the loaded value has one of these bits.
fn only_if_any_of(bits: u32) -> sock_filter {
    jump(libc::BPF_JSET, bits, 0, 1)
}

fn allow() -> sock_filter {
    statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW)
}

fn refuse(errno: libc::c_int) -> sock_filter {
    statement(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | errno as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says to a call of this architecture.
    fn verdict(number: c_long, arguments: &[u64]) -> u32 {
        run(ARCHITECTURE, number as u32, arguments)
    }

    /// Runs the program as the kernel would, with every jump and load checked.
    fn run(architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        let (program, mut at, mut value) = (program(), 0, 0);
        loop {
            let step = program[at];
            at += 1;
            match u32::from(step.code) {
                0x20 => {
                    value = match step.k {
                        NUMBER => number,
                        ARCH => architecture,
                        offset => arguments[(offset as usize - 16) / 8] as u32,
                    }
                }
                0x06 => return step.k,
                code => {
                    let holds = match code {
                        0x15 => value == step.k,
                        0x35 => value >= step.k,
                        0x45 => value & step.k != 0,
                        other => panic!("code {other:#x}"),
                    };
                    at += usize::from(if holds { step.jt } else { step.jf });
                }
            }
        }
    }

    fn errno(errno: libc::c_int) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno as u32
    }

    #[test]
    fn what_programs_live_on_is_allowed() {
        for number in [
            libc::SYS_read,
            libc::SYS_openat,
            libc::SYS_mmap,
            libc::SYS_execve,
            libc::SYS_wait4,
            libc::SYS_futex,
            libc::SYS_ptrace,
            libc::SYS_seccomp,
            libc::SYS_prctl,
            libc::SYS_memfd_create,
            libc::SYS_landlock_create_ruleset,
            LAST as c_long,
        ] {
            assert_eq!(verdict(number, &[]), libc::SECCOMP_RET_ALLOW, "{number}");
        }
    }

    #[test]
    fn what_is_named_is_refused_and_its_neighbours_are_not() {
        for (list, expected) in [(FORBIDDEN, libc::EPERM), (MISSING, libc::ENOSYS)] {
            for number in list {
                assert_eq!(verdict(*number, &[]), errno(expected), "{number}");
            }
        }
        let named = |number: &c_long| {
            FORBIDDEN.contains(number)
                || MISSING.contains(number)
                || by_argument().any(|(other, _)| other == *number)
        };
        for number in (0..=c_long::from(LAST)).filter(|number| !named(number)) {
            assert_eq!(verdict(number, &[]), libc::SECCOMP_RET_ALLOW, "{number}");
        }
    }

    #[test]
    fn numbers_of_later_kernels_and_of_x32_do_not_exist() {
        for number in [LAST + 1, 1000, 0x4000_0000, 0x4000_00a5, u32::MAX] {
            assert_eq!(run(ARCHITECTURE, number, &[]), errno(libc::ENOSYS), "{number}");
        }
    }

    #[test]
    fn another_architecture_is_death() {
        assert_eq!(run(0x4000_0003, 1, &[]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn sockets_are_local_or_of_the_internet() {
        let socket = |family: libc::c_int, protocol: u64| {
            verdict(libc::SYS_socket, &[family as u64, 1, protocol])
        };
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
            assert_eq!(socket(family, 0), libc::SECCOMP_RET_ALLOW, "{family}");
        }
        for family in [libc::AF_VSOCK, libc::AF_PACKET, libc::AF_ALG, libc::AF_KEY, 0, -1] {
            assert_eq!(socket(family, 0), errno(libc::EAFNOSUPPORT), "{family}");
        }
        assert_eq!(socket(libc::AF_NETLINK, 15), errno(libc::EAFNOSUPPORT));
        // The kernel takes the low half alone.
        let high = libc::AF_VSOCK as u64 | 1 << 32;
        assert_eq!(verdict(libc::SYS_socket, &[high, 1, 0]), errno(libc::EAFNOSUPPORT));
    }

    #[test]
    fn no_flag_makes_a_namespace() {
        for bit in 0..32 {
            let flag = 1u64 << bit;
            let namespace = flag as u32 & NAMESPACES != 0;
            let expected = if namespace { errno(libc::EPERM) } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(verdict(libc::SYS_clone, &[flag]), expected, "{flag:#x}");
        }
        assert_eq!(verdict(libc::SYS_unshare, &[0x80]), errno(libc::EPERM));
        assert_eq!(verdict(libc::SYS_unshare, &[0x400]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn terminals_and_quotas_are_left_alone() {
        for request in [TIOCSTI, TIOCLINUX, FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR] {
            let request = u64::from(request) | 0xdead_0000_0000;
            assert_eq!(verdict(libc::SYS_ioctl, &[0, request]), errno(libc::ENOTTY));
        }
        assert_eq!(verdict(libc::SYS_ioctl, &[0, 0x5401]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn the_kernel_takes_the_program_and_every_jump_is_short() {
        assert!(program().len() < 500);
        // SAFETY: the child makes system calls alone and ends.
        let child = unsafe { crate::fork::fork(0, None) }.unwrap();
        let Some(child) = child else {
            let status = (|| {
                program();
                rustix::thread::set_no_new_privs(true)?;
                apply()?;
                // SAFETY: makes a socket; no memory is involved.
                let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0) };
                let error = io::Error::last_os_error().raw_os_error();
                io::Result::Ok(i32::from(socket >= 0 || error != Some(libc::EAFNOSUPPORT)))
            })();
            crate::fork::exit(status.unwrap_or(2));
        };
        let options = rustix::process::WaitIdOptions::EXITED;
        let status = rustix::process::waitid(rustix::process::WaitId::Pid(child.pid), options);
        assert_eq!(status.unwrap().unwrap().exit_status(), Some(0));
    }
}

"""Attempts to cross from one session into another, into the machine or into its kernel.

    attacks.py ROLE VICTIM_PID VICTIM_UID NAME...

Each runs in a process of its own and says in one line what came of it: `NAME<tab>crossed` or
`NAME<tab>held: WHY`, where WHY is the kernel's error or the signal that ended the attempt. ROLE says
from where: `attacker` (another session), `inside` (the victim's own) or `root` (the machine's root). The
numbers of the victim's process and user are those of the machine.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import pwd
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading

ROLE, VICTIM_PID, VICTIM_UID = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
PATIENCE = 60  # seconds for one attempt
MARK = b"victim-sleeper"
SECRET = "/sessions/victim/secret"

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
TABLE = {}


class Held(Exception):
    """The attempt failed for this reason."""


def attempt(function):
    TABLE[function.__name__.replace("_", "-")] = function
    return function


def call(number, *arguments):
    """A system call; a failure is an OSError."""
    converted = [
        argument if isinstance(argument, (bytes, ctypes._SimpleCData, ctypes.Array)) or argument is None
        else ctypes.c_ulong(argument & 0xFFFF_FFFF_FFFF_FFFF) if isinstance(argument, int)
        else argument
        for argument in arguments
    ]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def others():
    """Processes that are not this attempt's own, as far as they can be seen."""
    mine = {os.getpid(), os.getppid()}
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in mine]


def victims():
    """The victim's process as it can be seen from here."""
    found = []
    for number in others():
        try:
            with open(f"/proc/{number}/cmdline", "rb") as line:
                if MARK in line.read():
                    found.append(number)
        except OSError:
            pass
    return found


def read(path):
    with open(path, "rb") as file:
        return file.read(64)


# Processes.

@attempt
def kill_by_number():
    """Signal every number that a process of somebody else's may have."""
    seen = set(others()) if ROLE == "attacker" else set()
    mine = {os.getpid(), os.getppid()} | seen
    last = errno.ESRCH
    for number in range(2, 4000):
        if number in mine:
            continue
        try:
            os.kill(number, 0)
            return
        except OSError as error:
            last = error.errno
    raise OSError(last, "nobody")


@attempt
def kill_the_first_process():
    os.kill(1, signal.SIGTERM)


@attempt
def pidfd_of_the_victim():
    os.close(os.pidfd_open(VICTIM_PID))


@attempt
def see_the_victims_process():
    if not victims():
        raise Held("not in /proc")


@attempt
def environment_of_the_first_process():
    read("/proc/1/environ")


@attempt
def root_of_the_first_process():
    os.listdir("/proc/1/root")


@attempt
def memory_of_the_first_process():
    os.close(os.open("/proc/1/mem", os.O_RDWR))


@attempt
def descriptors_of_the_first_process():
    os.listdir("/proc/1/fd")


@attempt
def ptrace_the_first_process():
    target = VICTIM_PID if ROLE == "root" else 1
    call(101, 16, target, 0, 0)  # PTRACE_ATTACH
    os.waitpid(target, 0x40000000)
    call(101, 17, target, 0, 0)  # PTRACE_DETACH


@attempt
def ptrace_by_the_machines_number():
    call(101, 16, VICTIM_PID, 0, 0)
    os.waitpid(VICTIM_PID, 0x40000000)
    call(101, 17, VICTIM_PID, 0, 0)


@attempt
def read_anothers_memory():
    target = VICTIM_PID if ROLE == "root" else 1
    start = 0x10000
    if ROLE == "root":
        with open(f"/proc/{target}/maps") as maps:
            start = int(maps.readline().split("-")[0], 16)
    into = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(into), 8)
    remote = struct.pack("QQ", start, 8)
    call(310, target, local, 1, remote, 1, 0)  # process_vm_readv


@attempt
def slow_the_victim_down():
    os.setpriority(os.PRIO_USER, VICTIM_UID, 5)


@attempt
def go_before_others():
    os.setpriority(os.PRIO_PROCESS, 0, -5)


@attempt
def real_time_for_itself():
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@attempt
def real_time_input_and_output():
    call(251, 1, 0, 1 << 13)  # ioprio_set, IOPRIO_CLASS_RT


@attempt
def limits_of_the_first_process():
    resource.prlimit(1, resource.RLIMIT_NOFILE)
    soft, hard = resource.prlimit(1, resource.RLIMIT_NOFILE)
    resource.prlimit(1, resource.RLIMIT_NOFILE, (soft, hard))


@attempt
def raise_its_own_limits():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    call(302, 0, resource.RLIMIT_NOFILE, struct.pack("QQ", hard + 1, hard + 1), None)  # prlimit64


@attempt
def spared_when_memory_is_out():
    with open("/proc/self/oom_score_adj", "w") as score:
        score.write("-1000")


# What sessions share names of.

@attempt
def abstract_socket_of_the_victim():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0victim")


@attempt
def port_of_the_victim():
    socket.create_connection(("127.0.0.1", 7777)).close()


@attempt
def port_of_the_victim_by_ipv6():
    socket.create_connection(("::1", 7778)).close()


@attempt
def connections_of_the_victim():
    with open("/proc/net/tcp") as table:
        if ":1E61 " not in table.read():
            raise Held("not in /proc/net/tcp")


@attempt
def shared_memory_of_the_victim():
    call(29, 0x5EC2E7, 0, 0)  # shmget


@attempt
def semaphores_of_the_victim():
    call(64, 0x5EC2E7, 0, 0)  # semget


@attempt
def messages_of_the_victim():
    call(68, 0x5EC2E7, 0)  # msgget


@attempt
def posix_queue_of_the_victim():
    call(240, b"victim", os.O_RDWR, 0, None)  # mq_open


@attempt
def file_in_dev_shm():
    read("/dev/shm/victim")


@attempt
def file_in_tmp():
    read("/tmp/victim")


@attempt
def file_in_var_tmp():
    read("/var/tmp/victim")


@attempt
def home_by_its_path():
    read(SECRET)


@attempt
def home_by_going_up():
    os.chdir("/sessions/" + os.listdir("/sessions")[0])
    read("../victim/secret")


@attempt
def home_by_the_root_of_a_process():
    failed = Held("nobody else")
    for number in others():
        try:
            read(f"/proc/{number}/root{SECRET}")
            return
        except OSError as error:
            failed = error
    raise failed


@attempt
def file_by_its_handle():
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    call(303, -100, b"/dev", handle, ctypes.byref(mount), 0)  # name_to_handle_at
    directory = os.open("/dev", os.O_RDONLY)
    os.close(call(304, directory, handle, os.O_RDONLY))  # open_by_handle_at


@attempt
def hard_link_to_what_is_not_its_own():
    target = os.path.expanduser("~/link") if ROLE != "root" else "/etc/link"
    os.link("/etc/shadow", target)
    os.unlink(target)


@attempt
def terminal_of_the_victim():
    os.close(os.open("/dev/pts/0", os.O_RDWR | os.O_NOCTTY))


@attempt
def user_of_the_victim():
    try:
        pwd.getpwnam("victim")
    except KeyError:
        raise Held("not in /etc/passwd") from None


@attempt
def mounts_of_the_victim():
    with open("/proc/self/mountinfo") as table:
        if "victim" not in table.read():
            raise Held("not in mountinfo")


# More rights.

@attempt
def become_root():
    os.setresuid(0, 0, 0)


@attempt
def become_the_victim():
    os.setresuid(VICTIM_UID, VICTIM_UID, VICTIM_UID)


@attempt
def groups_of_root():
    os.setgroups([0])


@attempt
def capabilities():
    header = struct.pack("Ii", 0x20080522, 0)
    call(126, header, struct.pack("IIIIII", 1 << 1, 1 << 1, 0, 0, 0, 0))  # capset, CAP_DAC_OVERRIDE


@attempt
def ambient_capabilities():
    header, sets = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    call(125, header, sets)  # capget
    effective, permitted, _, *rest = struct.unpack("IIIIII", sets.raw)
    call(126, header, struct.pack("IIIIII", effective, permitted, permitted, *rest))  # capset
    call(157, 47, 2, 1, 0, 0)  # PR_CAP_AMBIENT_RAISE


def as_somebody():
    """Root has to be nobody special for what set-ID programs do."""
    if ROLE == "root":
        os.setresgid(12345, 12345, 12345)
        os.setresuid(12345, 12345, 12345)


@attempt
def set_user_id_program():
    as_somebody()
    said = subprocess.run(["/usr/local/bin/root-id", "-u"], capture_output=True, text=True)
    if said.stdout.strip() != "0":
        raise Held(f"effective user {'is its own' if said.stdout.strip() == str(os.getuid()) else said}")


@attempt
def program_with_capabilities():
    as_somebody()
    said = subprocess.run(["/usr/local/bin/any-cat", "/etc/shadow"], capture_output=True, text=True)
    if said.returncode != 0:
        raise Held("EACCES" if "Permission denied" in said.stderr else str(said))


@attempt
def set_user_id_of_its_own():
    """A copy of a program that is said to be root's."""
    path = os.path.join(tempfile.mkdtemp(), "id")
    with open("/usr/bin/id", "rb") as old, open(path, "wb") as new:
        new.write(old.read())
    os.chown(path, 0, 0)
    os.chmod(path, 0o4755)


@attempt
def take_the_filter_off():
    call(317, 0, 0, None)  # SECCOMP_SET_MODE_STRICT would follow; mode 0 needs none before
    raise Held("another mode")


@attempt
def new_privileges_again():
    call(157, 38, 0, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS to 0


# Namespaces and mounts.

@attempt
def user_namespace():
    call(272, 0x10000000)  # unshare(CLONE_NEWUSER)


@attempt
def user_namespace_by_clone():
    if call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


@attempt
def user_namespace_by_clone3():
    arguments = struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    if call(435, arguments, len(arguments)) == 0:
        os._exit(0)


@attempt
def user_namespace_by_high_bits():
    call(272, 0x10000000 | 1 << 40)


def all_of(flags, call_it):
    """Every one has to fail alike."""
    failed = None
    for flag in flags:
        try:
            call_it(flag)
            return
        except OSError as error:
            failed = error
    raise failed


@attempt
def other_namespaces():
    all_of([0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000, 0x80], lambda flag: call(272, flag))


@attempt
def enter_a_namespace():
    if ROLE == "root":
        target = os.open(f"/proc/{VICTIM_PID}/ns/net", os.O_RDONLY)
    else:
        target = os.open("/proc/self/ns/net", os.O_RDONLY)
    call(308, target, 0)  # setns


@attempt
def namespaces_of_the_first_process():
    os.close(os.open("/proc/1/ns/mnt", os.O_RDONLY))


def folder():
    return tempfile.mkdtemp().encode()


def mount(source, target, kind, flags):
    call(165, source, target, kind, flags, None)


@attempt
def mount_a_tmpfs():
    place = folder()
    mount(b"x", place, b"tmpfs", 0)
    call(166, place, 0)


@attempt
def mount_over_etc_passwd():
    mount(b"/etc/group", b"/etc/passwd", None, 4096)  # MS_BIND
    call(166, b"/etc/passwd", 0)


@attempt
def mount_proc_anew():
    place = folder()
    mount(b"proc", place, b"proc", 0)
    call(166, place, 0)


@attempt
def mount_cgroups_anew():
    place = folder()
    mount(b"cgroup", place, b"cgroup2", 0)
    call(166, place, 0)


@attempt
def mount_the_machines_disk():
    place = folder()
    mount(b"/dev/vda", place, b"ext4", 0)
    call(166, place, 0)


@attempt
def make_the_root_writable():
    mount(None, b"/", None, 32 | 4096)  # MS_REMOUNT | MS_BIND


@attempt
def unmount_what_it_sees():
    if ROLE == "root":
        place = folder()
        mount(b"x", place, b"tmpfs", 0)
    else:
        place = b"/tmp"
    call(166, place, 2)  # MNT_DETACH


@attempt
def change_the_root():
    os.chroot("/usr")


@attempt
def pivot_the_root():
    call(155, b"/tmp", b"/tmp")


@attempt
def new_mount_calls():
    place = folder()
    os.close(call(430, b"tmpfs", 0))  # fsopen


@attempt
def clone_a_tree_of_mounts():
    os.close(call(428, -100, b"/usr", 1))  # open_tree, OPEN_TREE_CLONE


@attempt
def attributes_of_a_mount():
    call(442, -100, b"/", 0, struct.pack("QQQQ", 0, 1, 0, 0), 32)  # mount_setattr, no MOUNT_ATTR_RDONLY


# Devices and the kernel.

@attempt
def vsock_to_the_host():
    with socket.socket(socket.AF_VSOCK) as client:
        client.settimeout(5)
        try:
            client.connect((2, 1))
        except OSError as error:
            if ROLE != "root":
                raise
            # The host's end has answered that nobody listens there.
            if error.errno not in (errno.ECONNRESET, errno.ETIMEDOUT, errno.ECONNREFUSED):
                raise


@attempt
def vsock_by_high_bits():
    os.close(call(41, 40 | 1 << 32, 1, 0))


@attempt
def packet_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attempt
def raw_socket():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()


@attempt
def kernel_events_by_netlink():
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15).close()


@attempt
def own_network_interface():
    """A dummy interface by RTM_NEWLINK, as `ip link add` makes one."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        info = struct.pack("HH", 9, 1) + b"dummy" + bytes(3)
        attributes = struct.pack("HH", 4 + len(info), 18) + info
        body = struct.pack("BxHiII", 0, 0, 0, 0, 0) + attributes
        link.send(struct.pack("IHHII", 16 + len(body), 16, 0x605, 1, 0) + body)
        answer = link.recv(4096)
        number = struct.unpack_from("i", answer, 16)[0]
        if ROLE == "root" and -number == errno.EOPNOTSUPP:
            return  # past the check of rights; this kernel has no dummies
        if number:
            raise OSError(-number, "refused")


@attempt
def raw_fuse():
    path = "/dev/fuse"
    if ROLE == "attacker" and not os.path.exists(path):
        path = os.path.expanduser("~/fuse")
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(10, 229))
    os.close(os.open(path, os.O_RDWR))


@attempt
def device_node_of_the_disk():
    path = os.path.join(tempfile.mkdtemp(), "disk")
    os.mknod(path, stat.S_IFBLK | 0o600, os.stat("/tmp").st_dev)


@attempt
def machines_disk():
    os.close(os.open("/dev/vda", os.O_RDONLY))


@attempt
def machines_image():
    os.close(os.open("/dev/pmem0", os.O_RDONLY))


@attempt
def kernels_log():
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))


@attempt
def kernels_log_by_syslog():
    call(103, 10, None, 0)  # SYSLOG_ACTION_SIZE_BUFFER needs rights where dmesg is restricted
    call(103, 3, ctypes.create_string_buffer(64), 64)


@attempt
def exit_port_of_the_machine():
    call(173, 0xF4, 1, 1)  # ioperm


@attempt
def all_ports():
    call(172, 3)  # iopl


@attempt
def keyring():
    call(248, b"user", b"name", b"x", 1, -3)  # add_key


@attempt
def keyring_of_the_session():
    call(250, 0, -3, 1)  # keyctl


@attempt
def bpf_program():
    os.close(call(321, 0, struct.pack("IIIIII", 2, 4, 4, 1, 0, 0), 24))


@attempt
def performance_counters():
    os.close(call(298, struct.pack("IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, 0))


@attempt
def page_faults_in_user_space():
    os.close(call(323, 0))  # userfaultfd


@attempt
def io_ring():
    os.close(call(425, 4, ctypes.create_string_buffer(120)))  # io_uring_setup


@attempt
def asynchronous_io():
    context = ctypes.c_ulong()
    call(206, 4, ctypes.byref(context))  # io_setup
    call(207, context)


@attempt
def watch_the_whole_file_system():
    os.close(call(300, 0, 0))  # fanotify_init


@attempt
def kernel_module():
    call(175, b"", 0, b"")


@attempt
def another_kernel():
    call(246, 0, 0, None, 0)


@attempt
def swap():
    call(167, b"/tmp/none", 0)


@attempt
def reboot():
    call(169, 0xFEE1DEAD, 672274793, 0)  # LINUX_REBOOT_CMD_CAD_OFF


@attempt
def clock():
    call(227, 0, struct.pack("qq", -1, 0))  # clock_settime


@attempt
def name_of_the_machine():
    socket.sethostname("evil")


@attempt
def accounting():
    call(163, None)


@attempt
def hang_up_terminals():
    call(153)


@attempt
def quotas():
    call(443, os.open("/tmp", os.O_RDONLY), 0x800007 << 8 | 2, VICTIM_UID, ctypes.create_string_buffer(72))


@attempt
def old_memory_layout():
    call(135, 0x0400000)  # personality, READ_IMPLIES_EXEC


@attempt
def descriptor_table_of_the_processor():
    call(154, 0, ctypes.create_string_buffer(16), 16)  # modify_ldt


@attempt
def calls_of_another_architecture():
    """`int 0x80`, the 32-bit way into the kernel: 20 is getpid there."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()


@attempt
def calls_of_x32():
    call(0x40000000 | 39)


@attempt
def calls_of_a_later_kernel():
    call(463, 0, 0, 0, 0, 0, 0)


@attempt
def type_into_a_terminal():
    _, terminal = os.openpty()
    os.setsid()
    fcntl.ioctl(terminal, 0x540E, 0)  # TIOCSCTTY
    fcntl.ioctl(terminal, 0x5412, b"x")  # TIOCSTI


@attempt
def out_of_the_quota():
    """The project of a file decides whose quota it counts to."""
    path = os.path.join(tempfile.mkdtemp(), "file")
    with open(path, "w") as file:
        attributes = bytearray(28)
        fcntl.ioctl(file, 0x801C581F, attributes)  # FS_IOC_FSGETXATTR
        struct.pack_into("I", attributes, 12, 0)
        fcntl.ioctl(file, 0x401C5820, bytes(attributes))  # FS_IOC_FSSETXATTR


@attempt
def immutable_file():
    with open(os.path.join(tempfile.mkdtemp(), "file"), "w") as file:
        fcntl.ioctl(file, 0x40086602, struct.pack("I", 0x10))  # FS_IOC_SETFLAGS, immutable
        fcntl.ioctl(file, 0x40086602, struct.pack("I", 0))


# What belongs to the machine.

@attempt
def write_to_etc():
    path = "/etc/passwd"
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


@attempt
def make_a_program_of_the_machines():
    path = "/usr/bin/planted"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o755))
    os.unlink(path)


@attempt
def read_shadow():
    read("/etc/shadow")


@attempt
def lease_on_a_shared_file():
    """A lease would hold up whoever opens the file next."""
    file = os.open("/etc/services", os.O_RDONLY) if os.path.exists("/etc/services") else os.open("/etc/profile", os.O_RDONLY)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)


@attempt
def where_cores_go():
    path = "/proc/sys/kernel/core_pattern"
    if not os.path.exists(path):
        path = "/proc/sys/kernel/panic"
    old = read(path)
    with open(path, "wb") as file:
        file.write(old)


@attempt
def settings_of_the_kernel():
    with open("/proc/sys/fs/file-max", "r+") as file:
        old = file.read()
        file.seek(0)
        file.write(old)


@attempt
def write_to_sys():
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    os.close(os.open(path if os.path.exists(path) else "/sys/kernel/profiling", os.O_WRONLY))


@attempt
def own_memory_limit():
    path = f"/sys/fs/cgroup/sessions/{VICTIM_UID}/memory.high" if ROLE == "root" else "/sys/fs/cgroup/memory.high"
    with open(path, "w") as file:
        file.write("max")


@attempt
def out_of_the_cgroup():
    path = "/sys/fs/cgroup/cgroup.procs"
    with open(path, "w") as file:
        file.write(str(os.getpid()))


@attempt
def freeze_others():
    path = f"/sys/fs/cgroup/sessions/{VICTIM_UID}/cgroup.freeze" if ROLE == "root" else "/sys/fs/cgroup/cgroup.freeze"
    with open(path, "w") as file:
        file.write("0")


@attempt
def cgroups_of_others():
    with open("/proc/self/cgroup") as file:
        path = file.read()
    if "sessions" in os.listdir("/sys/fs/cgroup") or "sessions" in path:
        return
    raise Held("it is the root of what it sees")


# Bombs. The attacker has 64 MiB of memory, 40 processes and 16 MiB on the disk; the victim has no limits.

@attempt
def fork_bomb():
    children = []
    try:
        while len(children) < 100:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@attempt
def thread_bomb():
    threading.stack_size(64 << 10)
    gate = threading.Event()
    threads = []
    try:
        while len(threads) < 100:
            thread = threading.Thread(target=gate.wait)
            thread.start()
            threads.append(thread)
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread") from None
    finally:
        gate.set()


@attempt
def memory_bomb():
    block = bytearray(128 << 20)
    block[::4096] = bytes(len(block[::4096]))


@attempt
def shared_memory_bomb():
    with open("/dev/shm/bomb", "wb") as file:
        try:
            for _ in range(96):
                file.write(bytes(1 << 20))
                file.flush()
        finally:
            os.unlink("/dev/shm/bomb")


def fill(path):
    try:
        with open(path, "wb", buffering=0) as file:
            for _ in range(24):
                file.write(bytes(1 << 20))
    finally:
        os.unlink(path)


@attempt
def fill_the_disk():
    fill(os.path.expanduser("~/filling"))


@attempt
def fill_the_disk_by_tmp():
    fill("/tmp/filling")


@attempt
def reserve_the_disk():
    path = os.path.expanduser("~/reserved")
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(file, 0, 24 << 20)
    finally:
        os.unlink(path)


@attempt
def use_up_the_inodes():
    place = tempfile.mkdtemp()
    made = 0
    try:
        while made < 6000:
            os.mknod(f"{place}/{made}", stat.S_IFREG)
            made += 1
    finally:
        for number in range(made):
            os.unlink(f"{place}/{number}")


@attempt
def large_pipes():
    reader, _ = os.pipe()
    with open("/proc/sys/fs/pipe-max-size") as most:
        fcntl.fcntl(reader, 1031, 2 * int(most.read()))  # F_SETPIPE_SZ


@attempt
def use_up_the_terminals():
    """All sessions' terminals come out of one number."""
    opened = []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    while len(opened) < 400:
        opened.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))


def run(name):
    """One attempt in a process of its own; what came of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(PATIENCE)
        os.dup2(os.open("/dev/null", os.O_RDWR), 2)
        try:
            TABLE[name]()
            said = "crossed"
        except Held as held:
            said = f"held: {held}"
        except OSError as error:
            said = f"held: {errno.errorcode.get(error.errno, error)}"
        except MemoryError:
            said = "held: ENOMEM"
        except BaseException as error:
            said = f"broken: {error!r}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 4096):
        said += piece
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"held: signal {os.WTERMSIG(status)}"
    return said.decode()


if __name__ == "__main__":
    for name in sys.argv[4:]:
        print(f"{name}\t{run(name)}", flush=True)

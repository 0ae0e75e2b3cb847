# The system calls that tools need and that a slow or thin file server leaves out.
import ctypes, errno, fcntl, mmap, os, socket, struct, sys, threading

SIZE = int(os.environ['SIZE'])
libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def refused(number, work):
    try:
        work()
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError('not refused')


# Files without a name get one; those that lose theirs live on.
fd = os.open('.', os.O_TMPFILE | os.O_RDWR, 0o640)
os.write(fd, b'nameless')
assert os.fstat(fd).st_nlink == 0
call('linkat', -100, f'/proc/self/fd/{fd}'.encode(), -100, b'named', 0x400)
assert open('named', 'rb').read() == b'nameless' and os.stat('named').st_mode & 0o777 == 0o640
os.unlink('named')
os.pwrite(fd, b'NAME', 0)
assert os.pread(fd, 99, 0) == b'NAMEless' and os.fstat(fd).st_nlink == 0
os.close(fd)

# Appending writers do not overwrite each other.
def append(byte):
    fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for _ in range(100):
        os.write(fd, bytes([byte]) * 50)
    os.close(fd)
writers = [threading.Thread(target=append, args=(65 + n,)) for n in range(4)]
[writer.start() for writer in writers]
[writer.join() for writer in writers]
log = open('log', 'rb').read()
assert len(log) == 20000
assert all(len(set(log[at:at + 50])) == 1 for at in range(0, 20000, 50))

# Holes: made by leaving out, by punching, and found again. Room is given without being written.
fd = os.open('holes', os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b'd' * 65536, 1 << 20)
os.ftruncate(fd, 4 << 20)
assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 20
assert os.lseek(fd, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 65536
refused(errno.ENXIO, lambda: os.lseek(fd, 2 << 20, os.SEEK_DATA))
fallocate = lambda mode, at, length: call('fallocate', fd, mode, ctypes.c_long(at), ctypes.c_long(length))
fallocate(3, (1 << 20) + 16384, 16384)
assert os.pread(fd, 32768, (1 << 20) + 8192) == b'd' * 8192 + b'\0' * 16384 + b'd' * 8192
fallocate(1, 4 << 20, 65536)
assert os.fstat(fd).st_size == 4 << 20
fallocate(0, 4 << 20, 65536)
assert os.fstat(fd).st_size == (4 << 20) + 65536
copy = os.open('copy', os.O_RDWR | os.O_CREAT)
assert os.copy_file_range(fd, copy, 65536, 1 << 20, 0) == 65536
assert os.pread(copy, 65536, 0) == os.pread(fd, 65536, 1 << 20)

# Mappings: shared ones are one memory and reach the file, private ones do neither.
shared, other = mmap.mmap(fd, 1 << 16, offset=1 << 20), mmap.mmap(fd, 1 << 16, offset=1 << 20)
private = mmap.mmap(fd, 1 << 16, flags=mmap.MAP_PRIVATE, offset=1 << 20)
private[0:4] = b'mine'
shared[10:16] = b'mapped'
assert other[10:16] == b'mapped' and os.pread(fd, 16, 1 << 20) == b'd' * 10 + b'mapped'
os.pwrite(fd, b'written', 1 << 20)
assert shared[0:7] == b'written' and private[0:4] == b'mine'
shared.flush()

# Locks of both kinds, of ranges and of whole files, between processes.
def in_a_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BlockingIOError:
            os._exit(11)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
fcntl.lockf(fd, fcntl.LOCK_EX, 100, 0)
again = lambda start: lambda: fcntl.lockf(os.open('holes', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
assert in_a_child(again(50)) == 11 and in_a_child(again(100)) == 0
fcntl.lockf(fd, fcntl.LOCK_UN)
assert in_a_child(again(50)) == 0
fcntl.flock(fd, fcntl.LOCK_SH)
flock = lambda kind: lambda: fcntl.flock(os.open('holes', os.O_RDWR), kind | fcntl.LOCK_NB)
assert in_a_child(flock(fcntl.LOCK_SH)) == 0 and in_a_child(flock(fcntl.LOCK_EX)) == 11

# Attributes of one's own; no others.
os.setxattr('holes', 'user.one', b'1')
os.setxattr('holes', 'user.two', b'x' * 2000)
assert sorted(os.listxattr('holes')) == ['user.one', 'user.two']
refused(errno.EEXIST, lambda: os.setxattr('holes', 'user.one', b'2', os.XATTR_CREATE))
os.removexattr('holes', 'user.one')
refused(errno.ENODATA, lambda: os.getxattr('holes', 'user.one'))
refused(errno.EOPNOTSUPP, lambda: os.setxattr('holes', 'trusted.x', b'')) if os.getuid() == 0 else None

# Sockets and fifos lead from process to process.
server = socket.socket(socket.AF_UNIX)
server.bind('socket')
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect('socket')
client.sendall(b'through')
assert server.accept()[0].recv(7) == b'through'
os.mkfifo('fifo')
assert in_a_child(lambda: None) == 0
if os.fork() == 0:
    open('fifo', 'w').write('through')
    os._exit(0)
assert open('fifo').read() == 'through'
os.wait()

# Names and times. Two names are exchanged at once.
name = 'n' * 255
open(name, 'w').close()
refused(errno.ENAMETOOLONG, lambda: open(name + 'n', 'w'))
os.utime(name, ns=(1_000_000_001, 2_000_000_003))
stat = os.stat(name)
assert (stat.st_atime_ns, stat.st_mtime_ns) == (1_000_000_001, 2_000_000_003)
open('a', 'w').write('a')
open('b', 'w').write('b')
call('renameat2', -100, b'a', -100, b'b', 2)
assert open('a').read() + open('b').read() == 'ba'
try:
    call('renameat2', -100, b'a', -100, b'b', 1)
    raise AssertionError('replaced')
except OSError as error:
    assert error.errno == errno.EEXIST

# A large directory: listed once each, also while it shrinks.
os.mkdir('many')
count = 1000 * SIZE
for number in range(count):
    os.close(os.open(f'many/{number:06}', os.O_CREAT | os.O_WRONLY))
assert sorted(os.listdir('many')) == [f'{number:06}' for number in range(count)]
with os.scandir('many') as entries:
    for entry in entries:
        assert entry.is_file(follow_symlinks=False)
        os.unlink(entry.path)
assert os.listdir('many') == []
os.rmdir('many')

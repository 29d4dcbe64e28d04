#!/usr/bin/env python3
"""Input and output as programs written for ext4 do it: direct, mapped, from special files, at the limits;
access times; positions in a directory that others change."""
# timeout: 600
# asan: yes

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, raises, renameat2  # noqa: E402

suite = silt.Suite()
libc = ctypes.CDLL(None, use_errno=True)
DAY = 86400


def write_file(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


# --- O_DIRECT ------------------------------------------------------------------------------------

@suite.case
def direct(t):
    """O_DIRECT reads and writes, aligned as ext4 wants it, and sees what others have in the page cache."""
    m = t.mount(t.volume())
    fd = os.open(m / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    cached = os.open(m / "f", os.O_RDWR)
    buf = mmap.mmap(-1, 1 << 20)  # page-aligned
    buf[:] = payload("direct", 1 << 20)
    equal(os.pwritev(fd, [buf], 0), 1 << 20, "bytes written")
    equal(os.pread(cached, 1 << 20, 0) == payload("direct", 1 << 20), True, "seen through the cache")
    os.pwrite(cached, b"cached", 4096)
    view = mmap.mmap(-1, 4096)
    equal(os.preadv(fd, [view], 4096), 4096, "bytes read")
    equal(view[:6], b"cached", "a cached write seen by a direct read")
    view[:] = b"d" * 4096
    equal(os.pwritev(fd, [view], 4096), 4096, "bytes written")
    equal(os.pread(cached, 10, 4096), b"d" * 10, "a direct write seen through the cache")
    with mmap.mmap(cached, 8192) as mapped:
        equal(mapped[4096:4100], b"dddd", "the mapping")
        mapped[0:4] = b"mmap"
        mapped.flush()
    equal(os.preadv(fd, [view], 0), 4096, "bytes read")
    equal(view[:4], b"mmap", "a mapped write seen by a direct read")
    equal(os.preadv(fd, [view], (1 << 20) - 512), 512, "the end of the file")
    equal(os.preadv(fd, [view], 1 << 20), 0, "behind it")
    os.close(fd)
    os.close(cached)


# --- mappings --------------------------------------------------------------------------------------

@suite.case
def shared_maps_and_another_mount(t):
    """What msync() stored is seen by the next open elsewhere; what is not synced is there after close."""
    v = t.volume()
    m, other = t.mount(v), t.mount(v)
    write_file(m / "f", bytes(100000))
    with open(m / "f", "r+b") as f:
        view = mmap.mmap(f.fileno(), 100000)
        view[50000:50005] = b"first"
        view.flush()  # msync(MS_SYNC)
        equal(read_file(other / "f")[50000:50005], b"first", "after msync")
        view[60000:60006] = b"second"
        view.close()
    with open(m / "f", "r+b"):
        pass
    silt.wait_until(lambda: read_file(other / "f")[60000:60006] == b"second", "bytes after the last close")
    # Appending descriptors can be mapped too.
    fd = os.open(m / "f", os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 100000) as view:
        equal(view[50000:50005], b"first", "through a descriptor that appends")
        view[0:3] = b"map"
        view.flush()
    os.write(fd, b"tail")
    os.close(fd)
    data = read_file(other / "f")
    equal((data[:3], data[50000:50005], data[60000:60006], data[100000:]),
          (b"map", b"first", b"second", b"tail"), "all of it")


@suite.case
def private_maps(t):
    """MAP_PRIVATE reads the file and keeps its changes to itself; a page behind the end is SIGBUS."""
    m = t.mount(t.volume())
    write_file(m / "f", payload("p", 10000))
    fd = os.open(m / "f", os.O_RDONLY)
    view = mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    equal(view[:], payload("p", 10000), "bytes")
    view[5:10] = b"mine!"
    equal(view[5:10], b"mine!", "the private change")
    equal(read_file(m / "f"), payload("p", 10000), "the file")
    view.close()
    os.close(fd)
    p = subprocess.run([sys.executable, "-c",
                        "import mmap, os, sys\nfd = os.open(sys.argv[1], os.O_RDWR)\n"
                        "v = mmap.mmap(fd, 10000)\nos.ftruncate(fd, 4096)\nprint(v[4095])\nprint(v[4096])",
                        m / "f"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    equal(p.returncode, -signal.SIGBUS, "reading a mapping behind the end of the file")
    silt.run("cp", "/bin/true", m / "true")
    os.chmod(m / "true", 0o755)
    silt.run(m / "true")


# --- special files -----------------------------------------------------------------------------------

@suite.case
def fifos_sockets_devices(t):
    """They work as they do elsewhere; a fifo and a socket connect processes of one node."""
    m = t.mount(t.volume())
    os.mkfifo(m / "fifo")
    writer = subprocess.Popen(["sh", "-c", f"echo through > {m / 'fifo'}"])
    equal(read_file(m / "fifo"), b"through\n", "a fifo")
    writer.wait(10)
    with socket.socket(socket.AF_UNIX) as s, socket.socket(socket.AF_UNIX) as c:
        s.bind(m / "sock")
        s.listen()
        c.connect(m / "sock")
        peer, _ = s.accept()
        c.sendall(b"hello")
        equal(peer.recv(10), b"hello", "a socket")
        peer.close()
    check(stat.S_ISSOCK(os.lstat(m / "sock").st_mode), "a socket's type")
    os.mknod(m / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    equal(os.stat(m / "null").st_rdev, os.makedev(1, 3), "device number")
    os.mknod(m / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    equal(os.stat(m / "block").st_rdev, os.makedev(7, 200), "device number")
    with raises(errno.ENXIO, "writing to a fifo that nobody reads"):
        os.open(m / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    with raises(errno.ENXIO, "opening a socket"):
        os.open(m / "sock", os.O_RDWR)


# --- limits ----------------------------------------------------------------------------------------------

@suite.case
def limits(t):
    """Files of 4 PiB, names of 255 bytes, paths of 4,095; RLIMIT_FSIZE."""
    m = t.mount(t.volume())
    fd = os.open(m / "f", os.O_RDWR | os.O_CREAT)
    most = 1 << 52
    os.ftruncate(fd, most)
    equal(os.fstat(fd).st_size, most, "the largest size")
    equal(os.pwrite(fd, b"end", most - 3), 3, "the last bytes")
    equal(os.pread(fd, 10, most - 5), b"\0\0end", "the last bytes")
    for what, f in [("ftruncate", lambda: os.ftruncate(fd, most + 1)),
                    ("pwrite", lambda: os.pwrite(fd, b"x", most)),
                    ("posix_fallocate", lambda: os.posix_fallocate(fd, most, 1))]:
        with raises(errno.EFBIG, f"{what} beyond it"):
            f()
    a = os.open(m / "f", os.O_WRONLY | os.O_APPEND)
    with raises(errno.EFBIG, "an append beyond it"):
        os.write(a, b"x")
    os.close(a)
    os.close(fd)
    fd = os.open(m / "g", os.O_RDWR | os.O_CREAT)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, old[1]))
        equal(os.pwrite(fd, b"x" * 20000, 0), 10000, "bytes up to RLIMIT_FSIZE")
        with raises(errno.EFBIG, "pwrite beyond RLIMIT_FSIZE"):
            os.pwrite(fd, b"x", 10000)
        with raises(errno.EFBIG, "ftruncate beyond RLIMIT_FSIZE"):
            os.ftruncate(fd, 10001)
        with raises(errno.EFBIG, "fallocate beyond RLIMIT_FSIZE"):
            os.posix_fallocate(fd, 0, 10001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    os.close(fd)
    write_file(m / ("n" * 255), b"")
    with raises(errno.ENAMETOOLONG, "a name of 256 bytes"):
        write_file(m / ("n" * 256), b"")
    deep = m.path
    while len(deep) + 202 < 4095:
        deep += "/" + "d" * 200
        os.mkdir(deep)
    name = deep + "/" + "e" * (4095 - len(deep) - 1)
    equal(len(name), 4095, "length of the path")
    write_file(name, b"deep")
    equal(read_file(name), b"deep", "a path of 4,095 bytes")
    with raises(errno.ENAMETOOLONG, "one of 4,096"):
        os.stat(name + "e")


@suite.case
def statfs_figures(t):
    """Used bytes and inodes are what the files have; copies and holes included. What is deleted counts until
    all mounts have said that they don't have it open, in their heartbeats."""
    v = t.volume()
    m, other = t.mount(v, options=["heartbeat=1"]), t.mount(v, options=["heartbeat=1"])
    a = os.statvfs(m.path)
    for i in range(10):
        write_file(m / f"f{i}", payload(i, 100000))
    b = os.statvfs(other.path)
    equal(b.f_files - b.f_ffree - (a.f_files - a.f_ffree), 10, "inodes")
    used = (b.f_blocks - b.f_bfree - (a.f_blocks - a.f_bfree)) * b.f_frsize
    check(10 * 100000 - 4096 <= used <= 10 * 100000 + 4096, f"bytes used by 10 x 100,000: {used}")
    for i in range(10):
        os.unlink(other / f"f{i}")
    silt.wait_until(lambda: (os.statvfs(m.path).f_bfree, os.statvfs(m.path).f_ffree) == (a.f_bfree, a.f_ffree),
                    "the deleted files not to count", 20)
    c = os.statvfs(m.path)
    equal(c.f_namemax, 255, "longest name")


# --- access times ------------------------------------------------------------------------------------------

def age(path, atime, mtime):
    os.utime(path, (atime, mtime))


@suite.case
def noatime(t):
    """The default: reading moves nothing and asks Redis for nothing."""
    m = t.mount(t.volume())
    write_file(m / "f", b"x" * 100)
    age(m / "f", 1000, 2000)
    fd = os.open(m / "f", os.O_RDONLY)
    before = m.counters()
    for _ in range(10):
        os.pread(fd, 100, 0)
    after = m.counters()
    equal(after.get("redis.touch", 0) - before.get("redis.touch", 0), 0, "Redis calls")
    os.close(fd)
    equal(os.stat(m / "f").st_atime, 1000, "access time")


@suite.case
def relatime(t):
    """As on Linux: a read counts when the last one is older than the last change, or a day old."""
    v = t.volume()
    m, other = t.mount(v, options=["relatime"]), t.mount(v)
    write_file(m / "f", b"x" * 100)
    now = time.time()

    def reads():
        read_file(m / "f")
        return os.stat(m / "f").st_atime
    age(m / "f", now - 100, now - 50)
    first = reads()
    check(first >= now - 1, f"a read after a change: access time {first - now:+.1f} s")
    silt.wait_until(lambda: os.stat(other / "f").st_atime == first, "the access time elsewhere")
    equal(reads(), first, "a second read")
    age(m / "f", now - 50, now - 100)
    os.utime(m / "f", (now + 10, now - 100))  # after ctime, too
    equal(reads(), os.stat(m / "f").st_atime, "a read after a read")
    check(abs(os.stat(m / "f").st_atime - (now + 10)) < 0.001, "the time that was set")
    age(m / "f", now - DAY - 100, now - 2 * DAY)
    check(reads() >= now - 1, "a read a day after the last")
    fd = os.open(m / "f", os.O_RDONLY | os.O_NOATIME)
    age(m / "f", 1000, now)
    os.pread(fd, 10, 0)
    os.close(fd)
    equal(os.stat(m / "f").st_atime, 1000, "a read with O_NOATIME")
    os.mkdir(m / "d")
    os.symlink("target", m / "l")
    os.utime(m / "d", (1000, now))
    os.utime(m / "l", (1000, now), follow_symlinks=False)
    os.listdir(m / "d")
    os.readlink(m / "l")
    silt.wait_until(lambda: os.stat(m / "d").st_atime >= now - 1, "a directory's access time")
    silt.wait_until(lambda: os.lstat(m / "l").st_atime >= now - 1, "a link's access time")
    read_file(m / "f")
    at = os.stat(m / "f").st_atime
    m.umount()
    equal(os.stat(other / "f").st_atime, at, "after unmounting")


@suite.case
def strictatime(t):
    """Every read(2) counts."""
    m = t.mount(t.volume(), options=["strictatime"])
    write_file(m / "f", b"x" * 100)
    fd = os.open(m / "f", os.O_RDONLY)
    last = 0
    for _ in range(5):
        equal(os.pread(fd, 100, 0), b"x" * 100, "bytes")
        at = os.fstat(fd).st_atime_ns
        check(at > last, "the access time moves with each read")
        last = at
    with mmap.mmap(fd, 100, prot=mmap.PROT_READ) as view:
        equal(view[:], b"x" * 100, "a shared mapping")
    os.close(fd)
    with open(m / "f", "r+b") as f, mmap.mmap(f.fileno(), 100) as view:
        view[0:4] = b"mmap"
    equal(read_file(m / "f")[:4], b"mmap", "a mapping that was written")


@suite.case
def times_to_the_nanosecond(t):
    """utimensat with nanoseconds, UTIME_NOW, UTIME_OMIT."""
    class Timespec(ctypes.Structure):
        _fields_ = [("sec", ctypes.c_long), ("nsec", ctypes.c_long)]

    m = t.mount(t.volume())
    write_file(m / "f", b"")
    now, omit = (1 << 30) - 1, (1 << 30) - 2

    def utimens(a, b):
        libc.utimensat(-100, os.fsencode(m / "f"), (Timespec * 2)(a, b), 0)
        st = os.stat(m / "f")
        return st.st_atime_ns, st.st_mtime_ns
    equal(utimens((5, 123456789), (-7, 999999999)), (5123456789, -6 * 10**9 - 1), "both")
    equal(utimens((0, omit), (9, 1)), (5123456789, 9000000001), "without the first")
    a, b = utimens((0, now), (0, omit))
    check(abs(a / 1e9 - time.time()) < 5 and b == 9000000001, "the first one now")


@suite.cases_for(shards=[1, 8])
def rename_moves_the_change_time(t, shards):
    """Of what moves, whatever it is and wherever its inode is; the other names of a file see it, too."""
    v = t.volume(shards=shards)
    m, other = t.mount(v), t.mount(v)
    for i in range(8):  # directories of several shards
        os.mkdir(m / f"p{i}")
    for i in range(8):
        here, there = str(m / f"p{i}"), str(m / f"p{(i + 1) % 8}")
        os.mkdir(here + f"/dir{i}")
        os.mkdir(here + "/swap")
        write_file(here + "/file", b"1")
        write_file(here + "/over", b"2")
        write_file(here + "/linked", b"3")
        os.link(here + "/linked", there + "/linked2")
        os.symlink("x", here + "/symlink")
        os.mkfifo(here + "/fifo")

        def moves(a, b, flags=0, what=None):
            before = os.lstat(a).st_ctime_ns
            swapped = os.lstat(b).st_ctime_ns if flags == 2 else None
            time.sleep(0.02)
            renameat2(a, b, flags)
            check(os.lstat(b).st_ctime_ns > before, f"{what or a} to {b}: moved, shards={shards}, {i}")
            if flags == 2:
                check(os.lstat(a).st_ctime_ns > swapped, f"{a} with {b}: the other one, shards={shards}, {i}")
        fd = os.open(f"{here}/dir{i}", os.O_RDONLY)
        write_file(f"{here}/dir{i}/inner", b"")  # its directory's attributes are known from that for a moment
        before = os.fstat(fd).st_ctime_ns
        time.sleep(0.02)
        os.rename(f"{here}/dir{i}", f"{here}/dir")
        check(os.fstat(fd).st_ctime_ns > before, f"an open directory, shards={shards}, {i}")
        os.rename(f"{here}/dir", f"{here}/dir{i}")
        os.close(fd)
        for n in (f"dir{i}", "file", "symlink", "fifo"):
            moves(f"{here}/{n}", f"{here}/{n}.new")
            moves(f"{here}/{n}.new", f"{there}/{n}.elsewhere")
        moves(here + "/swap", f"{there}/dir{i}.elsewhere", 2)
        moves(here + "/swap", f"{here}/over", 2)
        moves(there + "/linked2", there + "/linked3")
        equal(os.stat(here + "/linked").st_ctime_ns, os.stat(there + "/linked3").st_ctime_ns, "both names")
        moves(there + "/linked3", f"{there}/file.elsewhere", what="over a file")
        os.link(here + "/linked", here + "/again")
        before = os.stat(here + "/linked").st_ctime_ns
        time.sleep(0.02)
        os.rename(here + "/again", here + "/linked")
        equal(os.stat(here + "/linked").st_ctime_ns, before, "two names of one file: nothing happens")
        silt.wait_until(lambda: os.stat(other / f"p{i}/linked").st_ctime_ns == before, "the other mount's view")


# --- positions in a directory --------------------------------------------------------------------------------

@suite.cases_for(shards=[1, 8])
def seekdir_and_telldir(t, shards):
    """A position leads back to the same entry, while another mount creates, renames and deletes: entries
    that stay are neither passed over nor seen twice."""
    v = t.volume(shards=shards)
    m, other = t.mount(v), t.mount(v)
    os.mkdir(m / "d")
    stay = {f"stay{i}" for i in range(700)}
    for name in stay:
        write_file(m / f"d/{name}", b"")
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    for f in ("readdir", "telldir", "closedir"):
        getattr(libc, f).argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    d = libc.opendir(os.fsencode(m / "d"))

    def step():
        e = libc.readdir(d)
        return ctypes.string_at(e + 19).decode() if e else None
    churn = subprocess.Popen([sys.executable, "-c", """
import os, sys
n = 0
while True:
    for i in range(40):
        open(f'{sys.argv[1]}/new{n + i}', 'w').close()
    for i in range(0, 40, 2):
        os.rename(f'{sys.argv[1]}/new{n + i}', f'{sys.argv[1]}/moved{n + i}')
    for i in range(40):
        os.unlink(f"{sys.argv[1]}/{'new' if i % 2 else 'moved'}{n + i}")
    n += 40
""", other / "d"])
    try:
        for _ in range(3):
            libc.seekdir(d, 0)
            libc.rewinddir(ctypes.c_void_p(d))
            seen, places = [], {}
            while True:
                at = libc.telldir(d)
                name = step()
                if name is None:
                    break
                if name in stay:
                    seen.append(name)
                    places[name] = at
            equal(sorted(seen), sorted(stay), "entries that stay, each once")
            for name in seen[::37]:
                libc.seekdir(d, places[name])
                for _ in range(10000):  # what was created in between may come first
                    got = step()
                    if got is None or got in stay:
                        break
                equal(got, name, "the entry at a position")
                rest = [name]
                for _ in range(3):
                    got = step()
                    if got in stay:
                        rest.append(got)
                i = seen.index(name)
                equal(rest, seen[i:i + len(rest)], "entries from there on")
    finally:
        churn.kill()
        churn.wait()
        libc.closedir(d)


@suite.case
def fcntl_append(t):
    """O_APPEND that is set later counts, too."""
    m = t.mount(t.volume())
    fd = os.open(m / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0123456789")
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    os.write(fd, b"end")
    fcntl.fcntl(fd, fcntl.F_SETFL, 0)
    os.pwrite(fd, b"begin", 0)
    equal(os.pread(fd, 100, 0), b"begin56789end", "bytes")
    os.close(fd)
    equal(read_file(m / "f"), b"begin56789end", "bytes")


suite.main()

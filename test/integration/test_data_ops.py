#!/usr/bin/env python3
"""What a program does with a file's bytes besides reading and writing them: files without a name,
fallocate, SEEK_DATA and SEEK_HOLE, copy_file_range; alone and all of them at random beside a model."""
# timeout: 600
# asan: yes

import ctypes
import errno
import mmap
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, raises  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--seed", type=int, help="of random_operations")
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
MIB = 1 << 20
WINDOW = 64 * MIB


def fallocate(fd, mode, off, n):
    if libc.fallocate(fd, mode, off, n) != 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def link_fd(fd, path):
    if libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(path),
                   AT_SYMLINK_FOLLOW) != 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def write_file(path, data):
    with open(path, "wb") as f:
        f.write(data)


def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")


# --- files without a name -----------------------------------------------------------------------

@suite.cases_for(shards=[1, 8])
def tmpfile(t, shards):
    """O_TMPFILE makes a file without a name; linkat() of its descriptor names it, in any directory."""
    v = t.volume(shards=shards)
    m, other = t.mount(v), t.mount(v)
    for i in range(6):
        os.mkdir(m / f"d{i}")
    before = os.statvfs(m.path)
    for i in range(6):
        fd = os.open(m.path, os.O_TMPFILE | os.O_RDWR, 0o640)
        equal(os.fstat(fd).st_nlink, 0, "links of a file without a name")
        equal(os.fstat(fd).st_mode & 0o7777, 0o640, "mode")
        os.write(fd, payload(i, 10000))
        equal(os.pread(fd, 20000, 0), payload(i, 10000), "its bytes")
        if i % 2:
            os.fsync(fd)
        equal(sorted(os.listdir(m.path)), [f"d{k}" for k in range(6)], "names")
        link_fd(fd, m / f"d{i}/named")
        equal(os.fstat(fd).st_nlink, 1, "links afterwards")
        # What was written before the name came is there with it; close() is still to come.
        equal(read_file(other / f"d{i}/named"), payload(i, 10000), "bytes seen elsewhere")
        os.pwrite(fd, b"more", 5)
        os.close(fd)
        want = payload(i, 10000)[:5] + b"more" + payload(i, 10000)[9:]
        equal(read_file(other / f"d{i}/named"), want, "bytes after close")
        with raises(errno.EEXIST, "a second name in its place"):
            os.link(m / f"d{i}/named", m / f"d{i}/named")
        os.unlink(other / f"d{i}/named")
        check(not os.path.exists(m / f"d{i}/named"), "gone")
    fd = os.open(m.path, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with raises(errno.ENOENT, "linkat of an O_EXCL one"):
        link_fd(fd, m / "never")
    os.close(fd)
    write_file(m / "plain", b"x")
    fd = os.open(m / "plain", os.O_RDWR)
    os.unlink(m / "plain")
    with raises(errno.ENOENT, "linkat of an unlinked file"):
        link_fd(fd, m / "again")
    os.close(fd)
    for _ in range(5):  # never named
        fd = os.open(m / "d1", os.O_TMPFILE | os.O_WRONLY)
        os.write(fd, b"y" * 100000)
        os.close(fd)
    silt.wait_until(lambda: os.statvfs(m.path).f_ffree == before.f_ffree, "free inodes", 10)
    m.umount()
    equal(v.redis.cmd("KEYS", "{*}o"), [], "held files")


@suite.case
def tmpfile_in_a_setgid_directory(t):
    m = t.mount(t.volume())
    os.mkdir(m / "d")
    os.chown(m / "d", 0, 77)
    os.chmod(m / "d", 0o2777)
    fd = os.open(m / "d", os.O_TMPFILE | os.O_RDWR)
    equal(os.fstat(fd).st_gid, 77, "group")
    os.close(fd)
    with raises((errno.ENOTDIR,), "O_TMPFILE in a file"):
        write_file(m / "f", b"")
        os.open(m / "f", os.O_TMPFILE | os.O_RDWR)


@suite.case
def tmpfile_that_was_synced_and_named_survives_kill_9(t):
    v = t.volume()
    m = t.mount(v)
    fd = os.open(m.path, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, payload("t", 300000))
    os.fsync(fd)
    link_fd(fd, m / "named")
    m.kill()
    with raises(errno.ENOTCONN, "close() without a daemon"):
        os.close(fd)
    equal(read_file(t.mount(v) / "named"), payload("t", 300000), "bytes")


# --- fallocate -----------------------------------------------------------------------------------

@suite.case
def fallocate_modes(t):
    """Plain extends, keep-size does nothing, punch hole and zero range make zeros; others are refused."""
    v = t.volume()
    m, other = t.mount(v), t.mount(v)
    fd = os.open(m / "f", os.O_RDWR | os.O_CREAT)
    fallocate(fd, 0, 0, 5000)
    equal(os.fstat(fd).st_size, 5000, "size")
    fallocate(fd, 0, 10, 100)
    equal(os.fstat(fd).st_size, 5000, "size, not smaller")
    fallocate(fd, KEEP_SIZE, 0, 1 << 30)
    equal(os.fstat(fd).st_size, 5000, "size kept")
    data = bytearray(payload("f", 3 * MIB))
    os.pwrite(fd, data, 0)
    for mode, off, n in [(PUNCH_HOLE | KEEP_SIZE, 100, 50), (ZERO_RANGE, 4096, 8192),
                         (ZERO_RANGE | KEEP_SIZE, 2 * MIB, 4 * MIB), (PUNCH_HOLE | KEEP_SIZE, 0, 10),
                         (PUNCH_HOLE | KEEP_SIZE, 5 * MIB, MIB), (ZERO_RANGE, 3 * MIB - 5, 1000)]:
        fallocate(fd, mode, off, n)
        if not mode & KEEP_SIZE and off + n > len(data):
            data.extend(bytes(off + n - len(data)))
        stop = min(off + n, len(data))
        if stop > off:
            data[off:stop] = bytes(stop - off)
        equal(os.fstat(fd).st_size, len(data), "size")
        equal(os.pread(fd, len(data) + 1, 0), bytes(data), f"bytes after {mode} at {off}")
        os.fsync(fd)
        equal(read_file(other / "f"), bytes(data), f"bytes seen elsewhere after {mode} at {off}")
    for mode in (PUNCH_HOLE, COLLAPSE_RANGE, 0x20, 0x40, ZERO_RANGE | PUNCH_HOLE | KEEP_SIZE, 0x100):
        with raises(errno.EOPNOTSUPP, f"mode {mode:#x}"):
            fallocate(fd, mode, 0, 4096)
    with raises(errno.EINVAL, "no length"):
        fallocate(fd, 0, 0, 0)
    with raises(errno.EFBIG, "beyond the largest file"):
        fallocate(fd, 0, 1 << 52, 4096)
    os.close(fd)
    drop_caches()
    equal(read_file(m / "f"), bytes(data), "bytes after all")


@suite.case
def keep_size_takes_the_set_id_bits(t):
    """fallocate(KEEP_SIZE), which reserves nothing here, by somebody else than root still takes the set-id
    bits away, also for other mounts; by root it keeps them."""
    v = t.volume()
    m, other = t.mount(v), t.mount(v, options=["attr-timeout=0"])
    write_file(m / "f", b"program")
    fd = os.open(m / "f", os.O_RDWR)
    os.chmod(m / "f", 0o6777)
    fallocate(fd, KEEP_SIZE, 0, 100)
    equal(oct(os.stat(other / "f").st_mode), oct(0o106777), "after root's")
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65533)
            os.setuid(65533)
            fallocate(fd, KEEP_SIZE, 0, 100)
            os._exit(0)
        finally:
            os._exit(1)
    equal(os.waitpid(pid, 0)[1], 0, "another user's fallocate")
    for mount in (m, other):
        equal(oct(os.stat(mount / "f").st_mode), oct(0o100777), "after another user's")
        equal(os.stat(mount / "f").st_size, 7, "the size")
    os.close(fd)


@suite.case
def punched_pages_of_a_mapping(t):
    """A mapping shows the hole at once, and what is written into the mapping before it goes with it."""
    m = t.mount(t.volume())
    with open(m / "f", "w+b") as f:
        f.write(payload("m", 65536))
        f.flush()
        with mmap.mmap(f.fileno(), 65536) as view:
            view[8192:8200] = b"mapped!!"
            fallocate(f.fileno(), PUNCH_HOLE | KEEP_SIZE, 8192, 4096)
            equal(view[8192:12288], bytes(4096), "the hole in the mapping")
            equal(view[8000:8192], payload("m", 65536)[8000:8192], "before it")
            view[8195:8198] = b"new"
            view.flush()
        equal(os.pread(f.fileno(), 8, 8192), b"\0\0\0new\0\0", "written into the hole")


@suite.cases_for(shards=[1, 8])
def holes_over_many_windows(t, shards):
    """A hole over a huge sparse file is made in bounded steps; its space is free afterwards."""
    v = t.volume(shards=shards)
    m = t.mount(v)
    fd = os.open(m / "big", os.O_RDWR | os.O_CREAT)
    places = [i * 3 * WINDOW + 1000 for i in range(200)] + [16 << 40]
    for p in places:
        os.pwrite(fd, b"data" * 250, p)
    os.fsync(fd)
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 1500, (16 << 40) - 1500 + 100)
    equal(os.fstat(fd).st_size, (16 << 40) + 1000, "size")
    equal(os.pread(fd, 1000, 1000), (b"data" * 250)[:500] + bytes(500), "the first piece")
    for p in places[1:-1]:
        equal(os.pread(fd, 1000, p), bytes(1000), f"at {p}")
    equal(os.pread(fd, 1000, 16 << 40), bytes(100) + (b"data" * 250)[100:], "the last piece")
    equal(os.lseek(fd, 1600, os.SEEK_DATA), (16 << 40) + 100, "data after the hole")
    os.close(fd)


# --- SEEK_DATA, SEEK_HOLE --------------------------------------------------------------------------

def segments(fd):
    """[(begin, end)] of data, as lseek tells it."""
    out, off, size = [], 0, os.fstat(fd).st_size
    while off < size:
        try:
            begin = os.lseek(fd, off, os.SEEK_DATA)
        except OSError as e:
            equal(e.errno, errno.ENXIO, "SEEK_DATA")
            break
        off = os.lseek(fd, begin, os.SEEK_HOLE)
        check(off > begin, "a hole after data")
        out.append((begin, off))
    return out


@suite.case
def seek_data_and_hole(t):
    """Both are exact, on what is buffered and what is stored, and cheap in a huge sparse file."""
    v = t.volume()
    m, other = t.mount(v), t.mount(v)
    fd = os.open(m / "f", os.O_RDWR | os.O_CREAT)
    with raises(errno.ENXIO, "SEEK_DATA in an empty file"):
        os.lseek(fd, 0, os.SEEK_DATA)
    with raises(errno.ENXIO, "SEEK_HOLE in an empty file"):
        os.lseek(fd, 0, os.SEEK_HOLE)
    os.ftruncate(fd, 1000)
    equal(segments(fd), [], "of a file that is one hole")
    equal(os.lseek(fd, 5, os.SEEK_HOLE), 5, "SEEK_HOLE in a hole")
    os.pwrite(fd, b"x" * 100, 300)
    equal(segments(fd), [(300, 400)], "buffered")
    os.fsync(fd)
    equal(segments(fd), [(300, 400)], "stored")
    os.pwrite(fd, b"y" * 100, 400)
    os.pwrite(fd, b"z" * 100, 700)
    equal(segments(fd), [(300, 500), (700, 800)], "both")
    with raises(errno.ENXIO, "at the end"):
        os.lseek(fd, 1000, os.SEEK_HOLE)
    equal(os.lseek(fd, 800, os.SEEK_HOLE), 800, "the hole at the end")
    with raises(errno.ENXIO, "no data behind"):
        os.lseek(fd, 800, os.SEEK_DATA)
    os.close(fd)
    fd = os.open(other / "f", os.O_RDONLY)
    equal(segments(fd), [(300, 500), (700, 800)], "elsewhere")
    os.close(fd)

    fd = os.open(m / "huge", os.O_RDWR | os.O_CREAT)
    far = 16 << 40
    os.pwrite(fd, b"a" * 10, 5)
    os.pwrite(fd, b"b" * 10, 40 * WINDOW - 5)
    os.ftruncate(fd, far)
    os.pwrite(fd, b"c" * 10, far)
    os.fsync(fd)
    want = [(5, 15), (40 * WINDOW - 5, 40 * WINDOW + 5), (far, far + 10)]
    equal(segments(fd), want, "of a huge file")
    os.close(fd)
    fd = os.open(other / "huge", os.O_RDONLY)
    before = other.counters()
    equal(segments(fd), want, "of a huge file, elsewhere")
    after = other.counters()
    calls = sum(after.get(f"redis.{k}", 0) - before.get(f"redis.{k}", 0)
                for k in ("window", "next_window", "getattr"))
    check(calls <= 16, f"{calls} Redis calls to walk a sparse file of 16 TiB")
    os.close(fd)


# --- copy_file_range ---------------------------------------------------------------------------

def copy(a, b, off_a, off_b, n):
    done = 0
    while done < n:
        k = os.copy_file_range(a, b, n - done, off_a + done, off_b + done)
        if k == 0:
            break
        done += k
    return done


@suite.cases_for(shards=[1, 8])
def copies_share_their_bytes(t, shards):
    """copy_file_range and cp --reflink=auto write nothing to the store; copies live on when the source
    is changed or deleted; in other directories and shards too."""
    v = t.volume(shards=shards)
    m, other = t.mount(v), t.mount(v)
    os.mkdir(m / "a")
    os.mkdir(m / "b")
    data = payload("big", 80 * MIB + 12345)
    write_file(m / "a/big", data)
    write_file(m / "a/small", payload("small", 4096))
    packs = v.bucket.objects()
    for name in ("big", "small"):
        silt.run("cp", "--reflink=auto", m / f"a/{name}", m / f"b/{name}")
    equal(v.bucket.objects(), packs, "objects after cp")
    equal(read_file(m / "b/big") == data, True, "the copy")
    equal(read_file(other / "b/big") == data, True, "the copy, elsewhere")
    equal(read_file(other / "b/small"), payload("small", 4096), "the small copy")
    with open(m / "a/big", "r+b") as f:
        f.seek(1000)
        f.write(b"changed")
        f.truncate(MIB)
    os.unlink(m / "a/small")
    drop_caches()
    equal(read_file(m / "b/big") == data, True, "the copy after the source was changed")
    equal(read_file(m / "b/small"), payload("small", 4096), "the small copy without its source")
    # Parts, at odd places, over what is there, with holes.
    fd = os.open(m / "b/part", os.O_RDWR | os.O_CREAT)
    src = os.open(m / "b/big", os.O_RDONLY)
    equal(copy(src, fd, WINDOW - 1000, 777, 5000), 5000, "bytes copied")
    equal(os.pread(fd, 10000, 0), bytes(777) + data[WINDOW - 1000:WINDOW + 4000], "a part")
    equal(copy(src, fd, len(data) - 10, 100, 5000), 10, "at the end of the source")
    equal(copy(src, fd, len(data) + 10, 100, 5000), 0, "behind it")
    sparse = os.open(m / "b/sparse", os.O_RDWR | os.O_CREAT)
    os.ftruncate(sparse, 10000)
    os.pwrite(sparse, b"mid", 5000)
    copy(sparse, fd, 0, 500, 10000)
    want = bytearray((bytes(777) + data[WINDOW - 1000:WINDOW + 4000])[:500] + bytes(10000))
    want[100:110] = data[-10:]
    want[5500:5503] = b"mid"
    equal(os.pread(fd, 20000, 0), bytes(want), "holes are copied as such")
    copy(fd, fd, 0, 20000, 10500)  # within one file, written but not synced
    equal(os.pread(fd, 10500, 20000), bytes(want), "within one file")
    with raises(errno.EINVAL, "overlapping ranges of one file"):
        os.copy_file_range(fd, fd, 1000, 0, 500)
    os.close(sparse)
    os.close(src)
    os.close(fd)
    want = bytes(want) + bytes(9500) + bytes(want)
    equal(read_file(other / "b/part"), want, "elsewhere")


@suite.case
def copies_of_what_is_not_stored_yet(t):
    m = t.mount(t.volume())
    a = os.open(m / "a", os.O_RDWR | os.O_CREAT)
    b = os.open(m / "b", os.O_RDWR | os.O_CREAT)
    for i in range(20):
        os.pwrite(a, payload(i, 5000), i * 3000)
        os.pwrite(b, b"old" * 1000, 0)
        equal(copy(a, b, i * 3000, 100, 5000), 5000, "bytes")
        equal(os.pread(b, 5000, 100), payload(i, 5000), "the copy")
        equal(os.pread(b, 100, 0), (b"old" * 1000)[:100], "what is before it")
    os.close(a)
    os.close(b)


# --- all of it ------------------------------------------------------------------------------------

class Model:
    """Two files on the mount beside two byte arrays."""

    def __init__(self, t, m, rng):
        self.t, self.m, self.rng = t, m, rng
        self.fd = [os.open(m / f"r{i}", os.O_RDWR | os.O_CREAT) for i in range(2)]
        self.want = [bytearray(), bytearray()]
        self.fresh = 0

    def place(self):
        near = self.rng.choice((0, 4096, 128 << 10, WINDOW))
        return max(0, near + self.rng.randrange(-9000, 9000))

    def extend(self, i, size):
        if size > len(self.want[i]):
            self.want[i].extend(bytes(size - len(self.want[i])))

    def put(self, i, off, data):
        self.extend(i, off)
        self.want[i][off:off + len(data)] = data

    def do_write(self, i):
        off, self.fresh = self.place(), self.fresh + 1
        data = payload(self.fresh, self.rng.randrange(1, 20000))
        os.pwrite(self.fd[i], data, off)
        self.put(i, off, data)

    def do_append(self, i):
        self.fresh += 1
        data = payload(self.fresh, self.rng.randrange(1, 20000))
        fd = os.open(self.m / f"r{i}", os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.want[i].extend(data)

    def do_map(self, i):
        if not self.want[i]:
            return
        off = self.rng.randrange(len(self.want[i]))
        data = payload(off, min(self.rng.randrange(1, 5000), len(self.want[i]) - off))
        with mmap.mmap(self.fd[i], len(self.want[i])) as view:
            equal(view[off:off + len(data)], bytes(self.want[i][off:off + len(data)]), "the mapping")
            view[off:off + len(data)] = data
            view.flush()
        self.put(i, off, data)

    def do_truncate(self, i):
        size = self.place()
        os.ftruncate(self.fd[i], size)
        del self.want[i][size:]
        self.extend(i, size)

    def do_fallocate(self, i):
        off, n = self.place(), self.rng.randrange(1, 30000)
        mode = self.rng.choice((0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE,
                                ZERO_RANGE | KEEP_SIZE))
        fallocate(self.fd[i], mode, off, n)
        if not mode & KEEP_SIZE:
            self.extend(i, off + n)
        stop = min(off + n, len(self.want[i]))
        if mode & (PUNCH_HOLE | ZERO_RANGE) and stop > off:
            self.want[i][off:stop] = bytes(stop - off)

    def do_copy(self, i):
        j, a, b, n = self.rng.randrange(2), self.place(), self.place(), self.rng.randrange(1, 30000)
        if i == j and a < b + n and b < a + n:
            return
        data = bytes(self.want[i][a:a + n])
        if i == j:  # the copy may put the end further away, and a second call would go on there
            n = max(1, len(data))
        equal(copy(self.fd[i], self.fd[j], a, b, n), len(data), "bytes copied")
        if data:
            self.put(j, b, data)

    def do_sync(self, i):
        os.fsync(self.fd[i])

    def do_seek(self, i):
        """Everything that is not zero lies in data; everything else is zero."""
        at = 0
        for begin, end in segments(self.fd[i]):
            check(not any(self.want[i][at:begin]), f"bytes in a hole between {at} and {begin}")
            at = end
        check(not any(self.want[i][at:]), f"bytes in the hole behind {at}")

    def do_reopen(self, i):
        os.close(self.fd[i])
        if self.rng.randrange(3) == 0:
            drop_caches()
        self.fd[i] = os.open(self.m / f"r{i}", os.O_RDWR)

    def look(self):
        for i in range(2):
            got = os.pread(self.fd[i], len(self.want[i]) + 1, 0)
            while len(got) < len(self.want[i]):
                more = os.pread(self.fd[i], len(self.want[i]) - len(got) + 1, len(got))
                if not more:
                    break
                got += more
            if got != self.want[i]:
                at = next((k for k, (x, y) in enumerate(zip(got, self.want[i])) if x != y),
                          min(len(got), len(self.want[i])))
                raise silt.Failure(f"r{i}: {len(got)} bytes, want {len(self.want[i])}, differ at {at}")


@suite.cases_for(shards=[1, 8])
def random_operations(t, shards):
    """Writes, appends, mappings, truncations, holes, copies, seeks: the same bytes as in a model."""
    seed = t.args.seed if t.args.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"# --seed {seed}", flush=True)
    rng = random.Random(seed)
    v = t.volume(shards=shards)
    m = t.mount(v)
    model = Model(t, m, rng)
    kinds = "write write append map truncate fallocate fallocate copy copy sync seek reopen".split()
    for step in range(150 if silt.QUICK else 600):
        kind = rng.choice(kinds)
        try:
            getattr(model, "do_" + kind)(rng.randrange(2))
            if step % 5 == 0:
                model.look()
        except (OSError, silt.Failure) as e:
            raise silt.Failure(f"step {step}, {kind}: {e}") from e
    for fd in model.fd:
        os.close(fd)
    m2 = t.mount(v)
    for i in range(2):
        equal(read_file(m2 / f"r{i}") == model.want[i], True, f"r{i} elsewhere")


suite.main()

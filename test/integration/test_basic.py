#!/usr/bin/env python3
"""Every operation a program may do to files and directories, on every layout: 1 and 8 shards, bytes
in a directory and in S3. What a case writes is compared with the same done on the local disk, or read
back after a remount with an empty cache."""
# timeout: 900
# asan: yes

import errno
import os
import re
import random
import shutil
import socket
import stat
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, raises, renameat2  # noqa: E402

suite = silt.Suite()

SMALL_MATRIX = {"storage": ["file"], "shards": [1, 8]}
MATRIX = {"storage": ["file", "s3"], "shards": [1, 8]}


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def fresh(t, storage="file", shards=1, **kwargs):
    v = t.volume(storage, shards)
    return v, t.mount(v, **kwargs)


def again(t, v, m, **kwargs):
    """Remounts with an empty cache directory: everything must come from Redis and the store."""
    m.umount()
    return t.mount(v, **kwargs)


@suite.cases_for(**SMALL_MATRIX)
def attributes(t, storage, shards):
    v, m = fresh(t, storage, shards)
    f = m / "f"
    write(f, b"x")
    os.chmod(f, 0o4751)
    equal(stat.S_IMODE(os.stat(f).st_mode), 0o4751, "mode after chmod")
    os.chown(f, 1234, 4321)
    st = os.stat(f)
    equal((st.st_uid, st.st_gid), (1234, 4321), "owner after chown")
    equal(stat.S_IMODE(st.st_mode) & 0o6000, 0, "chown drops set-id bits")
    before = os.stat(f).st_ctime_ns
    os.utime(f, ns=(1_000_000_007, 2_000_000_000_123_456_789))
    st = os.stat(f)
    equal((st.st_atime_ns, st.st_mtime_ns), (1_000_000_007, 2_000_000_000_123_456_789), "times")
    check(st.st_ctime_ns >= before, "utime moves ctime")
    os.utime(f, ns=(-5_000_000_000, -1))
    equal((os.stat(f).st_atime_ns, os.stat(f).st_mtime_ns), (-5_000_000_000, -1), "before 1970")
    os.mkdir(m / "d", 0o700)
    os.chmod(m / "d", 0o2775)
    os.chown(m / "d", -1, 77)
    write(m / "d/inherits", b"")
    os.mkdir(m / "d/sub")
    equal(os.stat(m / "d/inherits").st_gid, 77, "group of a file in a set-group-ID directory")
    equal(os.stat(m / "d/sub").st_gid, 77, "group of a directory in a set-group-ID directory")
    check(os.stat(m / "d/sub").st_mode & stat.S_ISGID, "the bit is inherited by directories")
    want = silt.describe_tree(m.path)
    m = again(t, v, m)
    equal(silt.describe_tree(m.path), want, "attributes after a remount")


@suite.cases_for(**SMALL_MATRIX)
def special_files_and_links(t, storage, shards):
    v, m = fresh(t, storage, shards)
    os.mkfifo(m / "fifo", 0o640)
    os.mknod(m / "char", 0o620 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(m / "block", 0o600 | stat.S_IFBLK, os.makedev(200, 70000))
    os.mknod(m / "plain", 0o604 | stat.S_IFREG)
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(m.path)
    s.bind("sock")
    os.chdir(here)
    s.close()
    check(stat.S_ISFIFO(os.stat(m / "fifo").st_mode), "fifo")
    equal(os.stat(m / "char").st_rdev, os.makedev(1, 3), "device number")
    equal(os.stat(m / "block").st_rdev, os.makedev(200, 70000), "large device number")
    check(stat.S_ISSOCK(os.stat(m / "sock").st_mode), "socket")
    os.symlink("t", m / "short")
    os.symlink("x/" * 2000, m / "long")
    os.symlink("a\nb\xff", m / "odd")
    equal(os.readlink(m / "long"), "x/" * 2000, "a target of 4,000 bytes")
    equal(os.lstat(m / "long").st_size, 4000, "its size")
    with raises(errno.EINVAL, "readlink of a file"):
        os.readlink(m / "plain")
    write(m / "target", b"through")
    os.symlink("target", m / "sym")
    equal(read(m / "sym"), b"through", "open through a symbolic link")
    with raises(errno.ELOOP, "O_NOFOLLOW on a link"):
        os.open(m / "sym", os.O_RDONLY | os.O_NOFOLLOW)
    os.symlink("loop", m / "loop")
    with raises(errno.ELOOP, "a link to itself"):
        os.stat(m / "loop")
    # Hard links, in one directory and across directories (with shards: across shards).
    for i in range(16):
        os.mkdir(m / f"d{i}")
        os.link(m / "target", m / f"d{i}/name")
    equal(os.stat(m / "target").st_nlink, 17, "link count")
    with open(m / "d3/name", "ab") as f:
        f.write(b" more")
    equal(read(m / "d7/name"), b"through more", "all names are one file")
    equal(os.stat(m / "d9/name").st_ino, os.stat(m / "target").st_ino, "one inode number")
    with raises(errno.EEXIST, "link over a name"):
        os.link(m / "target", m / "d1/name")
    with raises((errno.EPERM, errno.EACCES), "link to a directory"):
        os.link(m / "d1", m / "d2/dir")
    want = silt.describe_tree(m.path)
    m = again(t, v, m)
    equal(silt.describe_tree(m.path), want, "after a remount")
    os.unlink(m / "target")
    for i in range(16):
        equal(os.stat(m / f"d{i}/name").st_nlink, 16 - i, "link count falls")
        os.unlink(m / f"d{i}/name")


@suite.cases_for(**SMALL_MATRIX)
def make_and_remove(t, storage, shards):
    v, m = fresh(t, storage, shards)
    os.mkdir(m / "d")
    equal(os.stat(m / "d").st_nlink, 2, "links of an empty directory")
    os.mkdir(m / "d/sub")
    equal(os.stat(m / "d").st_nlink, 3, "links with one directory inside")
    with raises(errno.EEXIST, "mkdir over a name"):
        os.mkdir(m / "d")
    with raises(errno.ENOTEMPTY, "rmdir of a full directory"):
        os.rmdir(m / "d")
    with raises((errno.EISDIR, errno.EPERM), "unlink of a directory"):
        os.unlink(m / "d")
    write(m / "f", b"")
    with raises(errno.ENOTDIR, "rmdir of a file"):
        os.rmdir(m / "f")
    with raises(errno.ENOTDIR, "a path through a file"):
        os.stat(m / "f/x")
    with raises(errno.ENOENT, "unlink of nothing"):
        os.unlink(m / "nothing")
    with raises(errno.ENOENT, "open of nothing"):
        os.open(m / "nothing", os.O_RDONLY)
    os.rmdir(m / "d/sub")
    equal(os.stat(m / "d").st_nlink, 2, "links after rmdir")
    os.rmdir(m / "d")
    with raises(errno.ENOENT, "stat of what was removed"):
        os.stat(m / "d")
    # A whole tree, by the tool that people use.
    for i in range(20):
        os.makedirs(m / f"tree/{i % 4}/{i}")
        for j in range(10):
            write(m / f"tree/{i % 4}/{i}/{j}", b"%d" % j)
    shutil.rmtree(m / "tree")
    equal(sorted(os.listdir(m.path)), ["f"], "what is left")


@suite.cases_for(**SMALL_MATRIX)
def rename(t, storage, shards):
    v, m = fresh(t, storage, shards)
    dirs = [m / f"d{i}" for i in range(12)]  # with 8 shards some of these differ in shard
    for d in dirs:
        os.mkdir(d)
    # A file goes round all directories, over an existing file each time.
    write(m / "f", b"travels")
    at = m / "f"
    ino = os.stat(at).st_ino
    for i, d in enumerate(dirs):
        write(d + "/f", b"in the way %d" % i)
        os.rename(at, d + "/f")
        check(not os.path.lexists(at), f"{at} is gone after the rename")
        at = d + "/f"
        equal(read(at), b"travels", f"content in directory {i}")
    equal(os.stat(at).st_ino, ino, "a rename keeps the inode number")
    os.rename(at, m / "f")
    # Directories: into each other, over an empty one, not over a full one, not into themselves.
    os.mkdir(dirs[0] + "/inner")
    write(dirs[0] + "/inner/leaf", b"leaf")
    at = dirs[0] + "/inner"
    for d in dirs[1:]:
        os.mkdir(d + "/inner")
        os.rename(at, d + "/inner")
        at = d + "/inner"
        equal(read(at + "/leaf"), b"leaf", "a file below a moved directory")
        equal(os.stat(os.path.join(at, "..")).st_ino, os.stat(d).st_ino, "its parent")
        equal(os.stat(d).st_nlink, 3, "links of the new parent")
    equal(os.stat(dirs[0]).st_nlink, 2, "links of the old parent")
    os.mkdir(m / "full")
    write(m / "full/x", b"")
    with raises((errno.ENOTEMPTY, errno.EEXIST), "rename over a full directory"):
        os.rename(at, m / "full")
    with raises(errno.EINVAL, "a directory into itself"):
        os.rename(m / "full", m / "full/inside")
    os.makedirs(m / "full/a/b/c")
    with raises(errno.EINVAL, "a directory far below itself"):
        os.rename(m / "full", m / "full/a/b/c/full")
    with raises(errno.EISDIR, "a file over a directory"):
        os.rename(m / "f", m / "full")
    with raises(errno.ENOTDIR, "a directory over a file"):
        os.rename(m / "full", m / "f")
    with raises(errno.ENOENT, "rename of nothing"):
        os.rename(m / "nothing", m / "x")
    # Two names of one file: nothing happens, both stay.
    os.link(m / "f", m / "f2")
    os.rename(m / "f", m / "f2")
    check(os.path.exists(m / "f") and os.path.exists(m / "f2"), "both names of one file stay")
    os.rename(m / "f", m / "f")
    # renameat2: NOREPLACE and EXCHANGE.
    write(m / "one", b"1")
    write(m / "two", b"2")
    with raises(errno.EEXIST, "NOREPLACE over a name"):
        renameat2(m / "one", m / "two", 1)
    renameat2(m / "one", m / "three", 1)
    renameat2(m / "three", m / "two", 2)
    equal((read(m / "three"), read(m / "two")), (b"2", b"1"), "EXCHANGE")
    # The same between directories (of several shards, if there are), of files, directories, and both.
    for k, d in enumerate(dirs):
        write(d + "/swap", b"%d" % k)
        os.makedirs(d + "/swapdir/%d" % k)
        before = [os.stat(p).st_ino for p in (m / "two", d + "/swap", m / "full", d + "/swapdir")]
        renameat2(m / "two", d + "/swap", 2)
        renameat2(d + "/swapdir", m / "full", 2)
        after = [os.stat(p).st_ino for p in (d + "/swap", m / "two", d + "/swapdir", m / "full")]
        equal(after, before, "inodes after EXCHANGE")
        equal(os.stat(d + "/swapdir/..").st_ino, os.stat(d).st_ino, "the parent of an exchanged directory")
        check(os.path.isdir(m / f"full/{k}") and os.path.isdir(d + "/swapdir/a/b/c"), "what is in them")
        renameat2(m / "full", d + "/swap", 2)
        check(os.path.isfile(m / "full") and os.path.isdir(d + f"/swap/{k}"), "EXCHANGE of file and directory")
        renameat2(m / "full", d + "/swap", 2)
        with raises(errno.EINVAL, "EXCHANGE of a directory with something in it"):
            renameat2(m / "full", m / f"full/{k}", 2)
        with raises(errno.EINVAL, "EXCHANGE of something with the directory around it"):
            renameat2(d + "/swapdir/a/b/c", d + "/swapdir", 2)
        with raises(errno.ENOENT, "EXCHANGE with nothing"):
            renameat2(m / "two", d + "/nothing", 2)
        renameat2(d + "/swapdir", m / "full", 2)
    # A symbolic link is renamed itself; a fifo too.
    os.symlink("two", m / "link")
    os.rename(m / "link", dirs[3] + "/link")
    equal(os.readlink(dirs[3] + "/link"), "two", "a moved symbolic link")
    want = silt.describe_tree(m.path)
    m = again(t, v, m)
    equal(silt.describe_tree(m.path), want, "after a remount")


@suite.cases_for(**SMALL_MATRIX)
def open_flags(t, storage, shards):
    v, m = fresh(t, storage, shards)
    f = m / "f"
    fd = os.open(f, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
    os.write(fd, b"0123456789")
    with raises(errno.EBADF, "read of a write-only descriptor"):
        os.read(fd, 1)
    os.close(fd)
    with raises(errno.EEXIST, "O_EXCL over a file"):
        os.open(f, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    fd = os.open(f, os.O_RDONLY)
    with raises(errno.EBADF, "write to a read-only descriptor"):
        os.write(fd, b"x")
    os.close(fd)
    with raises(errno.EISDIR, "a directory opened for writing"):
        os.open(m.path, os.O_WRONLY)
    with raises(errno.ENOTDIR, "O_DIRECTORY on a file"):
        os.open(f, os.O_RDONLY | os.O_DIRECTORY)
    # O_APPEND: every write goes to the end, whatever the position is.
    fd = os.open(f, os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"abc")
    equal(os.pread(fd, 100, 0), b"0123456789abc", "append")
    os.close(fd)
    # O_TRUNC drops what was there, also when nothing is written after.
    fd = os.open(f, os.O_WRONLY | os.O_TRUNC)
    equal(os.fstat(fd).st_size, 0, "size after O_TRUNC")
    os.close(fd)
    equal(read(f), b"", "content after O_TRUNC")
    # O_CREAT on what exists is just an open; a mode without permissions counts for later opens only.
    fd = os.open(f, os.O_CREAT | os.O_RDWR, 0)
    os.write(fd, b"again")
    os.close(fd)
    fd = os.open(m / "sealed", os.O_CREAT | os.O_RDWR, 0)
    os.write(fd, b"w")
    os.close(fd)
    equal(stat.S_IMODE(os.stat(m / "sealed").st_mode), 0, "mode 0 at create")
    old = os.umask(0o027)
    write(m / "masked", b"")
    os.mkdir(m / "masked.d")
    os.umask(old)
    equal(stat.S_IMODE(os.stat(m / "masked").st_mode), 0o640, "umask of a file")
    equal(stat.S_IMODE(os.stat(m / "masked.d").st_mode), 0o750, "umask of a directory")
    # fsync, fdatasync and O_SYNC are promises; here they must at least succeed.
    fd = os.open(f, os.O_WRONLY | os.O_SYNC)
    os.write(fd, b"sync")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    fd = os.open(m.path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)
    # Two descriptors of one file see each other's writes at once.
    a, b = os.open(f, os.O_RDWR), os.open(f, os.O_RDWR)
    os.pwrite(a, b"SEEN", 0)
    equal(os.pread(b, 4, 0), b"SEEN", "a write seen through another descriptor")
    os.ftruncate(a, 2)
    equal(os.fstat(b).st_size, 2, "a truncate seen through another descriptor")
    os.close(a)
    os.close(b)
    equal(read(f), b"SE", "after both closes")


@suite.cases_for(**MATRIX)
def contents(t, storage, shards):
    """Small, medium and large files; sparse ones; overwrites; appends; truncates: the same on siltfs
    and on the local disk, then compared, remounted with an empty cache, compared again."""
    v, m = fresh(t, storage, shards, options=["cache-size=512M"])
    local = t.folder("local")
    rng = random.Random(f"{storage}{shards}")
    big = 24 << 20 if silt.QUICK or silt.SANITIZED or shards == 8 else 160 << 20

    def both(name, function):
        for top in (m.path, local):
            path = os.path.join(top, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            function(path)
            os.utime(path, ns=(1, 1_600_000_000_000_000_000))

    sizes = [0, 1, 4095, 4096, 4097, 65536, 131071, 131072, 131073, 1 << 20, (4 << 20) + 5,
             (16 << 20) - 1, 16 << 20, (16 << 20) + 1]
    for n in sizes:
        both(f"sizes/{n}", lambda p, n=n: write(p, payload(n, n)))
    for i in range(500):
        n = rng.randrange(0, 8192)
        both(f"small/{i % 7}/{i}", lambda p, n=n, i=i: write(p, payload(i, n)))
    both("big", lambda p: write_big(p, big))

    def sparse(p):
        with open(p, "wb") as f:
            for at in (0, 5 << 20, (64 << 20) - 3, 200 << 20):
                f.seek(at)
                f.write(b"island at %d" % at)
            f.truncate((300 << 20) + 11)
    both("sparse", sparse)
    both("hole-only", lambda p: (write(p, b""), os.truncate(p, 50 << 20)))

    def overwrite(p):
        r = random.Random(1)
        write(p, payload("base", 6 << 20))
        with open(p, "r+b") as f:
            for i in range(300):
                f.seek(r.randrange(6 << 20))
                f.write(payload(i, r.randrange(1, 40000)))
                if i % 50 == 0:
                    f.flush()
                    os.fsync(f.fileno())
    both("overwritten", overwrite)

    def appended(p):
        for i in range(60):
            with open(p, "ab") as f:
                f.write(payload(i, 1000 + 700 * i))
    both("appended", appended)

    def truncated(p):
        write(p, payload("t", 3 << 20))
        os.truncate(p, 1_000_001)
        os.truncate(p, 2 << 20)      # what comes back must be zeros
        with open(p, "r+b") as f:
            f.seek((2 << 20) + 100)
            f.write(b"end")
            f.flush()
            f.truncate(1_500_000)
            f.seek(0, 2)
            f.write(b"tail")
    both("truncated", truncated)
    both("shrunk-to-zero", lambda p: (write(p, payload(1, 100000)), os.truncate(p, 0)))
    for top in (m.path, local):
        for d, dirs, _ in os.walk(top, topdown=False):
            os.utime(d, ns=(1, 1_500_000_000_000_000_000))
    want = silt.describe_tree(local)
    silt.compare_trees(m.path, want, "as written")
    m = again(t, v, m, options=["cache-size=512M"])
    silt.compare_trees(m.path, want, "after a remount with an empty cache")
    m = again(t, v, m, cache=False)
    silt.compare_trees(m.path, want, "without an SSD cache")


def write_big(path, size):
    with open(path, "wb") as f:
        done = 0
        while done < size:
            n = min(1 << 20, size - done)
            f.write(payload(done, n))
            done += n


@suite.case
def a_sparse_petabyte(t):
    """What a file's holes cost does not depend on how large they are: warmup, info and truncation ask
    Redis for the parts that there are."""
    v = t.volume()
    m = t.mount(v)
    size = 1 << 50
    places = {0: b"begin", size // 3: b"third", size - 5: b"end.."}
    with open(m / "f", "wb") as f:
        f.truncate(size)
        for at, data in places.items():
            f.seek(at)
            f.write(data)
    before = v.redis.function_calls()
    t.siltfs("warmup", m.path, timeout=30)
    info = t.siltfs("info", m / "f", timeout=30).out
    equal([int(x) for x in re.findall(r"^ +(\d+) +5 ", info, re.M)], sorted(places), "extents shown")
    fd = os.open(m / "f", os.O_RDWR)
    for at, data in places.items():
        equal(os.pread(fd, 20, max(at - 10, 0)).strip(b"\0"), data, f"bytes at {at}")
    os.ftruncate(fd, size // 2)
    os.ftruncate(fd, size // 3 + 2)
    os.ftruncate(fd, size)
    equal(os.pread(fd, 20, size // 3), b"th" + bytes(18), "bytes that a truncation went through")
    equal(os.pread(fd, 20, size - 20), bytes(20), "bytes that were cut off")
    os.close(fd)
    calls = v.redis.function_calls() - before
    check(calls < 60, f"{calls} calls of Redis")


@suite.case
def truncated_to_nothing_with_extents_not_read_yet(t):
    """A file of several extents, opened on a fresh mount, cut to nothing before any of them was looked
    up, and written again: the new bytes are read (they were zeros once)."""
    v, m = fresh(t)
    a = os.open(m / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(a, b"first", 0)
    b = os.open(m / "f", os.O_RDWR)
    os.pwrite(b, payload("second", 2_000_000), 4_000_000)
    os.close(a)
    os.close(b)
    m = again(t, v, m)
    writer = os.open(m / "f", os.O_RDWR)
    cutter = os.open(m / "f", os.O_RDWR | os.O_TRUNC)
    os.pwrite(writer, payload("new", 4481), 0)
    os.close(writer)
    equal(read(m / "f"), payload("new", 4481), "what was written after the cut")
    os.close(cutter)
    equal(read(m / "f"), payload("new", 4481), "after all closes")


@suite.cases_for(**SMALL_MATRIX)
def names(t, storage, shards):
    v, m = fresh(t, storage, shards)
    odd = [b"x" * 255, b" ", b"-rf", b"a\nb", b"tab\there", b"\xff\xfe\x80", "grün".encode(),
           b"*", b"'\"`$", b"..." , b".hidden", b"%d%s", b"{}", b"\x01", b"0", b"a" * 65, b"a" * 64]
    top = os.fsencode(m.path)
    for i, n in enumerate(odd):
        write(os.path.join(top, n), b"%d" % i)
    with raises(errno.ENAMETOOLONG, "a name of 256 bytes"):
        write(os.path.join(top, b"y" * 256), b"")
    equal(sorted(os.listdir(top)), sorted(odd), "names in a listing")
    m = again(t, v, m)
    top = os.fsencode(m.path)
    equal(sorted(os.listdir(top)), sorted(odd), "names after a remount")
    for i, n in enumerate(odd):
        equal(read(os.path.join(top, n)), b"%d" % i, f"content of {n!r}")
        os.rename(os.path.join(top, n), os.path.join(top, n[:250] + b"~"))
    equal(sorted(os.listdir(top)), sorted(n[:250] + b"~" for n in odd), "names after renames")
    deep = m.path
    for i in range(100):
        deep = os.path.join(deep, "d%03d" % i)
    os.makedirs(deep)
    write(os.path.join(deep, "leaf"), b"deep")
    equal(read(os.path.join(deep, "leaf")), b"deep", "100 levels deep")


@suite.cases_for(**SMALL_MATRIX)
def big_directory(t, storage, shards):
    v, m = fresh(t, storage, shards)
    count = 3000 if silt.SANITIZED else 8000
    os.mkdir(m / "d")
    names = {f"entry-{i:07d}" for i in range(count)}

    def create(part):
        for n in part:
            os.close(os.open(m / f"d/{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    ordered = sorted(names)
    threads = [threading.Thread(target=create, args=(ordered[i::4],)) for i in range(4)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    seen = os.listdir(m / "d")
    equal(len(seen), count, "entries in the listing")
    equal(set(seen), names, "names in the listing")
    equal(sum(1 for e in os.scandir(m / "d") if e.is_file(follow_symlinks=False)), count, "types")
    m = again(t, v, m)
    equal(set(os.listdir(m / "d")), names, "names after a remount")
    # rm -r reads a page, deletes it, reads on: nothing may be skipped.
    shutil.rmtree(m / "d")
    check(not os.path.exists(m / "d"), "the directory is gone")


@suite.case
def rewinddir_and_seekdir(t):
    """A directory stream can be rewound and continued, and holds "." and ".."."""
    v, m = fresh(t, shards=8)
    os.mkdir(m / "d")
    for i in range(1000):
        write(m / f"d/{i}", b"")
    out = silt.run("ls", "-aU", m / "d").out.split()
    equal(len(out), 1002, "ls -aU")
    check("." in out and ".." in out, "dot and dot-dot")
    fd = os.open(m / "d", os.O_RDONLY)
    first = set(os.listdir(fd))
    write(m / "d/new", b"")
    equal(set(os.listdir(fd)) - first, {"new"}, "a rewound stream sees a new name")
    os.close(fd)


@suite.case
def statfs(t):
    v, m = fresh(t)
    before = os.statvfs(m.path)
    check(before.f_blocks > 0 and before.f_bavail > 0, "there is room")
    equal(before.f_namemax, 255, "longest name")
    for i in range(50):
        write(m / f"{i}", payload(i, 100_000))
    silt.wait_until(lambda: os.statvfs(m.path).f_files - os.statvfs(m.path).f_ffree
                    >= before.f_files - before.f_ffree + 50, "statfs to count 50 files", 20)


@suite.cases_for(**SMALL_MATRIX)
def open_unlinked(t, storage, shards):
    """A file that was deleted while open can be read and written until it is closed."""
    v, m = fresh(t, storage, shards)
    fd = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"before")
    os.fsync(fd)
    os.unlink(m / "f")
    equal(os.fstat(fd).st_nlink, 0, "links")
    os.write(fd, b" after")
    os.fsync(fd)
    equal(os.pread(fd, 100, 0), b"before after", "content of a deleted open file")
    os.ftruncate(fd, 3)
    equal(os.pread(fd, 100, 0), b"bef", "after a truncate")
    write(m / "f", b"another")
    equal(os.pread(fd, 100, 0), b"bef", "a new file of that name is another file")
    os.close(fd)
    equal(read(m / "f"), b"another", "the new file stays")
    # The same when a rename takes the name away.
    fd = os.open(m / "f", os.O_RDONLY)
    write(m / "g", b"winner")
    os.rename(m / "g", m / "f")
    equal(os.pread(fd, 100, 0), b"another", "content of a replaced open file")
    os.close(fd)
    equal(read(m / "f"), b"winner", "the file that replaced it")
    # And a directory that is some process's working directory.
    os.mkdir(m / "d")
    fd = os.open(m / "d", os.O_RDONLY)
    os.rmdir(m / "d")
    equal(os.listdir(fd), [], "a removed open directory is empty")
    os.close(fd)


@suite.cases_for(**SMALL_MATRIX)
def times_move_as_posix_says(t, storage, shards):
    v, m = fresh(t, storage, shards)
    os.mkdir(m / "d")

    def moved(path, action, fields, what):
        old = os.stat(path)
        silt.wait_until(lambda: os.utime(m / "clock") or
                        os.stat(m / "clock").st_ctime_ns > old.st_ctime_ns + 10_000_000, "a tick")
        action()
        new = os.stat(path)
        for f in fields:
            check(getattr(new, f) > getattr(old, f), f"{what} moves {f} of {os.path.basename(path)}")
    write(m / "clock", b"")
    moved(m / "d", lambda: write(m / "d/f", b"1"), ["st_mtime_ns", "st_ctime_ns"], "create")
    moved(m / "d/f", lambda: write(m / "d/f", b"22"), ["st_mtime_ns", "st_ctime_ns"], "write")
    moved(m / "d/f", lambda: os.chmod(m / "d/f", 0o600), ["st_ctime_ns"], "chmod")
    moved(m / "d/f", lambda: os.link(m / "d/f", m / "d/l"), ["st_ctime_ns"], "link")
    moved(m / "d", lambda: os.rename(m / "d/l", m / "d/k"), ["st_mtime_ns"], "rename")
    moved(m / "d/f", lambda: os.unlink(m / "d/k"), ["st_ctime_ns"], "unlink of a link")
    moved(m / "d", lambda: os.mkdir(m / "d/s"), ["st_mtime_ns", "st_ctime_ns"], "mkdir")
    moved(m / "d", lambda: os.rmdir(m / "d/s"), ["st_mtime_ns", "st_ctime_ns"], "rmdir")
    moved(m / "d/f", lambda: os.truncate(m / "d/f", 1), ["st_mtime_ns", "st_ctime_ns"], "truncate")


@suite.case
def set_id_bits_go_on_write(t):
    """Writing to a set-user-ID file by someone who is not root takes the bits away."""
    v = t.volume()
    m = t.mount(v, options=["allow_other"])
    os.chmod(m.path, 0o777)
    write(m / "tool", b"x")
    os.chmod(m / "tool", 0o6777)
    os.chown(m / "tool", 65534, 65534)
    os.chmod(m / "tool", 0o6777)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65533)
            os.setuid(65533)
            fd = os.open(m / "tool", os.O_WRONLY)
            os.write(fd, b"y")
            os.close(fd)
            os._exit(0)
        finally:
            os._exit(1)
    equal(os.waitpid(pid, 0)[1], 0, "the write by another user")
    equal(oct(stat.S_IMODE(os.stat(m / "tool").st_mode)), oct(0o777), "mode after the write")


@suite.case
def who_writes_and_the_set_id_bits(t):
    """A write by root, who has CAP_FSETID, keeps set-id bits, as on ext4; anybody else's clears them,
    at once here and in Redis. In place, appended, and through a descriptor that both have."""
    v = t.volume()
    m = t.mount(v, options=["allow_other", "attr-timeout=0"])
    other = t.mount(v, options=["attr-timeout=0"])
    os.chmod(m.path, 0o755)

    def mode(mount, name):
        return oct(stat.S_IMODE(os.stat(mount / name).st_mode))

    for name, flags in (("place", 0), ("append", os.O_APPEND)):
        write(m / name, b"program")
        os.chmod(m / name, 0o6777)
        fd = os.open(m / name, os.O_WRONLY | flags)
        os.write(fd, b"by root")
        equal(mode(m, name), oct(0o6777), f"{name}: after a write by root")
        os.fsync(fd)
        equal(mode(m, name), oct(0o6777), f"{name}: when it is stored")
        equal(mode(other, name), oct(0o6777), f"{name}: on another mount")
        equal(os.system(f"echo by a shell >> {m / name}"), 0, "a shell's append")
        equal(mode(m, name), oct(0o6777), f"{name}: after echo >>")
        pid = os.fork()
        if pid == 0:
            try:
                os.setgid(65533)
                os.setuid(65533)
                os.write(fd, b"by another")
                os._exit(0)
            finally:
                os._exit(1)
        equal(os.waitpid(pid, 0)[1], 0, "the write by another user")
        equal(mode(m, name), oct(0o777), f"{name}: at once after a write by another user")
        os.write(fd, b"by root again")
        os.close(fd)
        equal(mode(m, name), oct(0o777), f"{name}: when that is stored")
        equal(mode(other, name), oct(0o777), f"{name}: on another mount")
        os.chmod(m / name, 0o4755)
        write(m / name, b"new program")
        equal(mode(other, name), oct(0o4755), f"{name}: kept again")


@suite.case
def permissions_of_others(t):
    """With allow_other the kernel checks permissions by the modes and owners stored."""
    v = t.volume()
    m = t.mount(v, options=["allow_other"])
    os.chmod(m.path, 0o755)
    write(m / "secret", b"s")
    os.chmod(m / "secret", 0o600)
    write(m / "public", b"p")
    os.mkdir(m / "sticky")
    os.chmod(m / "sticky", 0o1777)
    write(m / "sticky/root's", b"")
    r = silt.run("setpriv", "--reuid=65533", "--regid=65533", "--clear-groups", "sh", "-c",
                 f"cd {m.path} && cat public && ! cat secret && ! touch x && touch sticky/mine"
                 " && ! rm -f sticky/root* && rm sticky/mine", check_status=False)
    equal(r.returncode, 0, f"another user's view ({r.out} {r.err})")


@suite.case
def persistence_of_a_real_tree(t):
    """cp -a of headers and links of the system itself, a remount with an empty cache: content, mode,
    owner and times are those of the source."""
    v, m = fresh(t, shards=8)
    sources = ("/usr/include/linux", "/etc/alternatives")
    silt.run("cp", "-a", *sources, m.path, timeout=600)
    m = again(t, v, m)
    n = sum(silt.compare_trees(source, m / os.path.basename(source), "a copied tree") for source in sources)
    check(n > 100, f"only {n} files were compared")


@suite.case
def memory_maps(t):
    import mmap
    v, m = fresh(t)
    write(m / "f", payload("map", 300_000))
    with open(m / "f", "r+b") as f, mmap.mmap(f.fileno(), 0) as p:
        equal(bytes(p[1000:2000]), payload("map", 300_000)[1000:2000], "read through a map")
        p[5000:5004] = b"MMAP"
        p.flush()
    m = again(t, v, m)
    want = bytearray(payload("map", 300_000))
    want[5000:5004] = b"MMAP"
    equal(read(m / "f"), bytes(want), "written through a map")
    # A program can be run from the mount.
    shutil.copy("/bin/true", m / "true")
    silt.run(m / "true")


suite.main()

#!/usr/bin/env python3
"""Written bytes that can't be stored: who is told, who is not, what becomes of them."""
# timeout: 400
# asan: yes

import contextlib
import errno
import os
import re
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from sidebyside import APPEND, set_flags  # noqa: E402
from silt import check, equal, payload, raises  # noqa: E402

suite = silt.Suite()
MB = 1 << 20


def read(path):
    with open(path, "rb") as f:
        return f.read()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


class Broken:
    """A bucket that takes nothing, until mend()."""

    def __init__(self, bucket):
        self.packs = os.path.join(bucket.path, bucket.volume, "packs")
        os.makedirs(self.packs, exist_ok=True)
        os.rename(self.packs, self.packs + ".away")
        write(self.packs, b"")

    def mend(self):
        os.unlink(self.packs)
        os.rename(self.packs + ".away", self.packs)


class Writer(threading.Thread):
    """Writes `total` bytes to a descriptor, 64 KiB at a time, and closes it."""

    def __init__(self, fd, total):
        super().__init__(daemon=True)
        self.fd, self.data, self.error, self.at = fd, payload(fd, total), None, 0
        self.start()

    def run(self):
        try:
            while self.at < len(self.data):
                self.at += os.write(self.fd, self.data[self.at:self.at + 65536])
        except OSError as e:
            self.error = e.errno
        try:
            os.close(self.fd)
        except OSError as e:
            self.error = self.error or e.errno

    def waits(self):
        """Does it stay in one request to the mount?"""
        at = self.at
        return all(self.sleeps() and self.at == at for _ in range(100))

    def sleeps(self):
        for name in ("wchan", "stack"):
            with contextlib.suppress(OSError):
                with open(f"/proc/self/task/{self.native_id}/{name}") as f:
                    if "fuse" in f.read() or "request_wait" in f.read():
                        return True
        return False

    def end(self, seconds=90):
        self.join(seconds)
        check(not self.is_alive(), "a writer hangs")


def inode_field(ino):
    shard, seq = ino >> 48, ino & ((1 << 48) - 1)
    return "{%d}i%x" % (shard, seq // 64), seq % 64


@suite.case
def a_write_does_not_get_another_files_error(t):
    """Two files wait for space; one can't be stored. Its writer is told, the other one goes on."""
    v = t.volume()
    m = t.mount(v, options=["buffer-size=4M"])
    m.expect(" error: ", "damaged", "DAMAGED")
    bad = os.open(m / "bad", os.O_CREAT | os.O_WRONLY)
    good = os.open(m / "good", os.O_CREAT | os.O_WRONLY)
    v.redis.cmd("HSET", *inode_field(os.fstat(bad).st_ino), b"\xff" * 5)
    v.redis.pause()  # nothing is stored or refused until both wait
    try:
        a = Writer(bad, 6 * MB)
        silt.wait_until(lambda: a.waits(), "the first writer to wait for space")
        b = Writer(good, 1 * MB)
        silt.wait_until(lambda: b.waits(), "the second writer to wait for space")
    finally:
        v.redis.resume()
    a.end()
    b.end()
    equal(b.error, None, "error of the file that can be stored")
    equal(a.error, errno.EIO, "error of the file whose record is damaged")
    equal(read(m / "good"), b.data, "its bytes")


@suite.case
def failed_in_the_background_stored_by_itself(t):
    """The store refuses bytes while their writer is idle: they are sent again without a call, the
    log says so once at the beginning and once at the end, and fsync() has nothing to report."""
    v = t.volume()
    m = t.mount(v)
    m.expect(" error: ")
    fd = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    bucket = Broken(v.bucket)
    data = payload("f", 17 * MB)
    os.write(fd, data)  # the first 16 MiB are a full segment: they go out
    silt.wait_until(lambda: "not stored" in m.log_text(), "the failure to be logged")
    silt.wait_until(lambda: m.log_text().count("upload of") >= 3, "it to be tried again twice", 60)
    equal(os.pread(fd, len(data), 0) == data, True, "meanwhile the bytes are read")
    bucket.mend()
    silt.wait_until(lambda: v.bucket.objects(), "a pack", 60)
    silt.wait_until(lambda: "stored after all" in m.log_text(), "the recovery to be logged")
    equal(len(re.findall("not stored", m.log_text())), 1, "lines that tell of the failure")
    os.fsync(fd)
    os.close(fd)
    equal(read(m / "f") == data, True, "the bytes")
    m.umount()
    equal(read(t.mount(v) / "f") == data, True, "the bytes, after a new mount")


@suite.case
def every_descriptor_is_told(t):
    """As long as bytes are not stored, fsync() and close() of each descriptor give the error."""
    v = t.volume()
    m = t.mount(v)
    m.expect(" error: ")
    a = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    b = os.open(m / "f", os.O_RDWR)
    bucket = Broken(v.bucket)
    os.write(a, b"x" * 5000)
    for fd in (a, b, a):
        with raises(errno.EIO, "fsync() of bytes that the store refuses"):
            os.fsync(fd)
    with raises(errno.EIO, "close() of bytes that the store refuses"):
        os.close(a)
    bucket.mend()
    os.fsync(b)
    os.close(b)
    equal(read(m / "f"), b"x" * 5000, "the bytes")


@suite.case
def what_close_could_not_store_does_not_come_back(t):
    """close() gave an error; another mount writes the file anew: nobody sees the old bytes again."""
    v = t.volume()
    a, b = t.mount(v), t.mount(v)
    a.expect(" error: ")
    write(a / "f", b"first")
    bucket = Broken(v.bucket)
    fd = os.open(a / "f", os.O_WRONLY)
    os.write(fd, b"x" * 5000)
    with raises(errno.EIO, "close() without a store"):
        os.close(fd)
    silt.wait_until(lambda: "lost, after its last close" in a.log_text(), "the log to say so")
    bucket.mend()
    equal(read(a / "f"), b"first", "what the failed writer's mount reads")
    write(b / "f", b"second")
    equal(read(a / "f"), b"second", "what the failed writer's mount reads then")
    equal(os.stat(a / "f").st_size, 6, "size")
    equal(a.counters()["fs.dirty_bytes"], 0, "bytes that are left in memory")
    a.umount()
    equal(read(b / "f"), b"second", "after it was unmounted")


@suite.case
def a_refused_truncation_takes_nothing(t):
    """Bytes that were written and not stored yet are not lost when the file's flags forbid to cut it."""
    v = t.volume()
    m = t.mount(v)
    with open(m / "log", "wb"):
        set_flags(m / "log", APPEND)
    fd = os.open(m / "log", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"appended")
    with raises(errno.EPERM, "O_TRUNC of an append-only file"):
        os.open(m / "log", os.O_WRONLY | os.O_TRUNC)
    with raises(errno.EPERM, "truncate() of it"):
        os.truncate(m / "log", 3)
    os.fsync(fd)
    os.close(fd)
    other = t.mount(v)
    equal(read(other / "log"), b"appended", "the bytes")
    set_flags(m / "log", 0)


@suite.case
def a_truncation_that_fails_says_what_it_took(t):
    """Redis does not answer a truncation for too long. Bytes behind the cut that were not stored yet are
    gone by then; fsync() and close() of every descriptor say so once."""
    v = t.volume()
    m = t.mount(v, options=["redis-wait=2"])
    m.expect(" error: ")
    fd = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    other = os.open(m / "f", os.O_WRONLY)
    os.write(fd, b"x" * 100_000)
    v.redis.pause()
    try:
        with raises((errno.EIO, errno.EINTR), "ftruncate() without Redis"):
            os.ftruncate(fd, 10)
    finally:
        v.redis.resume()
    silt.wait_until(lambda: os.path.exists(m / "f"), "Redis to answer again")
    for d in (fd, other):
        with raises(errno.EIO, "fsync() after bytes were lost"):
            os.fsync(d)
        os.fsync(d)
        os.close(d)
    check(read(m / "f") in (b"", b"x" * 10), "no bytes that nobody wrote")
    write(m / "f", b"goes on")
    equal(read(m / "f"), b"goes on", "afterwards")


@suite.case
def a_store_that_takes_nothing(t):
    """All memory is held by bytes that the store refuses, of a file that stays open: other files'
    writes wait for half a minute, then they get the store's error; when it takes bytes again, all
    is stored and written as if nothing had been."""
    v = t.volume()
    m = t.mount(v, options=["buffer-size=1M"])
    m.expect(" error: ")
    held = os.open(m / "held", os.O_CREAT | os.O_RDWR)
    other = os.open(m / "other", os.O_CREAT | os.O_WRONLY)
    bucket = Broken(v.bucket)
    os.write(held, payload("held", MB))
    with raises(errno.EIO, "fsync() without a store"):
        os.fsync(held)
    w = Writer(other, 100_000)
    w.join(10)
    check(w.is_alive(), f"the other file's write waits (error {w.error})")
    w.end()
    equal(w.error, errno.EIO, "the other file's write, in the end")
    other = os.open(m / "other", os.O_WRONLY)
    w = Writer(other, 100_000)
    silt.wait_until(lambda: w.waits() or not w.is_alive(), "a second one to wait or to fail")
    bucket.mend()
    w.end()
    if w.error is None:  # it may have been told of the store before that was mended
        equal(read(m / "other"), w.data, "the other file")
    silt.wait_until(lambda: "stored after all" in m.log_text(), "the first file to be stored", 60)
    os.fsync(held)
    os.close(held)
    write(m / "third", payload(3, 3 * MB))
    equal(read(m / "held"), payload("held", MB), "the first file")
    equal(read(m / "third"), payload(3, 3 * MB), "another file")


suite.main()

#!/usr/bin/env python3
"""A file that is open on one mount stays while another one removes its last name, by unlink or by a rename
over it, until the last handle is closed or the mount's session has expired, not longer and not shorter."""
# timeout: 600
# asan: yes

import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, wait_until  # noqa: E402

suite = silt.Suite()
BEAT = 0.6


def mounts(t, shards, n=2, beat=BEAT):
    v = t.volume("file", shards, redis=t.redis())
    return v, [t.mount(v, options=[f"heartbeat={beat}"]) for _ in range(n)]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def inodes(v):
    """Of all shards: how many there are."""
    return sum(int(v.redis.cmd("HGET", k, "i") or 0) for k in v.redis.cmd("KEYS", "{*}c"))


def listed(v):
    """Deleted files that not all mounts have looked at."""
    return sum(v.redis.cmd("LLEN", k) for k in v.redis.cmd("KEYS", "{*}D"))


def remove(m, how, name):
    if how == "unlink":
        os.unlink(m / name)
    else:
        write(m / "other", b"another file")
        os.rename(m / "other", m / name)


def spread(m):
    """Directories, of several shards if there are several."""
    for k in range(6):
        os.mkdir(m / f"d{k}")
    return [f"d{k}" for k in range(6)]


@suite.cases_for(shards=[1, 8], how=["unlink", "rename"])
def it_stays_and_goes(t, shards, how):
    v, (a, b) = mounts(t, shards)
    data = payload(3 << 20, 7)
    dirs = spread(a)
    before = inodes(v)
    opened = []
    for d in dirs:
        write(a / f"{d}/f", data)
        write(a / f"{d}/w", b"12345")
        opened.append((os.open(b / f"{d}/f", os.O_RDWR), os.open(b / f"{d}/w", os.O_WRONLY)))
    with_them = inodes(v)
    for d in dirs:
        remove(a, how, f"{d}/f")
        remove(a, how, f"{d}/w")
    left = inodes(v)
    for k in range(3):
        wait_until(lambda: listed(v) == 0, "all mounts to look", 60)
        for i, (r, w) in enumerate(opened):
            equal(os.pread(r, len(data), 0), data, "what is read")
            equal(os.fstat(r).st_nlink, 0, "links")
            equal(os.pwrite(r, b"new %d" % k, k * 10), 5, "a write")
            os.fsync(r)
            equal(os.pread(r, 5, k * 10), b"new %d" % k, "what was written")
            data_now = os.pread(r, len(data), 0)
            equal((len(data_now), data_now[30:]), (len(data), data[30:]), "the rest")
            equal(os.pwrite(w, b"x", 0), 1, "a write to one that was opened for writing only")
            os.fsync(w)
            os.pwrite(r, data[k * 10:k * 10 + 5], k * 10)
        equal(inodes(v), left, "inodes")
        time.sleep(5 * BEAT)  # heartbeats: what must not happen has its time to happen
    check(left >= with_them, f"all are there: {left}")
    for r, w in opened:
        os.close(r)
        os.close(w)
    wait_until(lambda: inodes(v) == (before if how == "unlink" else before + 12), "them to go", 30)
    equal(v.redis.cmd("KEYS", "{*}[oD]"), [], "what is kept of deleted files")


@suite.cases_for(shards=[1, 8])
def a_killed_holder(t, shards):
    """kill -9 of the mount that has it open: the file goes when its session expires, not before."""
    v, (a, b) = mounts(t, shards, beat=1)
    write(a / "f", b"bytes")
    before = inodes(v)
    fd = os.open(b / "f", os.O_RDONLY)
    os.unlink(a / "f")
    wait_until(lambda: listed(v) == 0, "all mounts to look", 60)
    equal(inodes(v), before, "inodes while it is open")
    sessions = v.redis.cmd("HLEN", "{0}S")
    b.kill()
    while inodes(v) == before:
        last = v.redis.cmd("HLEN", "{0}S")
        check(last >= sessions - 1, "the session")
        time.sleep(0.02)
    equal(v.redis.cmd("HGET", "{0}F", max(v.redis.cmd("HKEYS", "{0}F"), key=int)).split()[1], b"1",
          "it went when its holder was taken for dead")
    equal(inodes(v), before - 1, "inodes")
    try:
        os.close(fd)
    except OSError:
        pass


@suite.cases_for(shards=[1, 8])
def a_stopped_holder(t, shards):
    """A mount that is stopped for less than its session lives has heard of nothing: its file waits."""
    v, (a, b) = mounts(t, shards, beat=2)
    write(a / "f", b"bytes")
    before = inodes(v)
    fd = os.open(b / "f", os.O_RDONLY)
    os.kill(b.proc.pid, signal.SIGSTOP)
    os.unlink(a / "f")
    end = time.monotonic() + 6
    while time.monotonic() < end:
        equal(inodes(v), before, "inodes")
        time.sleep(0.1)
    os.kill(b.proc.pid, signal.SIGCONT)
    wait_until(lambda: listed(v) == 0, "all mounts to look", 60)
    equal(os.pread(fd, 10, 0), b"bytes", "what it reads")
    os.close(fd)
    wait_until(lambda: inodes(v) == before - 1, "it to go", 30)


@suite.cases_for(shards=[1, 8])
def one_mount_alone(t, shards):
    """With one mount there is nobody to wait for."""
    v, (a,) = mounts(t, shards, n=1, beat=60)
    dirs = spread(a)
    before = inodes(v)
    for d in dirs:
        write(a / f"{d}/f", b"bytes")
        os.unlink(a / f"{d}/f")
        equal(inodes(v), before, "inodes after unlink")
        fd = os.open(a / f"{d}/f", os.O_CREAT | os.O_RDWR)
        os.unlink(a / f"{d}/f")
        equal(inodes(v), before + 1, "inodes while it is open")
        os.close(fd)
        wait_until(lambda: inodes(v) == before, "it to go with its handle", 10)
    equal(v.redis.cmd("KEYS", "{*}[oD]"), [], "what is kept of deleted files")


@suite.cases_for(shards=[1, 8])
def mounts_that_end(t, shards):
    """A mount that ends holds nothing up; what is left when the last one ends goes with it."""
    v, (a, b) = mounts(t, shards, beat=60)
    before = inodes(v)
    for k in range(500):
        write(a / f"f{k}", b"bytes")
    for k in range(500):
        os.unlink(a / f"f{k}")
    equal(listed(v), 500, "files on the lists")
    b.umount()
    equal(listed(v), 500, "a has not looked")
    a.umount()
    equal((listed(v), inodes(v)), (0, before), "files on the lists, inodes")


@suite.cases_for(shards=[1, 8])
def removing_many_costs_no_calls(t, shards):
    """Two mounts: a call for each unlink, and a few for all of them together."""
    v, (a, b) = mounts(t, shards)
    before = inodes(v)
    os.mkdir(a / "d")
    for k in range(1000):
        write(a / f"d/f{k}", b"bytes")
    fd = os.open(b / "d/f7", os.O_RDONLY)
    calls = [m.counters() for m in (a, b)]
    for k in range(1000):
        os.unlink(a / f"d/f{k}")
    wait_until(lambda: listed(v) == 0, "all mounts to look", 60)
    equal(inodes(v), before + 2, "the directory and the open file are left")
    now = [m.counters() for m in (a, b)]

    def made(k, what):
        return now[k].get(f"redis.{what}", 0) - calls[k].get(f"redis.{what}", 0)
    equal(made(0, "unlink"), 1000, "unlinks")
    for k in range(2):
        check(made(k, "seen") <= 60, f"calls that clean up: {made(k, 'seen')}")
    equal(made(1, "hold"), 1, "calls to hold the open file")
    os.close(fd)
    wait_until(lambda: inodes(v) == before + 1, "the file to go", 30)


suite.main()

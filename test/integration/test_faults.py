#!/usr/bin/env python3
"""Servers and processes that fail: nothing that close() acknowledged is lost, nothing hangs that
SIGKILL can't end, no made-up answers."""
# timeout: 900

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload  # noqa: E402

suite = silt.Suite()
FILES = 200 if silt.QUICK else 600


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def content(i):
    return payload(i, 40 + (i * 7919) % 9000 if i % 50 else 3_000_000 + i)


class Writers:
    """Threads that create files and remember which ones close() acknowledged."""

    def __init__(self, m, folder, threads=8, total=None):
        self.m, self.folder, self.total = m, folder, total
        self.acknowledged, self.failed = set(), {}
        self.next, self.lock, self.stopping = 0, threading.Lock(), False
        os.makedirs(m / folder, exist_ok=True)
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(threads)]
        for x in self.threads:
            x.start()

    def work(self):
        while not self.stopping:
            with self.lock:
                i = self.next
                if self.total is not None and i >= self.total:
                    return
                self.next += 1
            try:
                write(self.m / f"{self.folder}/f{i}", content(i))
            except OSError as e:
                self.failed[i] = e
            else:
                self.acknowledged.add(i)

    def reach(self, n, seconds=120):
        silt.wait_until(lambda: len(self.acknowledged) >= n, f"{n} acknowledged files", seconds)

    def stop(self, seconds=120):
        self.stopping = True
        self.join(seconds)

    def join(self, seconds=300):
        end = time.monotonic() + seconds
        for x in self.threads:
            x.join(max(0.0, end - time.monotonic()))
            check(not x.is_alive(), "a writer hangs")

    def verify(self, m):
        for i in sorted(self.acknowledged):
            got = read(m / f"{self.folder}/f{i}")
            check(got == content(i), f"f{i}: close() was acknowledged, {len(got)} bytes are there,"
                  f" {len(content(i))} were written")


# --- the object store ----------------------------------------------------------------------------------


@suite.cases_for(fault=["503", "cut", "stall", "dead", "mixed"])
def store_faults_while_writing_and_reading(t, fault):
    """503s with an empty body, cut bodies, connections that stall: retried; no file is lost or
    wrong."""
    rgw = t.rgw()
    proxy = t.proxy(rgw.port, *FAULTS[fault])
    v = t.volume("s3", bucket=rgw.bucket(port=proxy.port))
    m = t.mount(v)
    w = Writers(m, "d", total=FILES)
    w.join()
    equal(w.failed, {}, "files whose close() failed")
    w.verify(m)
    m.umount()
    m = t.mount(v)
    w.verify(m)
    check(m.counters()["store.gets"] > 0, "the files came from the store")
    m.umount()


# Options of test/servers/faultproxy.py.
FAULTS = {
    "503": ["--p503", "0.15"],
    "cut": ["--pcut", "0.15"],
    "stall": ["--pstall", "0.03", "--stall-s", "3"],
    "dead": ["--pstall", "0.004", "--stall-s", "600"],  # ended by our own time limit
    "mixed": ["--p503", "0.05", "--pcut", "0.05", "--pstall", "0.01", "--stall-s", "2"],
}


class Ending(threading.Thread):
    """Writes a file and ends it by fsync() or close(); knows what that said, and when."""

    def __init__(self, path, end):
        super().__init__(daemon=True)
        self.path, self.end, self.error, self.took = path, end, None, None
        self.start()

    def run(self):
        fd = os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, payload(self.path, 300_000))
        start = time.monotonic()
        self.error = 0
        try:
            os.fsync(fd) if self.end == "fsync" else os.close(fd)
        except OSError as e:
            self.error = e.errno
        self.took = time.monotonic() - start
        print(f"{self.end}(): {os.strerror(self.error)} after {self.took:.1f} s")
        if self.end == "fsync":
            with contextlib.suppress(OSError):
                os.close(fd)

    def told(self, seconds):
        self.join(2 * seconds + 30)  # and close(), after fsync()
        check(not self.is_alive(), f"{self.end}() hangs though its limit is {seconds} s")
        check(self.error in (errno.EIO, errno.ETIMEDOUT),
              f"{self.end}() of bytes that no store has: {os.strerror(self.error)} after"
              f" {self.took:.1f} s")
        check(self.took < seconds, f"{self.end}() took {self.took:.1f} s, its limit is {seconds} s")


# Ten tries, which are soon over where connections are refused: 16 s of pauses at most.
TRIES_TAKE = 30


@suite.case
def store_gone_for_good(t):
    """The store is away: close() and fsync() return an error, within their limit; cached files are
    still read; who waits can be killed; and when it is back all goes on."""
    rgw = t.rgw()
    proxy = t.proxy(rgw.port)
    v = t.volume("s3", bucket=rgw.bucket(port=proxy.port))
    m = t.mount(v)
    m.expect(" error: ")
    write(m / "before", payload(1, 5000))
    t.siltfs("warmup", m.path)
    proxy.set(hold=1)
    equal(read(m / "before"), payload(1, 5000), "a cached file")
    victim = subprocess.Popen(["dd", "if=/dev/zero", f"of={m / 'victim'}", "bs=1M", "count=1"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    silt.wait_until(lambda: os.path.exists(m / "victim"), "the victim to write")
    victim.kill()
    # A process that waits in close() or read() of the mount can be killed.
    check(victim.wait(20) != 0, "the killed process ends")
    proxy.stop()
    Ending(m / "synced", "fsync").told(TRIES_TAKE)
    Ending(m / "closed", "close").told(2 * TRIES_TAKE)  # it tries once more before it gives up
    check(m.counters()["store.errors"] > 0, "store.errors counts them")
    equal(read(m / "before"), payload(1, 5000), "a cached file, after all that")
    t.proxy(rgw.port, at=proxy.port)
    write(m / "after", payload(2, 5000))
    m.umount()
    m = t.mount(v)
    equal(read(m / "after"), payload(2, 5000), "a file written after the outage")
    equal(read(m / "before"), payload(1, 5000), "a file written before it")


# --- Redis -----------------------------------------------------------------------------------------------


@suite.cases_for(shards=[1, 8])
def redis_restarted_in_the_middle_of_creates(t, shards):
    """Redis with its append-only file ends and comes back three times while files are created: every
    create ends well, none twice, none lost."""
    v = t.volume(shards=shards)
    m = t.mount(v)
    w = Writers(m, "d")
    for i in range(3):
        w.reach(FILES // 3 * (i + 1))
        v.redis.stop() if i % 2 else v.redis.kill()
        v.redis.start()
    w.reach(len(w.acknowledged) + 100)
    w.stop()
    equal(w.failed, {}, "operations that failed though Redis came back")
    w.verify(m)
    check(m.counters()["redis.reconnects"] >= 3, "redis.reconnects counts")
    equal(len(os.listdir(m / "d")), w.next, "names in the directory")
    m.umount()
    m = t.mount(v)
    w.verify(m)


@suite.case
def every_operation_over_a_restart(t):
    """Renames, links, unlinks and mkdirs in flight when the connection breaks are applied once."""
    v = t.volume(shards=4)
    m = t.mount(v)
    stop = threading.Event()
    wrong, rounds = [], [0] * 4

    def worker(k):
        d = m / f"w{k}"
        os.mkdir(d)
        i = 0
        while not stop.is_set():
            i += 1
            try:
                write(d + "/a", b"%d" % i)
                os.rename(d + "/a", d + "/b")
                os.link(d + "/b", d + "/c")
                os.mkdir(d + "/sub")
                os.rename(d + "/c", d + "/sub/c")
                if read(d + "/sub/c") != b"%d" % i:
                    raise silt.Failure("content")
                os.unlink(d + "/sub/c")
                os.rmdir(d + "/sub")
                if os.stat(d + "/b").st_nlink != 1:
                    raise silt.Failure(f"links {os.stat(d + '/b').st_nlink}")
                os.unlink(d + "/b")
                if os.listdir(d):
                    raise silt.Failure(f"left over: {os.listdir(d)}")
            except Exception as e:
                wrong.append(f"worker {k}, round {i}: {e!r}")
                return
            rounds[k] = i
    threads = [threading.Thread(target=worker, args=(k,), daemon=True) for k in range(4)]
    for x in threads:
        x.start()
    for n in range(4):
        target = sum(rounds) + 60
        silt.wait_until(lambda: sum(rounds) >= target or wrong, "rounds", 120)
        v.redis.kill()
        v.redis.start()
    target = sum(rounds) + 40
    silt.wait_until(lambda: sum(rounds) >= target or wrong, "rounds", 120)
    stop.set()
    for x in threads:
        x.join(90)
        check(not x.is_alive(), "a worker hangs")
    equal(wrong, [], "operations that went wrong over a restart")


@suite.case
def redis_paused(t):
    """Redis answers nothing for 5 s: operations wait and then succeed; what the kernel and the cache
    have is still served; a process that waits can be killed."""
    v = t.volume()
    m = t.mount(v)
    write(m / "cached", payload(1, 5000))
    held = os.open(m / "cached", os.O_RDONLY)
    equal(os.pread(held, 5000, 0), payload(1, 5000), "before")
    v.redis.pause()
    resumed = []

    def resume():
        v.redis.resume()
        resumed.append(time.monotonic())
    timer = threading.Timer(5, resume)
    timer.start()
    t.finally_do(lambda: (timer.cancel(), v.redis.resume()))
    equal(os.pread(held, 5000, 0), payload(1, 5000), "a read of an open cached file")
    os.close(held)
    waiting = subprocess.Popen(["touch", m / "killed"], stderr=subprocess.DEVNULL)
    # It is in the mount when it sleeps there; /proc says so.
    silt.wait_until(lambda: "fuse" in wchan(waiting.pid) or in_request(waiting.pid), "touch to wait")
    waiting.kill()
    equal(waiting.wait(3), -signal.SIGKILL, "SIGKILL ends a process that waits for Redis")
    check(not resumed, "it ended while Redis was still paused")
    write(m / "waits", b"for redis")
    check(resumed, "a create waits for Redis")
    equal(read(m / "waits"), b"for redis", "after the pause")


def wchan(pid):
    try:
        with open(f"/proc/{pid}/wchan") as f:
            return f.read()
    except OSError:
        return ""


def in_request(pid):
    try:
        with open(f"/proc/{pid}/stack") as f:
            return "fuse" in f.read()
    except OSError:
        return False


@suite.case
def redis_gone_for_good(t):
    """Redis does not come back: operations that need it end with an error after the limit, the mount
    can still be ended."""
    v = t.volume()
    m = t.mount(v, options=["redis-wait=3"])
    m.expect(" error: ", "damaged")
    write(m / "f", b"x")
    v.redis.kill()
    start = time.monotonic()
    with silt.raises((5, 110, 107), "a create without Redis"):
        write(m / "g", b"y")
    took = time.monotonic() - start
    check(1 < took < 40, f"it took {took:.1f} s to say so, the limit is 3 s")
    m.proc.terminate()
    m.proc.wait(60)
    check(not silt.mounted(m.path), "unmounted")


# --- the daemon ----------------------------------------------------------------------------------------------


@suite.cases_for(storage=["file", "s3"])
def kill_9_of_the_daemon(t, storage):
    """Everything that close() acknowledged is there after the daemon was killed at any point; the
    dead mount is replaced by a new one."""
    v = t.volume(storage, shards=4)
    seen = set()
    for i in range(3 if silt.QUICK else 6):
        m = t.mount(v, cache_dir=os.path.join(t.tmp, "kept-cache"))
        w = Writers(m, f"round{i}")
        w.reach(60 + 70 * i)
        m.kill()
        w.stop()
        seen.add((i, w))
        m = t.mount(v, cache_dir=m.cache_dir)
        for k, old in sorted(seen, key=lambda x: x[0]):
            if k >= i - 1:
                old.verify(m)
        # What was not acknowledged is there whole, or empty, or not at all; never wrong bytes.
        for name in os.listdir(m / f"round{i}"):
            n = int(name[1:])
            got = read(m / f"round{i}/{name}")
            check(content(n).startswith(got), f"{name}: bytes nobody wrote")
        write(m / f"round{i}/new", b"x")
        m.umount()
    m = t.mount(v)
    for _, w in seen:
        w.verify(m)


@suite.case
def kill_9_keeps_fsynced_bytes(t):
    """fsync() is a promise too: the bytes before it survive kill -9 of the daemon."""
    v = t.volume()
    m = t.mount(v)
    fd = os.open(m / "f", os.O_CREAT | os.O_RDWR)
    data = payload("fsync", 1_500_000)
    os.write(fd, data)
    os.fsync(fd)
    os.write(fd, b"not fsynced" * 1000)
    m.kill()
    m = t.mount(v)
    equal(read(m / "f")[:len(data)] == data, True, "the fsynced bytes are there")


@suite.case
def a_killed_mounts_deleted_open_files_go_away(t):
    """A file deleted while open belongs to the session; when the session is gone, so is the file."""
    v = t.volume()
    a, b = (t.mount(v, options=["heartbeat=1"]) for _ in range(2))
    fd = os.open(a / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 1000)
    os.fsync(fd)
    os.unlink(a / "f")
    a.kill()
    try:
        os.close(fd)
    except OSError:
        pass
    c = v.redis.connect()
    silt.wait_until(lambda: not c.cmd("HLEN", "{0}o"), "the dead session's files to go", 90, 0.5)
    equal(os.listdir(b.path), [], "names left")


suite.main()

#!/usr/bin/env python3
"""Locks (fcntl, of processes and of open files, and flock) hold between processes of all mounts, as they
do on one machine: ranges, upgrades and downgrades, order, deadlocks, signals, closes, deaths; and what a
former holder wrote is seen by who gets the lock next."""
# timeout: 900
# asan: yes

import json
import os
import select
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import Failure, check, equal, wait_until  # noqa: E402

suite = silt.Suite()
SHORT = silt.QUICK or silt.SANITIZED
WORKER = os.path.join(os.path.dirname(os.path.abspath(silt.__file__)), "lockproc.py")
TTL = 25  # seconds without heartbeat after which a session has expired


class Process:
    """A process with files and locks; see test/lib/lockproc.py."""

    def __init__(self, t):
        self.proc = subprocess.Popen([sys.executable, WORKER], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, bufsize=0)
        self.pid = self.proc.pid
        t.finally_do(self.end)

    def begin(self, *what):
        self.proc.stdin.write(json.dumps(what).encode() + b"\n")
        return self

    def ready(self, seconds=0.0):
        return bool(select.select([self.proc.stdout], [], [], seconds)[0])

    def result(self, seconds=30):
        """What the last begin() came to: a value, or the name of the error."""
        if not self.ready(seconds):
            raise Failure(f"process {self.pid} has no answer after {seconds} s")
        line = self.proc.stdout.readline()
        if not line:
            raise Failure(f"process {self.pid} ended")
        answer = json.loads(line)
        return answer.get("errno") or answer["ok"]

    def __getattr__(self, name):
        """p.lock("f", "w"): does it and waits for the result."""
        return lambda *args: self.begin(name, *args).result()

    def waits(self, seconds=0.4):
        check(not self.ready(seconds), "it did not wait")

    def signal(self, sig=signal.SIGUSR1):
        os.kill(self.pid, sig)

    def kill(self):
        self.proc.kill()
        self.proc.wait()

    def end(self):
        if self.proc.poll() is None:
            self.proc.kill()
        self.proc.wait()
        self.proc.stdin.close()
        self.proc.stdout.close()


def pair(t, shards=1, **kwargs):
    v = t.volume(shards=shards)
    return v, t.mount(v, **kwargs), t.mount(v, **kwargs)


def opened(t, mount, name="f", flags=os.O_RDWR, n=1):
    out = []
    for _ in range(n):
        p = Process(t)
        equal(p.open("f", mount / name, flags), None, "open")
        out.append(p)
    return out if n > 1 else out[0]


def make(mount, name="f", data=b"0" * 100):
    with open(mount / name, "wb") as f:
        f.write(data)


# --- exclusion --------------------------------------------------------------------------------------

@suite.cases_for(how=["all", "range", "ofd", "flock"])
def counters_of_8_processes(t, how):
    """8 processes on 2 mounts add to a number in a file under a lock: no addition is lost. So who gets
    the lock sees what the one before wrote, whether that unlocked or closed."""
    v, a, b = pair(t)
    make(a, data=b"00000000")
    rounds = 10 if SHORT else 50
    ps = [Process(t) for _ in range(8)]
    for i, p in enumerate(ps):
        p.begin("add", (a if i % 2 else b) / "f", rounds, how)
    for p in ps:
        equal(p.result(300), None, "add")
    with open(a / "f") as f:
        equal(int(f.read()), 8 * rounds, "sum")
    equal(lock_keys(v), [], "what is left of locks in Redis")


def lock_keys(v):
    def left():
        return sorted(k.decode() for k in v.redis.cmd("KEYS", "*}[kw]*"))
    try:
        wait_until(lambda: not left(), "no locks", 5)
    except Exception:
        pass
    return left()


@suite.cases_for(shards=[1, 8])
def ranges(t, shards):
    """Ranges conflict where they overlap, split and merge; F_GETLK names the one in the way, with the
    process if it is of this node, else 0."""
    v, a, b = pair(t, shards)
    make(a)
    p, q = opened(t, a), opened(t, b)
    far = 2 ** 62
    equal(p.lock("f", "w", 10, 10), None, "lock")
    equal(q.lock("f", "r", 0, 10), None, "before it")
    equal(q.lock("f", "w", 20, 10), None, "behind it")
    equal(q.lock("f", "r", 19, 1), "EAGAIN", "its last byte")
    equal(q.lock("f", "w", 0, 0), "EAGAIN", "all")
    equal(p.lock("f", "w", 9, 1), "EAGAIN", "the other's")
    equal(p.lock("f", "r", 9, 1), None, "read beside read")
    equal(q.getlk("f", "w", 12, 1), ["w", 10, 10, 0], "getlk of another node")
    same = opened(t, a)
    equal(same.getlk("f", "w", 12, 1), ["w", 10, 10, p.pid], "getlk on this node")
    equal(same.getlk("f", "r", 0, 8), None, "getlk of a free range")
    equal(p.getlk("f", "w", 10, 10), None, "one's own")
    equal(p.lock("f", "u", 14, 2), None, "unlock the middle")
    equal(q.lock("f", "w", 14, 2), None, "lock the middle")
    equal(same.getlk("f", "w", 10, 5), ["w", 10, 4, p.pid], "the part before")
    equal(q.lock("f", "u", 14, 2), None, "unlock")
    equal(p.lock("f", "w", 14, 2), None, "lock again")
    equal(same.getlk("f", "w", 13, 1), ["w", 10, 10, p.pid], "merged")
    equal(p.lock("f", "w", far, 0), None, "to the end")
    equal(q.lock("f", "r", 2 ** 63 - 1, 1), "EAGAIN", "the last byte there is")
    equal(q.lock("f", "r", far - 1, 1), None, "just before")
    equal(same.getlk("f", "w", far + 5, 1), ["w", far, 0, p.pid], "to the end, told as 0")


@suite.case
def upgrade_and_downgrade(t):
    """A read lock becomes a write lock when no other reader is left; a write lock that becomes a read
    lock lets readers in."""
    v, a, b = pair(t)
    make(a)
    p, q, r = opened(t, a), opened(t, b), opened(t, b)
    equal(p.lock("f", "r"), None, "read")
    equal(q.lock("f", "r"), None, "read")
    equal(p.lock("f", "w"), "EAGAIN", "upgrade beside a reader")
    equal(r.lock("f", "w"), "EAGAIN", "p still reads")
    p.begin("lock", "f", "w", 0, 0, True).waits()
    equal(q.lock("f", "u"), None, "unlock")
    equal(p.result(), None, "upgraded")
    q.begin("lock", "f", "r", 0, 0, True)
    r.begin("lock", "f", "r", 5, 5, True).waits()
    equal(p.lock("f", "r"), None, "downgrade")
    equal(q.result(), None, "read")
    equal(r.result(), None, "read")
    equal(p.lock("f", "w"), "EAGAIN", "upgrade")


@suite.cases_for(how=["fcntl", "ofd", "flock"])
def order(t, how):
    """Waiters get the lock in the order in which they came, whichever mount they are on."""
    v, a, b = pair(t)
    make(a)
    ps = [opened(t, a if i % 2 else b) for i in range(7)]

    def take(p):
        return p.begin("flock", "f", "w", True) if how == "flock" else \
            p.begin("lock", "f", "w", 0, 0, True, how == "ofd")

    def give(p):
        return p.flock("f", "u") if how == "flock" else p.lock("f", "u", 0, 0, False, how == "ofd")
    equal(take(ps[0]).result(), None, "free")
    for i, p in enumerate(ps[1:]):
        take(p).waits(0.1)
    for i, p in enumerate(ps):
        if i:
            equal(p.result(), None, f"turn of {i}")
        for later in ps[i + 1:]:
            check(not later.ready(), "out of turn")
        equal(give(p), None, "unlock")


# --- no traffic while waiting -----------------------------------------------------------------------

def calls(v):
    """Commands by name, less what keeps sessions and connections alive."""
    out = {}
    for key, value in v.redis.info("commandstats").items():
        name = key.removeprefix("cmdstat_")
        if name not in ("ping", "info"):
            out[name] = int(value.split("calls=")[1].split(",")[0])
    return out


@suite.case
def silent_waiting(t):
    """Who waits asks nothing: while 6 processes wait there is no call to Redis but heartbeats; the
    unlock and the grant are one call, and the new holder looks at the file once."""
    v, a, b = pair(t)
    make(a)
    p = opened(t, a)
    equal(p.lock("f", "w"), None, "lock")
    qs = [opened(t, m) for m in (a, b, b, a, b, b)]
    for q in qs:
        q.begin("lock", "f", "w", 0, 0, True).waits(0.2)
    start = calls(v)
    time.sleep(4)
    now = calls(v)
    extra = {k: now[k] - start.get(k, 0) for k in now if now[k] != start.get(k, 0)}
    # Of each mount: a heartbeat, its looks at garbage and logs, who is the worker; and what that looks at.
    check(extra.get("fcall", 0) <= 4 and extra.get("fcall_ro", 0) <= 6 and "publish" not in extra and
          extra.get("zadd", 0) <= 2, f"calls while waiting: {extra}")
    equal(p.lock("f", "u"), None, "unlock")
    equal(qs[0].result(), None, "granted")
    for q in qs[1:]:
        q.kill()


# --- closing, dying ---------------------------------------------------------------------------------

@suite.case
def closing(t):
    """fcntl locks of a process go with its first close of the file, those of an open file and flock with
    the last close of that; forked processes count as such."""
    v, a, b = pair(t)
    make(a)
    p, q = Process(t), opened(t, b)
    for flags in (os.O_RDWR, os.O_RDONLY):
        kind = "w" if flags == os.O_RDWR else "r"
        p.open("x", a / "f", flags)
        p.open("y", a / "f", flags)
        equal(p.lock("x", kind), None, "lock")
        equal(q.lock("f", "w"), "EAGAIN", "locked")
        if flags == os.O_RDWR:
            p.close("y")
            equal(q.lock("f", "w"), None, "any close of the process's")
            equal(q.lock("f", "u"), None, "unlock")
            p.close("x")
        else:
            p.close("y")
            p.close("x")
            wait_until(lambda: q.lock("f", "w") is None, "the close is heard of", 5)
            equal(q.lock("f", "u"), None, "unlock")
    # From the first lock through a read-only descriptor on, those send FLUSH too.
    p.open("x", a / "f", os.O_RDONLY)
    p.open("y", a / "f", os.O_RDONLY)
    equal(p.lock("x", "r"), None, "lock")
    p.close("y")
    equal(q.lock("f", "w"), None, "any close of the process's, read-only")
    equal(q.lock("f", "u"), None, "unlock")
    p.close("x")
    for ofd in (True, False):
        p.open("x", a / "f")
        p.open("y", a / "f")
        p.dup("x", "z")
        equal(p.lock("x", "w", 0, 10, False, True) if ofd else p.flock("x", "w"), None, "lock")

        def taken():
            return (q.lock("f", "w", 0, 10, False, True) if ofd else q.flock("f", "w")) == "EAGAIN"
        p.close("y")
        p.close("x")
        check(taken(), "held while a duplicate is open")
        p.close("z")
        wait_until(lambda: not taken(), "released", 5)
        equal(q.lock("f", "u", 0, 10, False, True) if ofd else q.flock("f", "u"), None, "unlock")
    # A child shares descriptors, not fcntl locks.
    p.open("x", a / "f")
    equal(p.lock("x", "w"), None, "lock")
    equal(p.flock("x", "w"), None, "flock")
    child = p.fork()
    p.kill()
    wait_until(lambda: q.lock("f", "w") is None, "fcntl locks go with the process", 5)
    equal(q.flock("f", "w"), "EAGAIN", "flock stays with the child")
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: q.flock("f", "w") is None, "and goes with it", 5)


@suite.case
def late_release(t):
    """What a process locks through one descriptor is not touched when another one's end comes late."""
    v, a, b = pair(t)
    make(a)
    p, q = Process(t), opened(t, b)
    for i in range(60 if SHORT else 300):
        p.open("x", a / "f")
        p.open("y", a / "f")
        equal(p.lock("x", "w", 0, 5), None, "lock")
        p.close("x")
        equal(p.lock("y", "w", 0, 5), None, "lock again")
        equal(q.lock("f", "w", 0, 5), "EAGAIN", f"held, round {i}")
        p.close("y")


@suite.case
def killed_process(t):
    """The locks of a process that is killed go at once, also when it was waiting itself."""
    v, a, b = pair(t)
    make(a)
    p, w, q = opened(t, a), opened(t, a), opened(t, b)
    equal(p.lock("f", "w", 0, 10), None, "lock")
    equal(p.flock("f", "w"), None, "flock")
    equal(w.lock("f", "w", 50, 10), None, "lock")
    w.begin("lock", "f", "w", 0, 10, True).waits()
    q.begin("lock", "f", "w", 0, 60, True).waits()
    w.kill()
    q.waits(0.3)
    p.kill()
    equal(q.result(10), None, "granted after the kill")
    wait_until(lambda: q.flock("f", "w") is None, "flock", 5)


@suite.case
def killed_daemon(t):
    """The locks of a node that died go when its session has expired, and not before; its waiters too."""
    v, a, b = pair(t)
    make(a)
    p, q = opened(t, a), opened(t, b)
    w = opened(t, a)
    equal(p.lock("f", "w", 0, 10), None, "lock")
    equal(q.lock("f", "w", 20, 10), None, "lock")
    w.begin("lock", "f", "w", 20, 10, True).waits()
    q.begin("lock", "f", "w", 0, 10, True).waits()
    score = float(v.redis.cmd("ZSCORE", "{0}H", min(v.redis.cmd("HKEYS", "{0}S"))))
    a.kill()
    killed = time.time()
    q.waits(TTL - 7)
    equal(q.result(30), None, "granted after the session's end")
    check(time.time() * 1000 >= score, "the lock was given away before the session had expired")
    check(time.time() - killed < TTL + 10, "it took too long")
    equal(q.lock("f", "u", 20, 10), None, "unlock")
    equal(q.lock("f", "w"), None, "the dead waiter is gone")


@suite.case
def taken_for_dead(t):
    """A mount that was taken for dead and is not: every descriptor that locks were taken through answers
    EIO, what was written under them and not stored is dropped, others go on, and after a close
    everything works again. Its log says so."""
    v, a, b = pair(t)
    a.expect("taken for dead", "are lost")
    make(a)
    make(a, "g")
    p, r, q = opened(t, a), opened(t, a), opened(t, b)
    p.open("g", a / "g")
    equal(p.lock("f", "w", 0, 10), None, "lock")
    equal(p.write("f", "from a"), 6, "write")
    sessions = sorted(v.redis.cmd("HKEYS", "{0}S"), key=int)
    q.begin("lock", "f", "w", 0, 10, True).waits()
    # As if a's heartbeats had not come through for long: b's next one finds it expired.
    os.kill(a.proc.pid, signal.SIGSTOP)
    v.redis.cmd("ZADD", "{0}H", 1, sessions[0])
    equal(q.result(30), None, "granted")
    equal(q.write("f", "from b"), 6, "write")
    equal(q.fsync("f"), None, "fsync")
    os.kill(a.proc.pid, signal.SIGCONT)
    wait_until(lambda: p.read("f", 6) == "EIO", "read after the loss", 30)
    equal(p.write("f", "x"), "EIO", "write after the loss")
    equal(p.lock("f", "w", 50, 1), "EIO", "lock after the loss")
    equal(p.write("g", "x"), 1, "another file")
    equal(r.read("f", 6), "from b", "a descriptor without locks")
    equal(p.close("f"), "EIO", "close says that bytes were dropped")
    wait_until(lambda: p.open("f", a / "f") is None and p.lock("f", "r", 50, 1) is None, "a new open", 10)
    equal(p.read("f", 6), "from b", "nothing of what was dropped")
    equal(p.lock("f", "w", 0, 10), "EAGAIN", "b's lock")
    check("taken for dead" in a.log_text(), "the log says nothing")


# --- deadlocks --------------------------------------------------------------------------------------

@suite.cases_for(shards=[1, 8])
def deadlock(t, shards):
    """fcntl locks that would wait for each other, over files, mounts and shards: EDEADLK for the last."""
    v, a, b = pair(t, shards)
    for d in ("d1", "d2", "d3"):
        os.mkdir(a / d)
        make(a, d + "/f")
    p, q, r = Process(t), Process(t), Process(t)
    for x, m in ((p, a), (q, b), (r, a)):
        for d in ("d1", "d2", "d3"):
            x.open(d, m / d + "/f")
    equal(p.lock("d1", "w"), None, "lock")
    equal(q.lock("d2", "w"), None, "lock")
    equal(r.lock("d3", "w"), None, "lock")
    p.begin("lock", "d2", "w", 0, 0, True)
    p.waits()
    q.begin("lock", "d3", "r", 5, 1, True)
    q.waits()
    equal(r.begin("lock", "d1", "r", 0, 0, True).result(), "EDEADLK", "the third")
    equal(r.lock("d1", "r"), "EAGAIN", "without waiting")
    equal(r.lock("d3", "u"), None, "unlock")
    equal(q.result(), None, "granted")
    equal(q.lock("d2", "u"), None, "unlock")
    equal(p.result(), None, "granted")


@suite.case
def no_deadlock_of_others(t):
    """flock and locks of open files wait for each other for ever, as flock(2) and fcntl(2) say; a signal
    ends it."""
    v, a, b = pair(t)
    make(a)
    make(a, "g")
    p, q = Process(t), Process(t)
    for x, m in ((p, a), (q, b)):
        x.open("f", m / "f")
        x.open("g", m / "g")
        x.catch()
    for ofd in (True, False):
        def take(x, name, wait):
            return x.begin("lock", name, "w", 0, 0, wait, True) if ofd else \
                x.begin("flock", name, "w", wait)
        equal(take(p, "f", False).result(), None, "lock")
        equal(take(q, "g", False).result(), None, "lock")
        take(p, "g", True).waits()
        take(q, "f", True).waits(1)
        check(not p.ready(), "it did not wait")
        q.signal()
        equal(q.result(5), "EINTR", "interrupted")
        for name in ("f", "g"):
            equal(q.lock(name, "u", 0, 0, False, True) if ofd else q.flock(name, "u"), None, "unlock")
        equal(p.result(), None, "granted")
        for name in ("f", "g"):
            equal(p.lock(name, "u", 0, 0, False, True) if ofd else p.flock(name, "u"), None, "unlock")


# --- signals ----------------------------------------------------------------------------------------

@suite.case
def interrupted_waiters(t):
    """A signal ends a wait at once; whoever was granted in that moment has the lock or has not, but says
    which. The next one in the queue is not held up."""
    v, a, b = pair(t)
    make(a)
    p, q, r = opened(t, a), opened(t, b), opened(t, b)
    q.catch()
    equal(p.lock("f", "w"), None, "lock")
    q.begin("lock", "f", "w", 0, 0, True).waits()
    r.begin("lock", "f", "w", 0, 0, True).waits()
    start = time.monotonic()
    q.signal()
    equal(q.result(5), "EINTR", "interrupted")
    check(time.monotonic() - start < 1.5, "the wait ended late")
    equal(p.lock("f", "u"), None, "unlock")
    equal(r.result(), None, "granted")
    equal(r.lock("f", "u"), None, "unlock")
    outcomes = set()
    for i in range(40 if SHORT else 150):
        equal(p.lock("f", "w"), None, f"lock, round {i}")
        q.begin("lock", "f", "w", 0, 0, True).waits(0.02)
        p.begin("lock", "f", "u")
        time.sleep(i % 10 * 0.0003)
        try:
            q.signal()
        except ProcessLookupError:
            raise Failure("the process died")
        equal(p.result(), None, "unlock")
        got = q.result()
        outcomes.add(got)
        check(got in (None, "EINTR"), f"{got}")
        if got == "EINTR":  # or the signal came behind the lock: then it has it
            equal(q.lock("f", "u"), None, "unlock")
        equal(p.lock("f", "w"), "EAGAIN" if got is None else None, f"after {got}, round {i}")
        equal(q.lock("f", "u"), None, "unlock")
        equal(p.lock("f", "u"), None, "unlock")


@suite.case
def killed_waiter_without_redis(t):
    """SIGKILL ends who waits for a lock also when Redis does not answer; nothing of it is left."""
    v, a, b = pair(t)
    make(a)
    p, q = opened(t, a), opened(t, b)
    equal(p.lock("f", "w"), None, "lock")
    q.begin("lock", "f", "w", 0, 0, True).waits()
    os.kill(v.redis.proc.pid, signal.SIGSTOP)
    start = time.monotonic()
    q.proc.kill()
    time.sleep(1.5)
    os.kill(v.redis.proc.pid, signal.SIGCONT)
    q.proc.wait(20)
    check(time.monotonic() - start < 15, "the kill took long")
    equal(p.lock("f", "u"), None, "unlock")
    p.close("f")
    equal(lock_keys(v), [], "what is left of locks in Redis")


# --- Redis goes and comes ---------------------------------------------------------------------------

@suite.case
def redis_restarted_while_waiting(t):
    """Who waits while Redis restarts goes on waiting and gets the lock; what is held stays held."""
    v, a, b = pair(t)
    make(a)
    p, q = opened(t, a), opened(t, b)
    r = opened(t, b)
    equal(p.lock("f", "w", 0, 10), None, "lock")
    q.begin("lock", "f", "w", 0, 10, True).waits()
    time.sleep(1.2)  # appendfsync everysec
    v.redis.stop()
    v.redis.start()
    q.waits(2)
    equal(r.lock("f", "w", 5, 1), "EAGAIN", "still held")
    equal(p.lock("f", "u"), None, "unlock")
    equal(q.result(), None, "granted")
    # Unlocked while nobody hears of it: who waits asks when the connection is there again.
    for _ in range(3):
        p.begin("lock", "f", "w", 0, 10, True).waits(0.2)
        v.redis.cmd("CLIENT", "KILL", "TYPE", "pubsub")
        equal(q.lock("f", "u"), None, "unlock")
        equal(p.result(15), None, "granted")
        q.begin("lock", "f", "w", 0, 10, True).waits(0.2)
        v.redis.cmd("CLIENT", "KILL", "TYPE", "normal")
        v.redis.cmd("CLIENT", "KILL", "TYPE", "pubsub")
        equal(p.lock("f", "u"), None, "unlock")
        equal(q.result(15), None, "granted")


# --- bytes ------------------------------------------------------------------------------------------

@suite.case
def bytes_follow_the_lock(t):
    """Who gets a lock sees what was written under it before, in a file that both keep open, through
    reads and through a mapping's pages, grown files included."""
    v, a, b = pair(t)
    make(a)
    for p, q, how, base in ((opened(t, a), opened(t, b), "fcntl", 200),
                            (opened(t, b), opened(t, a), "flock", 3000)):
        def take(x, kind):
            return x.flock("f", kind, True) if how == "flock" else x.lock("f", kind, 0, 0, True)
        last = int(p.read("f", 10))
        for i in range(20 if SHORT else 100):
            for x in (p, q):
                equal(take(x, "w"), None, "lock")
                n = int(x.read("f", 10) or 0)
                equal(n, last, f"round {i}")
                last = n + 1
                x.write("f", f"{last:010d}")
                size = base + i * 10 + (x is q)
                x.write("f", "e", size - 1)
                equal(take(x, "u"), None, "unlock")
            equal(take(p, "r"), None, "lock")
            equal(len(p.read("f", 1 << 16)), size, "size")
            equal(take(p, "u"), None, "unlock")


SQLITE = """
import sqlite3, sys, time
path, who, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for i in range(rounds):
    db = sqlite3.connect(path, timeout=120)
    db.execute("PRAGMA journal_mode=DELETE")
    with db:
        db.execute("BEGIN IMMEDIATE")
        n, = db.execute("SELECT n FROM counter").fetchone()
        db.execute("UPDATE counter SET n=?", (n + 1,))
        db.execute("INSERT INTO log VALUES (?, ?)", (who, n))
    if i % 5 == 0:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
"""


@suite.case
def sqlite_from_two_mounts(t):
    """A database in rollback mode, written by 4 processes on 2 mounts: every transaction is there once."""
    import sqlite3
    v, a, b = pair(t)
    db = sqlite3.connect(a / "db")
    db.executescript("CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0);"
                     "CREATE TABLE log (who INTEGER, n INTEGER);")
    db.close()
    rounds = 6 if SHORT else 25
    ps = [subprocess.Popen([sys.executable, "-c", SQLITE, (a if i % 2 else b) / "db", str(i), str(rounds)])
          for i in range(4)]
    for p in ps:
        equal(p.wait(300), 0, "sqlite")
    db = sqlite3.connect(b / "db")
    equal(db.execute("SELECT n FROM counter").fetchone()[0], 4 * rounds, "counter")
    equal([n for n, in db.execute("SELECT n FROM log ORDER BY n")], list(range(4 * rounds)), "log")
    equal(db.execute("PRAGMA integrity_check").fetchone()[0], "ok", "integrity")
    db.close()


# --- what is not there costs nothing ----------------------------------------------------------------

@suite.case
def closes_without_locks(t):
    """A close of a file without locks asks Redis for nothing, nor does an unlock of what is not held."""
    v, a, b = pair(t)
    make(a)
    p = opened(t, a, n=1)
    p.open("r", a / "f", os.O_RDONLY)
    before = a.counters()
    equal(p.lock("f", "u"), None, "unlock")
    equal(p.flock("f", "u"), None, "unlock")
    p.close("f")
    p.close("r")
    after = a.counters()
    for name in ("lock_set", "lock_cancel", "lock_get"):
        equal(after.get(f"redis.{name}", 0), before.get(f"redis.{name}", 0), name)
    check(any(k.endswith("heartbeat") for k in after), "counters by function")


suite.main()

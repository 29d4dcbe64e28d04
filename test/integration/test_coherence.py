#!/usr/bin/env python3
"""What a mount's kernel and memory hold of the metadata is true: changes that another mount makes are
pushed, within 100 ms on a machine that is not busy; nothing old stays when a connection is lost, the
server forgets what it watched, or memory runs out. consistency=relaxed asks nothing twice."""
# timeout: 1500
# asan: yes

import contextlib
import mmap
import os
import random
import select
import shutil
import socket
import statistics
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, wait_until  # noqa: E402

suite = silt.Suite()
SHORT = silt.QUICK or silt.SANITIZED
SHARDS = {"shards": [1, 8]}
RELAXED = ["consistency=relaxed"]
PATIENCE = 2.0  # asserted; 0.1 is what is meant, and printed


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def calls(m):
    return m.counters()["redis.calls"]


def pushing(m):
    """Waits until Redis watches for the mount: only then is anything kept for long."""
    os.mkdir(m / "probe")

    def remembered():
        os.stat(m / "probe")
        return m.counters()["meta.cache_buckets"] > 0
    wait_until(remembered, "Redis to push to the mount", 20)
    os.rmdir(m / "probe")


def calls_that_count(m):
    """Redis calls but for the heartbeat's and what keeps the memory true."""
    c = m.counters()
    background = sum(c.get(f"redis.{k}", 0) for k in
                     ("heartbeat", "session_list", "session_claim", "garbage_peek", "garbage_done", "cover",
                      "take"))
    return c["redis.calls"] - background


def settled(m):
    """What is remembered has been checked: no cover call is due any more."""
    last = [None, time.monotonic()]

    def quiet():
        now = m.counters().get("redis.cover", 0)
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 0.5
    wait_until(quiet, "cover calls to end", 30)


def seen_after(condition, what):
    """How long until the condition is true."""
    start = time.monotonic()
    while not condition():
        took = time.monotonic() - start
        check(took < PATIENCE, f"{what}: not seen after {took:.2f} s")
        time.sleep(0.0005)
    return time.monotonic() - start


def exists(path):
    return os.path.lexists(path)


def told_nothing_new(m, f, what):
    """f() again is answered by the kernel or the mount's memory."""
    before = calls_that_count(m)
    f()
    after = calls_that_count(m)
    equal(after - before, 0, f"{what}: Redis calls when it is looked at again")


def print_median(what, times):
    print(f"    {what}: median {statistics.median(times) * 1e3:.1f} ms, most {max(times) * 1e3:.1f} ms")


def kept(m, look):
    """The kernel of `m` (or its memory) keeps what look() looks at."""
    def again():
        look()
        before = calls_that_count(m)
        time.sleep(0.15)  # longer than what is kept without a push
        look()
        return calls_that_count(m) == before
    wait_until(again, "it to be kept by the kernel", 20)


@suite.cases_for(**SHARDS)
def attributes_and_directories_are_pushed(t, shards):
    """What the kernel keeps (attributes of open files and directories, names of directories, names from
    listings) goes when another mount changes it."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    pushing(b)
    times = {}

    def timed(what, condition):
        times.setdefault(what, []).append(seen_after(condition, what))
    for i in range(4 if SHORT else 8):
        d = f"d{i}"
        os.mkdir(a / d)
        os.mkdir(a / f"{d}/sub")
        write(a / f"{d}/f", b"0123456789")
        fd = os.open(b / f"{d}/f", os.O_RDONLY)
        kept(b, lambda: (os.stat(b / d), os.stat(b / f"{d}/sub"), os.fstat(fd)))
        os.chmod(a / f"{d}/sub", 0o701)
        timed("chmod of a directory", lambda: os.stat(b / f"{d}/sub").st_mode & 0o777 == 0o701)
        kept(b, lambda: os.fstat(fd))
        os.truncate(a / f"{d}/f", 3)
        timed("truncation of an open file", lambda: os.fstat(fd).st_size == 3)
        kept(b, lambda: os.fstat(fd))
        with open(a / f"{d}/f", "ab") as f:
            f.write(b"x" * 100)
        timed("write to an open file", lambda: os.fstat(fd).st_size == 103)
        kept(b, lambda: os.stat(b / f"{d}/sub"))
        os.rename(a / f"{d}/sub", a / f"{d}/moved")
        timed("rename of a directory", lambda: not exists(b / f"{d}/sub") and exists(b / f"{d}/moved"))
        kept(b, lambda: os.stat(b / f"{d}/moved"))
        os.rmdir(a / f"{d}/moved")
        timed("removal of a directory", lambda: not exists(b / f"{d}/moved"))
        for e in os.scandir(b / d):
            e.stat()
        os.unlink(a / f"{d}/f")
        timed("unlink of a listed file", lambda: not exists(b / f"{d}/f"))
        wait_until(lambda: os.fstat(fd).st_nlink == 0, "the open file to have no links", 5)
        os.close(fd)
    for what in times:
        print_median(what, times[what])


@suite.cases_for(**SHARDS)
def what_a_mount_moved_itself(t, shards):
    """A name that a mount has renamed, and whose old name its kernel was told for long, still goes when
    another mount removes or replaces it; so do both names of an exchange."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    r = t.mount(v, options=RELAXED)
    for m in (a, b, r):
        pushing(m)
    for i in range(3):
        for m in (a, r):
            os.mkdir(b / f"x{i}")
            write(b / f"f{i}", b"1")
            seen_after(lambda: exists(m / f"x{i}") and exists(m / f"f{i}"), "what the other made")
            kept(m, lambda: os.stat(m / f"x{i}"))
            os.rename(m / f"x{i}", m / f"y{i}")
            os.rename(m / f"f{i}", m / f"g{i}")
            os.rmdir(b / f"y{i}")
            os.unlink(b / f"g{i}")
            write(b / f"y{i}", b"now a file")
            os.mkdir(b / f"g{i}")
            seen_after(lambda: exists(m / f"y{i}") and os.path.isfile(m / f"y{i}"), "the file")
            seen_after(lambda: exists(m / f"g{i}") and os.path.isdir(m / f"g{i}"), "the directory")
            os.unlink(b / f"y{i}")
            os.rmdir(b / f"g{i}")
            os.makedirs(b / f"p{i}/in-p")
            os.makedirs(b / f"q{i}/in-q")
            seen_after(lambda: exists(m / f"p{i}") and exists(m / f"q{i}"), "two directories")
            kept(m, lambda: (os.stat(m / f"p{i}"), os.stat(m / f"q{i}")))
            silt.renameat2(m / f"p{i}", m / f"q{i}", silt.EXCHANGE)
            silt.renameat2(b / f"q{i}", b / f"p{i}", silt.EXCHANGE)
            seen_after(lambda: exists(m / f"p{i}/in-p") and exists(m / f"q{i}/in-q"), "the exchange back")
            shutil.rmtree(b / f"p{i}")
            shutil.rmtree(b / f"q{i}")


@suite.cases_for(**SHARDS)
def maps_and_long_readers(t, shards):
    """A file that stays open, and one that is mapped, show what another mount wrote and closed."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    pushing(b)
    write(a / "f", b"a" * 20000)
    fd = os.open(b / "f", os.O_RDONLY)
    m = mmap.mmap(fd, 20000, prot=mmap.PROT_READ)
    equal(m[0:3], b"aaa", "at first")
    times = []
    for i in range(5 if SHORT else 12):
        settled(b)
        letter = b"%c" % (98 + i % 20)
        with open(a / "f", "r+b") as f:
            f.write(letter * 20000)
        times.append(seen_after(lambda: m[0:1] == letter and m[19999:20000] == letter, f"the map, round {i}"))
        equal(os.pread(fd, 2, 5000), letter * 2, "a read through the open descriptor")
    m.close()
    os.close(fd)
    print_median("a mapped file's bytes", times)


@suite.cases_for(**SHARDS)
def relaxed_looks_into_a_listed_empty_directory(t, shards):
    """The first name that another mount makes in a directory that was listed empty is looked up at once,
    before the push has come, and is there when it has."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v, options=RELAXED)
    pushing(b)
    for i in range(6):
        os.mkdir(b / f"d{i}")
        equal(os.listdir(b / f"d{i}"), [], "the listing")
        settled(b)
        write(a / f"d{i}/x", b"x")
        silt.wait_until(lambda: exists(b / f"d{i}/x"), f"d{i}/x to be seen", 10, 0.002)


@suite.cases_for(**SHARDS)
def relaxed_sees_changes_by_push(t, shards):
    """A relaxed mount asks nothing that it knows, also of names that are not there, and yet sees every
    change of the other mounts."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v, options=RELAXED)
    c = t.mount(v, options=RELAXED)
    pushing(b)
    pushing(c)
    os.mkdir(a / "d")
    for i in range(100):
        write(a / f"d/f{i}", b"%d" % i)
    times = {}

    def look():
        for i in (0, 1, 2, 50, 99):
            for m in (b, c):
                exists(m / f"d/f{i}"), exists(m / f"d/absent{i}"), exists(m / f"d/f{i}") and read(m / f"d/f{i}")
        os.listdir(b / "d")

    def timed(what, condition):
        for _ in range(2):
            look()
        settled(b)
        settled(c)
        change = pending.pop()
        change()
        for m in (b, c):
            times.setdefault(what, []).append(seen_after(lambda: condition(m), what))
    pending = []
    look()
    settled(b)
    look()
    settled(b)
    told_nothing_new(b, look, "relaxed")
    for i in range(3 if SHORT else 6):
        x, y = f"d/n{i}", "d/absent0"
        pending.append(lambda: write(a / y, b"here"))
        timed("create of a name known to be absent", lambda m: exists(m / y) and read(m / y) == b"here")
        pending.append(lambda: os.unlink(a / y))
        timed("unlink", lambda m: not exists(m / y))
        pending.append(lambda: os.rename(a / "d/f0", a / x))
        timed("rename", lambda m: exists(m / x) and not exists(m / "d/f0"))
        pending.append(lambda: os.rename(a / x, a / "d/f0"))
        timed("rename back", lambda m: "f0" in os.listdir(m / "d") and f"n{i}" not in os.listdir(m / "d"))
        pending.append(lambda: os.chmod(a / "d/f1", 0o600 + i))
        timed("chmod", lambda m: os.stat(m / "d/f1").st_mode & 0o777 == 0o600 + i)
        pending.append(lambda: write(a / "d/f2", b"z" * (i + 1)))
        timed("write", lambda m: read(m / "d/f2") == b"z" * (i + 1))
        pending.append(lambda: os.truncate(a / "d/f2", i + 100))
        timed("truncate", lambda m: os.stat(m / "d/f2").st_size == i + 100)
        # What the mount itself changes, it sees at once.
        write(b / f"d/own{i}", b"1")
        equal(read(b / f"d/own{i}"), b"1", "an own file")
        os.rename(b / f"d/own{i}", b / f"d/own-moved{i}")
        check(not exists(b / f"d/own{i}"), "an own rename")
        check(f"own-moved{i}" in os.listdir(b / "d"), "an own rename, listed")
        os.chmod(b / f"d/own-moved{i}", 0o640)
        equal(os.stat(b / f"d/own-moved{i}").st_mode & 0o777, 0o640, "an own chmod")
        os.unlink(b / f"d/own-moved{i}")
        check(not exists(b / f"d/own-moved{i}"), "an own unlink")
        check(f"own-moved{i}" not in os.listdir(b / "d"), "an own unlink, listed")
    for what in times:
        print_median(what, times[what])


def tree(m, dirs, files):
    names = []
    for i in range(dirs):
        os.mkdir(m / f"t{i}")
        for k in range(files):
            names.append(f"t{i}/file-{k:06d}")
            write(m / names[-1], b"x%d" % k)
    return names


def epoch(m, names, seed):
    order = names[:]
    random.Random(seed).shuffle(order)
    for n in order:
        fd = os.open(m / n, os.O_RDONLY)
        equal(os.read(fd, 100), b"x%d" % int(n[-6:]), n)
        os.close(fd)


@suite.cases_for(**SHARDS)
def relaxed_second_epoch_makes_no_calls(t, shards):
    """After one epoch in random order, or one walk over the tree, the next makes no metadata calls; nor
    do lookups of names that are not there."""
    v = t.volume("file", shards)
    a = t.mount(v)
    names = tree(a, 10, 100 if SHORT else 500)
    absent = [n.replace("file", "none") for n in names[::7]]
    for how in ("epoch", "walk"):
        b = t.mount(v, options=RELAXED)
        pushing(b)
        first = calls_that_count(b)
        if how == "epoch":
            epoch(b, names, 1)
            os.listdir(b / "t0")
            for n in absent:
                check(not exists(b / n), n)
        else:
            for d, _, files in os.walk(b.path):
                for f in files:
                    os.stat(os.path.join(d, f))
        settled(b)
        first = calls_that_count(b) - first
        before = b.counters()
        start = time.monotonic()
        n = calls_that_count(b)
        epoch(b, names, 2)
        if how == "epoch":
            for x in absent:
                check(not exists(b / x), x)
        n = calls_that_count(b) - n
        took = time.monotonic() - start
        c = b.counters()
        print(f"    {how}: {first} calls, then {n} for {len(names)} files ({len(names) / took:.0f}/s);"
              f" {c['meta.cache_buckets']} buckets, {c['meta.cache_bytes'] / len(names):.0f} B a file")
        more = {k: c[k] - before.get(k, 0) for k in c if k.startswith("redis.") and c[k] != before.get(k, 0)}
        equal(n, 0, f"calls of the second epoch after a first {how}: {more}")
        equal(c.get("redis.cover", 0), before.get("redis.cover", 0), "cover calls of the second epoch")
        b.umount()


@suite.cases_for(**SHARDS)
def hand_offs(t, shards):
    """After close() returns on A, an open() on B sees the bytes, whatever B's kernel holds: replaced
    files, rewritten files, files that are open and watched, so that a push comes while the open goes on."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    pushing(b)
    os.mkdir(a / "d")
    rng = random.Random(4)
    for i in range(4):
        write(a / f"d/f{i}", b"x")
        for m in (a, b):
            fd = os.open(m / f"d/f{i}", os.O_RDONLY)
            t.finally_do(lambda fd=fd: os.close(fd))
    for i in range(300 if SHORT else 1500):
        w, r = (a, b) if rng.random() < 0.5 else (b, a)
        name = f"d/f{rng.randrange(4)}"
        data = b"%d " % i * rng.randrange(1, 300)
        if rng.random() < 0.3:
            write(w / "d/new", data)
            os.rename(w / "d/new", w / name)
        else:
            write(w / name, data)
        got = read(r / name)
        check(got == data, f"round {i}: {got[:20]!r}, want {data[:20]!r}")
        if rng.random() < 0.2:
            equal(os.stat(r / name).st_size, len(data), f"round {i}: size")


class Gate:
    """A TCP proxy that can hold what the server says on push connections, and only those."""

    def __init__(self, port):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.target, self.hold = self.listener.getsockname()[1], port, threading.Event()
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        server = socket.create_connection(("127.0.0.1", self.target))
        push = False
        with client, server, contextlib.suppress(OSError):
            while not self.closing.is_set():
                watched = [client] if push and self.hold.is_set() else [client, server]
                ready, _, _ = select.select(watched, [], [], 0.02)
                for s in ready:
                    data = s.recv(1 << 16)
                    if not data:
                        return
                    if s is client:
                        push = push or b"SUBSCRIBE" in data
                        server.sendall(data)
                    else:
                        client.sendall(data)

    def close(self):
        self.closing.set()
        self.listener.close()


@suite.case
def a_killed_push_connection(t):
    """Nothing old stays when the connection that pushes is lost, and pushes come back."""
    v = t.volume()
    a = t.mount(v)
    mounts = [t.mount(v), t.mount(v, options=RELAXED)]
    os.mkdir(a / "d")
    for m in mounts:
        pushing(m)
    for i in range(3 if SHORT else 8):
        for m in mounts:
            kept(m, lambda: os.stat(m / "d"))
        v.redis.cmd("CLIENT", "KILL", "TYPE", "pubsub")
        os.chmod(a / "d", 0o700 + i)  # very likely while nobody listens
        for m in mounts:
            seen_after(lambda: os.stat(m / "d").st_mode & 0o777 == 0o700 + i, f"round {i}")
    for m in mounts:
        check(m.counters()["meta.cache_drops"] > 0, "nothing was dropped")


@suite.case
def a_stalled_push_connection(t):
    """A push connection on which nothing comes any more is noticed, and everything is dropped."""
    v = t.volume()
    gate = Gate(v.redis.port)
    t.servers.append(gate)  # closed after the mounts
    a = t.mount(v)
    mounts = [t.mount(v, address=v.redis.address(gate.port), options=o) for o in ([], RELAXED)]
    os.mkdir(a / "d")
    for m in mounts:
        pushing(m)
        kept(m, lambda: os.stat(m / "d"))
    gate.hold.set()
    time.sleep(0.1)  # the gate's threads look at it every 20 ms
    os.chmod(a / "d", 0o711)
    start = time.monotonic()
    for m in mounts:
        wait_until(lambda: os.stat(m / "d").st_mode & 0o777 == 0o711, "the new mode", 10)
    print(f"    seen after {time.monotonic() - start:.1f} s")
    gate.hold.clear()
    for m in mounts:
        kept(m, lambda: os.stat(m / "d"))
    os.chmod(a / "d", 0o722)
    for m in mounts:
        seen_after(lambda: os.stat(m / "d").st_mode & 0o777 == 0o722, "a push when it is back")


@suite.case
def a_killed_main_connection(t):
    """What was watched for the old connection is not watched any more: it is dropped."""
    v = t.volume()
    a = t.mount(v)
    mounts = [t.mount(v), t.mount(v, options=RELAXED)]
    os.mkdir(a / "d")
    for m in mounts:
        pushing(m)
    for i in range(3 if SHORT else 8):
        for m in mounts:
            kept(m, lambda: os.stat(m / "d"))
        v.redis.cmd("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        os.chmod(a / "d", 0o700 + i)
        for m in mounts:
            seen_after(lambda: os.stat(m / "d").st_mode & 0o777 == 0o700 + i, f"round {i}")


@suite.case
def a_server_that_watches_few_keys(t):
    """Redis forgets keys that it watched when there are too many, and says so: what it doesn't watch is
    asked for again."""
    v = t.volume()
    v.redis.cmd("CONFIG", "SET", "tracking-table-max-keys", "20")
    a, b = t.mount(v), t.mount(v, options=RELAXED)
    pushing(b)
    names = tree(a, 40, 20)
    for _ in range(3):
        epoch(b, names, 3)
    for i in range(0, len(names), 37):
        write(a / names[i], b"new %d" % i)
        seen_after(lambda: read(b / names[i]) == b"new %d" % i, names[i])
    check(b.counters()["meta.invalidations"] > 20, "Redis evicted nothing")
    v.redis.cmd("CONFIG", "SET", "tracking-table-max-keys", "1000000")


@suite.case
def everything_flushed(t):
    """A FLUSHDB, of whatever database, is told with one message for all keys: everything is dropped, and
    then watched anew."""
    v = t.volume()
    a, b = t.mount(v), t.mount(v, options=RELAXED)
    os.mkdir(a / "d")
    pushing(b)
    kept(b, lambda: os.stat(b / "d"))
    before = b.counters()["meta.cache_drops"]
    other = v.redis.connect()
    other.cmd("SELECT", 1)
    other.cmd("FLUSHDB")
    other.close()
    wait_until(lambda: b.counters()["meta.cache_drops"] > before, "the drop", 5)
    kept(b, lambda: os.stat(b / "d"))
    os.chmod(a / "d", 0o705)
    seen_after(lambda: os.stat(b / "d").st_mode & 0o777 == 0o705, "a change after it")


@suite.case
def memory_is_bounded(t):
    """meta-cache bounds what is remembered; what is pushed out is dropped from the kernel too."""
    v = t.volume()
    limit = 1 << 20
    a = t.mount(v)
    b = t.mount(v, options=RELAXED + ["meta-cache=1M"])
    pushing(b)
    n = 6000 if SHORT else 30000
    os.mkdir(a / "d")
    for i in range(n):
        os.mknod(a / f"d/ligand-{i:010d}-pose.sdf")
    for _ in range(2):
        count = sum(1 for e in os.scandir(b / "d") if e.stat())
        equal(count, n, "entries")
    c = b.counters()
    check(c["meta.cache_bytes"] <= limit * 1.3, f"{c['meta.cache_bytes']} bytes of {limit}")
    check(c["meta.cache_bytes"] > limit / 4, f"only {c['meta.cache_bytes']} bytes are used")
    for i in range(0, n, n // 50):
        os.chmod(a / f"d/ligand-{i:010d}-pose.sdf", 0o604)
        seen_after(lambda: os.stat(b / f"d/ligand-{i:010d}-pose.sdf").st_mode & 0o777 == 0o604, f"file {i}")


@suite.cases_for(**SHARDS)
def four_mounts_agree(t, shards):
    """Random changes of four mounts, two of them relaxed: when they pause, all see the same tree as the
    one that asks for everything."""
    v = t.volume("file", shards)
    mounts = [t.mount(v), t.mount(v), t.mount(v, options=RELAXED), t.mount(v, options=RELAXED)]
    exact = t.mount(v, options=["attr-timeout=0", "entry-timeout=0", "dir-entry-timeout=0"])
    for i in range(4):
        os.mkdir(mounts[0] / f"d{i}")
    rounds = 5 if SHORT else 16

    def work(m, seed):
        rng = random.Random(seed)
        for _ in range(30):
            p, q = (m / f"d{rng.randrange(4)}/n{rng.randrange(12)}" for _ in range(2))
            with contextlib.suppress(OSError):
                r = rng.random()
                if r < 0.3:
                    write(p, b"x" * rng.randrange(50))
                elif r < 0.4:
                    os.mkdir(p)
                elif r < 0.55:
                    os.rename(p, q)
                elif r < 0.65:
                    os.unlink(p)
                elif r < 0.7:
                    os.rmdir(p)
                elif r < 0.8:
                    os.chmod(p, rng.randrange(0o700, 0o777))
                elif r < 0.9:
                    os.stat(p)
                else:
                    os.listdir(os.path.dirname(p))

    def view(m):
        out = {}
        for i in range(4):
            for k in range(12):
                p = f"d{i}/n{k}"
                try:
                    st = os.lstat(m / p)
                    out[p] = (st.st_ino, st.st_mode, st.st_size if not os.path.isdir(m / p) else 0, st.st_nlink)
                except FileNotFoundError:
                    out[p] = None
            out[f"d{i}"] = sorted(os.listdir(m / f"d{i}"))
        return out
    for i in range(rounds):
        threads = [threading.Thread(target=work, args=(m, i * 10 + k)) for k, m in enumerate(mounts)]
        for x in threads:
            x.start()
        for x in threads:
            x.join()
        want = view(exact)
        for k, m in enumerate(mounts):
            def same():
                return view(m) == want
            end = time.monotonic() + PATIENCE
            while not same() and time.monotonic() < end:
                pass
            got = view(m)
            wrong = {p: (got[p], want[p]) for p in want if got[p] != want[p]}
            check(not wrong, f"round {i}, mount {k}: {wrong}")


suite.main()

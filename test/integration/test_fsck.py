#!/usr/bin/env python3
"""siltfs fsck: finds nothing where nothing is wrong, also beside clients; finds what is; repairs it."""
# timeout: 400
# asan: yes

import os
import random
import shutil
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, wait_until  # noqa: E402

suite = silt.Suite()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def fsck(t, v, *args, status=0):
    r = t.siltfs("fsck", *args, v.address, env=v.env, check_status=False)
    if r.returncode != status:
        raise silt.Failure(f"fsck {args}: exit status {r.returncode}, want {status}\n{r.out}{r.err}")
    return r.out + r.err


def sample(top):
    """Some of everything."""
    rng = random.Random(5)
    for d in ("a", "a/b", "a/b/c", "empty"):
        os.mkdir(top / d)
    for i in range(300):
        write(top / f"a/f{i}", payload(i, rng.choice([0, 1, 100, 4000, 9000])))
    write(top / "large", payload(1, 20 << 20))
    with open(top / "holes", "wb") as f:
        f.truncate(1 << 33)
        for at in range(0, 1 << 33, 1 << 29):
            f.seek(at)
            f.write(b"x" * 5000)
    for i in range(5):
        os.link(top / "a/f7", top / f"a/b/link{i}")
    os.symlink("a/f7", top / "short")
    os.symlink("x" * 900, top / "long")
    os.mkfifo(top / "fifo")
    os.setxattr(top / "a/f8", "user.a", b"v" * 300)
    os.rename(top / "a/f9", top / "empty/f9")
    os.unlink(top / "a/f10")
    write(top / ("n" * 255), b"data")


def settled(t, v):
    """Freed extents are worked off by heartbeats."""
    wait_until(lambda: not v.redis.cmd("KEYS", "{*}g"), "the garbage to be worked off", 60)


@suite.cases_for(shards=[1, 8])
def a_volume_in_order(t, shards):
    v = t.volume(shards=shards)
    check("clean" in fsck(t, v), "a new volume")
    m = t.mount(v, options=["heartbeat=1"])
    sample(m)
    fd = os.open(m / "a/f20", os.O_RDONLY)
    os.unlink(m / "a/f20")          # deleted, and open
    settled(t, v)
    out = fsck(t, v)
    check("clean" in out, out)
    os.close(fd)
    m.umount()
    out = fsck(t, v, "--data")
    check("clean" in out and " 5 directories" in out, out)
    check("clean" in fsck(t, v, "--repair"), "nothing to repair")


@suite.cases_for(shards=[1, 4])
def beside_clients(t, shards):
    v = t.volume(shards=shards)
    mounts = [t.mount(v, options=["heartbeat=1"]) for _ in range(2)]
    until = time.monotonic() + (6 if silt.QUICK else 15)
    errors = []

    def churn(top, seed):
        rng = random.Random(seed)
        try:
            while time.monotonic() < until:
                d = top / f"d{rng.randrange(3)}"
                p, q = (os.path.join(d, f"f{rng.randrange(8)}") for _ in range(2))
                what = rng.randrange(6)
                try:
                    if what == 0:
                        os.makedirs(d, exist_ok=True)
                    elif what < 3:
                        write(p, payload(rng.randrange(999), 5000))
                    elif what == 3:
                        os.rename(p, q)
                    elif what == 4:
                        os.link(p, q)
                    elif rng.random() < 0.2:
                        shutil.rmtree(d)
                    else:
                        os.unlink(p)
                except (FileNotFoundError, FileExistsError, OSError):
                    pass
        except Exception as e:
            errors.append(e)
    threads = [threading.Thread(target=churn, args=(mounts[i % 2], i), daemon=True) for i in range(4)]
    for x in threads:
        x.start()
    runs = 0
    while time.monotonic() < until:
        fsck(t, v)
        runs += 1
    for x in threads:
        x.join()
    check(not errors, errors)
    check(runs > 0, "it ran")
    r = t.siltfs("fsck", "--repair", v.address, check_status=False)
    equal(r.returncode, 8, "a repair of a volume in use")
    check("in use by 2 sessions" in r.err, r.err)
    for m in mounts:
        m.umount()
    check("clean" in fsck(t, v, "--data"), "at the end")


class Surgeon:
    """Damages a volume that nobody has mounted."""

    def __init__(self, t, shards=1):
        self.t, self.v = t, t.volume(shards=shards)
        m = t.mount(self.v, options=["heartbeat=1"])
        sample(m)
        settled(t, self.v)
        self.ino = {p: os.lstat(m / p).st_ino for p in ("a", "a/f1", "a/f2", "a/f7", "a/f99", "large", "long",
                                                        "holes", "empty/f9", "a/b")}
        m.umount()
        self.cmd = self.v.redis.cmd

    def record(self, ino):
        shard, seq = ino >> 48, ino & (1 << 48) - 1
        return f"{{{shard}}}i{seq // 64:x}", str(seq % 64)

    def finds(self, words, repaired=True, **kwargs):
        out = fsck(self.t, self.v, status=4, **kwargs)
        for w in words:
            check(w in out, f"{w!r} is not in\n{out}")
        lines = len([x for x in out.splitlines() if x and "packs (" not in x])
        equal(lines, len(words), f"findings:\n{out}")
        if repaired:
            out = fsck(self.t, self.v, "--repair", status=1)
            check("corrected" in out and ", 0 left" in out, out)
            check("clean" in fsck(self.t, self.v), "after the repair")
        return out

    def mount(self):
        return self.t.mount(self.v)


@suite.case
def a_name_of_nothing(t):
    s = Surgeon(t)
    key, field = s.record(s.ino["a/f1"])
    s.cmd("HDEL", key, field)
    out = fsck(t, s.v, status=4)
    check('"f1" in directory' in out and "which is not there" in out, out)
    fsck(t, s.v, "--repair", status=1)
    check("clean" in fsck(t, s.v), "after the repair")
    m = s.mount()
    check(not os.path.lexists(m / "a/f1"), "the name went")
    equal(read(m / "a/f2"), payload(2, os.path.getsize(m / "a/f2")), "another file")


@suite.case
def a_damaged_record(t):
    s = Surgeon(t)
    key, field = s.record(s.ino["a/f1"])
    good = s.cmd("HGET", key, field)
    s.cmd("HSET", key, field, good[:9])
    out = fsck(t, s.v, status=4)
    check(f"inode {s.ino['a/f1']}: its record is damaged" in out, out)
    fsck(t, s.v, "--repair", status=1)
    check("clean" in fsck(t, s.v), "after the repair")
    m = s.mount()
    check(not os.path.lexists(m / "a/f1") and len(os.listdir(m / "a")) > 200, "the name went")


@suite.case
def what_a_repair_leaves_alone(t):
    """A directory, and what a later version may have written; and counters while not all is known."""
    s = Surgeon(t)

    def stays(ino, bad):
        key, field = s.record(ino)
        good = s.cmd("HGET", key, field)
        s.cmd("HSET", key, field, bad(good))
        keys = s.cmd("KEYS", "{0}l*")
        live = {k: sorted(s.cmd("HGETALL", k)) for k in keys}
        out = fsck(t, s.v, "--repair", status=4)
        check(f"inode {ino}: its record is damaged" in out and "corrected" not in out, out)
        equal(s.cmd("HGET", key, field), bad(good), "the record")
        equal({k: sorted(s.cmd("HGETALL", k)) for k in keys}, live, "live bytes")
        s.cmd("HSET", key, field, good)
        check("clean" in fsck(t, s.v), "as it was")
    stays(s.ino["a/f1"], lambda r: bytes([r[0] + 16]) + r[1:])
    stays(s.ino["a/b"], lambda r: r[:7])
    stays(1, lambda r: r[:7])

    # A log that is damaged: what its file uses is not known.
    key = f"{{0}}x{s.ino['holes']:x}"
    field, log = s.cmd("HGETALL", key)[:2]
    s.cmd("HSET", key, field, b"\xff\xff" + log)
    keys = s.cmd("KEYS", "{0}l*")
    live = {k: sorted(s.cmd("HGETALL", k)) for k in keys}
    out = fsck(t, s.v, "--repair", status=4)
    check("corrected" not in out, out)
    equal({k: sorted(s.cmd("HGETALL", k)) for k in keys}, live, "live bytes")
    s.cmd("HSET", key, field, log)

    # Redis has lost that it gave numbers out.
    n = s.cmd("HGET", "{0}c", "n")
    s.cmd("HSET", "{0}c", "n", "64")
    check("clean" in fsck(t, s.v, "--repair"), "a counter that is too low")
    s.cmd("HSET", "{0}c", "n", "rubbish")
    fsck(t, s.v, "--repair")
    s.cmd("HSET", "{0}c", "n", str(1 << 60))
    fsck(t, s.v, "--repair", status=8)
    s.cmd("HSET", "{0}c", "n", n)
    check("clean" in fsck(t, s.v, "--data"), "at the end")


@suite.case
def repairs_and_mounts(t):
    """While a volume is repaired nobody mounts it; who died without cleaning up is waited for."""
    s = Surgeon(t)
    s.cmd("SET", "{0}R", "somebody", "PX", "600000")
    r = t.siltfs("mount", s.v.address, t.folder("at"), check_status=False)
    check(r.returncode != 0 and "being repaired" in r.err, r.err)
    r = t.siltfs("fsck", "--repair", s.v.address, check_status=False)
    equal(r.returncode, 8, "two repairs at once")
    check("being repaired" in r.err, r.err)
    s.cmd("DEL", "{0}R")
    check("clean" in fsck(t, s.v, "--repair"), "alone")
    check(not s.cmd("EXISTS", "{0}R"), "the repair has ended")
    m = t.mount(s.v, options=["heartbeat=0.2"])
    m.kill()

    def refused():
        r = t.siltfs("fsck", "--repair", s.v.address, check_status=False)
        equal(r.returncode, 8, "after a crash")
        return "mount it once" in r.err
    wait_until(refused, "the session to expire", 30)
    t.mount(s.v, options=["heartbeat=0.2"])
    wait_until(lambda: s.cmd("HLEN", "{0}S") == 1, "the dead session to be cleaned up", 20)


@suite.case
def a_file_without_a_name(t):
    s = Surgeon(t)
    # The only bucket in which it can be: the one that has it.
    for key in s.cmd("KEYS", "{0}d1:*"):
        s.cmd("HDEL", key, "large")
    out = fsck(t, s.v, status=4)
    check(f"inode {s.ino['large']} has no name" in out and "counts" in out, out)
    fsck(t, s.v, "--repair", status=1)
    check("clean" in fsck(t, s.v), "after the repair")
    m = s.mount()
    equal(read(m / f"lost+found/{s.ino['large']}"), payload(1, 20 << 20), "the bytes")
    equal(os.stat(m / f"lost+found/{s.ino['large']}").st_nlink, 1, "its links")
    equal(os.stat(m / "lost+found").st_mode & 0o777, 0o700, "mode of lost+found")


@suite.case
def wrong_counters(t):
    s = Surgeon(t)
    inodes = int(s.cmd("HGET", "{0}c", "i"))
    s.cmd("HSET", "{0}c", "i", inodes + 5)
    s.finds([f"shard 0: counts {inodes + 5} inodes"])
    key = s.cmd("KEYS", "{0}l*")[0]
    field, live = s.cmd("HGETALL", key)[:2]
    s.cmd("HSET", key, field, int(live) + 100)
    s.finds([f"{int(live) + 100} live bytes by its counter, {int(live)} by the files"])
    s.cmd("HDEL", key, field)
    s.finds(["has no counter"])
    s.cmd("HSET", key, field, "rubbish")
    s.finds(["is no number"], repaired=False)


@suite.case
def lost_and_damaged_objects(t):
    s = Surgeon(t)
    top = os.path.join(s.v.bucket.path, s.v.name, "packs")
    packs = sorted((os.path.join(d, f) for d, _, files in os.walk(top) for f in files), key=os.path.getsize)
    big = packs[-1]
    os.chmod(big, 0o600)
    with open(big, "r+b") as f:
        f.seek(5000)
        b = f.read(1)
        f.seek(5000)
        f.write(bytes([b[0] ^ 1]))
    check("clean" in fsck(t, s.v), "without --data nothing is read")
    out = fsck(t, s.v, "--data", status=4)
    check(f"pack {os.path.basename(big)} is damaged" in out, out)
    os.truncate(big, 6000)
    out = fsck(t, s.v, status=4)
    check("which was cut" in out, out)
    os.unlink(big)
    out = fsck(t, s.v, "--repair", status=4)
    check(f"pack {os.path.basename(big)}, which is not there" in out, out)


@suite.case
def other_damage(t):
    s = Surgeon(t)
    key = f"{{0}}y{s.ino['long']:x}"
    target = s.cmd("GET", key)
    s.cmd("DEL", key)
    s.finds([f"inode {s.ino['long']}: the target of this symbolic link is lost"], repaired=False)
    s.cmd("SET", key, target)
    key = f"{{0}}x{s.ino['holes']:x}"
    field, log = s.cmd("HGETALL", key)[:2]
    s.cmd("HSET", key, field, b"\xff\xff" + log)
    out = fsck(t, s.v, status=4)
    check(f"inode {s.ino['holes']}: its extents are damaged" in out, out)
    s.cmd("HSET", key, field, log)
    check("clean" in fsck(t, s.v), "as it was")

    for key in s.cmd("KEYS", "{0}d1:*"):
        s.cmd("HSET", key, b"bad\x1b[31mname", b"\x3f\x01")
    out = fsck(t, s.v, status=4)
    check('"bad?[31mname" in directory 1 is damaged' in out, out)
    fsck(t, s.v, "--repair", status=1)
    check("clean" in fsck(t, s.v), "after the repair")


@suite.case
def wrong_links(t):
    s = Surgeon(t, shards=1)
    for key in s.cmd("KEYS", f"{{0}}d{s.ino['a/b']:x}:*"):
        s.cmd("HDEL", key, "link3")
    out = fsck(t, s.v, status=4)
    check(f"inode {s.ino['a/f7']} counts 6 links, there are 5" in out, out)
    check(f"directory {s.ino['a/b']} counts 6 names and 3 links, there are 5 and 3" in out, out)
    fsck(t, s.v, "--repair", status=1)
    check("clean" in fsck(t, s.v), "after the repair")
    m = s.mount()
    equal(os.stat(m / "a/f7").st_nlink, 5, "links")
    for i in (0, 1, 2, 4):
        os.unlink(m / f"a/b/link{i}")
    os.unlink(m / "a/f7")


@suite.case
def fsck_arguments(t):
    for args, status in (((), 16), (("--nonsense", "x"), 16), (("a", "b"), 16), ((f"local:{t.folder()}/no",), 8)):
        equal(t.siltfs("fsck", *args, check_status=False).returncode, status, f"exit status of fsck {args}")


suite.main()

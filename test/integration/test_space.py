#!/usr/bin/env python3
"""Space in the object store: what nobody uses goes, by itself and by `siltfs gc`, and nothing else does,
whatever clients do meanwhile."""
# timeout: 400
# asan: yes

import os
import re
import shutil
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from churn import Churn  # noqa: E402
from silt import check, equal, payload, wait_until  # noqa: E402

suite = silt.Suite()
SOON = "delete-grace=1"


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def fill(folder, n, size=4000):
    os.makedirs(folder)
    for i in range(n):
        write(os.path.join(folder, f"f{i}"), payload(hash((folder, i)) % 9999, size))


class Collector:
    """siltfs gc on a volume, and what it said."""

    def __init__(self, t, volume):
        self.t, self.volume = t, volume

    def run(self, *args, check_status=True):
        return self.t.siltfs("gc", *args, self.volume.address, env=self.volume.env,
                             check_status=check_status)

    def figures(self, *args):
        out = self.run(*args).out
        return {m[1].strip(): int(m[2]) for m in re.finditer(r"^(.*?) {2,}(\d+)", out, re.M)}

    def objects(self):
        return self.figures("--dry-run")["objects"]


def packs(volume):
    top = os.path.join(volume.bucket.path, volume.name, "packs")
    return {f: os.path.join(d, f) for d, _, files in os.walk(top) for f in files}


@suite.cases_for(storage=["file", "s3"], shards=[1, 8])
def removed_files_leave_the_store(t, storage, shards):
    v = t.volume(storage=storage, shards=shards)
    gc = Collector(t, v)
    m = t.mount(v, options=[SOON])
    for name in ("a", "b", "keep"):
        fill(m / name, 60)
    write(m / "large", payload(7, 40 << 20))
    before = gc.objects()
    check(before > 5, f"{before} objects")
    shutil.rmtree(m / "a")
    shutil.rmtree(m / "b")
    os.unlink(m / "large")
    # What is left holds files of `keep`, and is at most the objects that those were closed into.
    wait_until(lambda: gc.objects() <= 60, "the objects to go", 60)
    wait_until(lambda: gc.figures("--dry-run", "--grace", "0").get("not in use, would be deleted") == 0,
               "all of them to go", 60)
    for i in range(60):
        equal(read(m / f"keep/f{i}"), payload(hash((m / "keep", i)) % 9999, 4000), f"f{i}")
    shutil.rmtree(m / "keep")
    wait_until(lambda: gc.objects() == 0, "the last objects to go", 60)
    check(m.counters()["pack.deleted"] >= before, "the mount counts what it deletes")


@suite.case
def what_is_open_keeps_its_objects(t):
    v = t.volume()
    m = t.mount(v, options=[SOON])
    data = payload(3, 3 << 20)
    write(m / "f", data)
    fd = os.open(m / "f", os.O_RDONLY)
    os.unlink(m / "f")
    time.sleep(4)
    other = t.mount(v)      # nothing of it is in a cache there
    check(packs(v), "the object is there")
    del other
    equal(os.pread(fd, len(data), 0), data, "the removed file")
    os.close(fd)
    wait_until(lambda: not packs(v), "the object to go", 60)


@suite.case
def a_reader_of_what_was_replaced(t):
    """Its map names an object that is gone: it asks again."""
    v = t.volume()
    a, b = t.mount(v, options=[SOON]), t.mount(v, options=[SOON, "cache-dir=none", "memory-size=1M"])
    old, new = payload(1, 8 << 20), payload(2, 8 << 20)
    write(a / "f", old)
    fd = os.open(b / "f", os.O_RDONLY | os.O_DIRECT)
    import mmap
    page = mmap.mmap(-1, 4096)
    os.preadv(fd, [page], 0)
    equal(page[:], old[:4096], "the first page")
    names = set(packs(v))
    write(a / "f", new)
    wait_until(lambda: not names & set(packs(v)), "the old objects to go", 60)
    for at in range(0, len(new), 1 << 20):
        os.preadv(fd, [page], at)
        equal(page[:], new[at:at + 4096], f"at {at}")
    os.close(fd)


@suite.case
def orphans_go_by_gc_only(t):
    v = t.volume()
    gc = Collector(t, v)
    m = t.mount(v, options=[SOON])
    fill(m / "d", 10)
    name, path = next(iter(packs(v).items()))
    orphan = os.path.join(v.bucket.path, v.name, "packs", "45", f"{0x12345:016x}")
    os.makedirs(os.path.dirname(orphan), exist_ok=True)
    shutil.copy(path, orphan)
    alien = os.path.join(os.path.dirname(orphan), "README")
    write(alien, b"not ours")
    time.sleep(2)
    check(os.path.exists(orphan), "nobody touches an orphan without being asked")

    said = gc.figures()
    equal(said["not in use, deleted"], 0, "within an hour")
    equal(said["too young to be looked at"], len(packs(v)) - 1, "young ones")
    equal(said["no packs, left alone"], 1, "what is no pack")
    before = set(packs(v))
    said = gc.figures("--grace", "1", "--dry-run")
    equal(said["not in use, would be deleted"], 1, "dry run")
    equal(set(packs(v)), before, "a dry run changes nothing")
    out = gc.run("--grace", "1s", "--list").out
    check(f"packs/45/{0x12345:016x} {os.path.getsize(path)}\n" in out, out)
    equal(set(packs(v)), before - {f"{0x12345:016x}"}, "exactly the orphan went")
    check(os.path.exists(alien), "what is no pack stays")
    for i in range(10):
        equal(read(m / f"d/f{i}"), payload(hash((m / "d", i)) % 9999, 4000), f"f{i}")

    # Old, by the store's clock, and in use.
    for p in packs(v).values():
        os.utime(p, (1, 1))
    said = gc.figures()
    equal(said["not in use, deleted"], 0, "what is in use stays")
    equal(said["in use"], len(packs(v)) - 1, "in use")


@suite.case
def gc_of_damaged_metadata(t):
    """What a file needs is not known, so nothing is deleted."""
    v = t.volume()
    gc = Collector(t, v)
    m = t.mount(v, options=["delete-grace=3600"])
    for i in range(3):
        write(m / f"f{i}", payload(i, 5000))
    os.unlink(m / "f0")
    ino = os.stat(m / "f1").st_ino
    key, field = f"{{0}}i{ino // 64:x}", str(ino % 64)
    good = v.redis.cmd("HGET", key, field)
    before = set(packs(v))
    v.redis.cmd("HSET", key, field, b"\xff" + good[1:])
    r = gc.run("--grace", "0", check_status=False)
    equal(r.returncode, 1, "exit status")
    check(f"inode {ino} is damaged" in r.err and "nothing was deleted" in r.err, r.err)
    equal(set(packs(v)), before, "objects")
    v.redis.cmd("HSET", key, field, good)
    equal(gc.figures("--grace", "0")["not in use, deleted"], 1, "after the repair")
    equal(read(m / "f1"), payload(1, 5000), "f1")


@suite.case
def gc_arguments(t):
    for args, words in (((), "takes an ADDRESS"), (("--grace", "x", "local:/x"), "--grace x"),
                        (("--nonsense", "local:/x"), "unknown"), (("a", "b"), "takes an ADDRESS")):
        r = t.siltfs("gc", *args, check_status=False)
        equal(r.returncode, 2, f"exit status of gc {args}")
        check(words in r.err, r.err)
    r = t.siltfs("gc", f"local:{t.folder()}/none", check_status=False)
    equal(r.returncode, 1, "exit status where there is no volume")


@suite.cases_for(shards=[1, 4])
def gc_beside_clients(t, shards):
    """With no grace at all: objects that are stored and not committed yet are buried under their writers,
    what is being shared dies. Nobody may notice."""
    v = t.volume(shards=shards)
    gc = Collector(t, v)
    mounts = [t.mount(v, options=[SOON]) for _ in range(2)]
    until = time.monotonic() + (6 if silt.QUICK else 20)
    churns = [Churn(mounts[i % 2] / f"d{i}", i, until) for i in range(4)]
    deleted = runs = 0
    while time.monotonic() < until:
        deleted += gc.figures("--grace", "0")["not in use, deleted"]
        runs += 1
    for c in churns:
        c.join()
        if c.error:
            raise c.error
    print(f"# {runs} runs of gc deleted {deleted} objects beside {sum(c.n for c in churns)} changes")
    check(deleted > 0, "gc found something")
    fresh = t.mount(v)
    for i, c in enumerate(churns):
        c.verify(fresh / f"d{i}")
    # Freed extents leave the counters, and logs are folded, with the heartbeats.
    said = {}

    def settled():
        said.clear()
        said.update(gc.figures("--grace", "0"))
        return said["in use"] == said["objects"]

    wait_until(settled, f"what is left to be in use: {said}", 60)
    for i, c in enumerate(churns):
        c.verify(mounts[0] / f"d{i}")


@suite.case
def the_worker_dies(t):
    """Another mount goes on with it."""
    v = t.volume()
    a = t.mount(v, options=[SOON])
    fill(a / "d", 20)
    time.sleep(1.5)         # it is elected
    b = t.mount(v, options=[SOON])
    a.kill()
    shutil.rmtree(b / "d")
    wait_until(lambda: not packs(v), "the objects to go", 60)


suite.main()

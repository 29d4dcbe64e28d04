#!/usr/bin/env python3
"""Compaction: small and half-used objects become fewer and fuller ones, and nobody can tell from the files."""
# timeout: 400
# asan: yes

import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from churn import Churn  # noqa: E402
from silt import check, equal, payload, wait_until  # noqa: E402

suite = silt.Suite()
SOON = ["delete-grace=1", "compact-wait=1", "compact-rate=1G"]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def packs(volume):
    top = os.path.join(volume.bucket.path, volume.name, "packs")
    return {f: os.path.getsize(os.path.join(d, f)) for d, _, files in os.walk(top) for f in files}


def fsck(t, volume):
    r = t.siltfs("fsck", "--data", volume.address, env=volume.env, check_status=False)
    equal(r.returncode, 0, f"fsck: {r.out} {r.err}")


def objects(t, volume):
    """Number and bytes, also of a bucket in S3."""
    out = t.siltfs("gc", "--dry-run", volume.address, env=volume.env).out
    line = next(x for x in out.splitlines() if x.startswith("objects"))
    return int(line.split()[1]), out


@suite.cases_for(storage=["file", "s3"], shards=[1, 8])
def small_objects_are_merged(t, storage, shards):
    """One writer that closes one file after the other makes an object of each."""
    v = t.volume(storage=storage, shards=shards)
    quiet = t.mount(v, options=["compact-rate=0"])
    n = 100 if silt.QUICK or silt.SANITIZED else 300
    os.mkdir(quiet / "d")
    for k in range(4):
        os.mkdir(quiet / f"d/{k}")
    for i in range(n):
        write(quiet / f"d/{i % 4}/f{i}", payload(i, 4000))
    count, out = objects(t, v)
    check(count > n / 2, f"{out}: an object for nearly every file")
    reader = t.mount(v, options=["cache-dir=none", "memory-size=1M", "compact-rate=0"])
    fds = [os.open(reader / f"d/{i % 4}/f{i}", os.O_RDONLY) for i in range(0, n, 7)]
    # A mount that nobody uses does it. A few small ones may be left, which wait for company.
    m = t.mount(v, options=SOON)
    quiet.umount()
    wait_until(lambda: objects(t, v)[0] <= 10, "the objects to be merged", 100)
    check(m.counters()["pack.compacted"] >= n / 2, "it counts them")
    for i in range(n):
        equal(read(m / f"d/{i % 4}/f{i}"), payload(i, 4000), f"f{i}")
    for i, fd in zip(range(0, n, 7), fds):      # opened when they were elsewhere
        equal(os.pread(fd, 5000, 0), payload(i, 4000), f"f{i}, open since")
        os.close(fd)
    fsck(t, v)
    # Files that are removed take their part of the objects along.
    for i in range(n):
        if i % 10:
            os.unlink(m / f"d/{i % 4}/f{i}")
    wait_until(lambda: objects(t, v)[0] <= 10, "fewer objects", 60)
    for i in range(0, n, 10):
        equal(read(m / f"d/{i % 4}/f{i}"), payload(i, 4000), f"f{i}")
    fsck(t, v)


def merged(t, v, m, n, size):
    """`n` files of `size` random bytes, in objects that compaction has made."""
    rng = random.Random(n)
    data = {f"f{i}": rng.randbytes(size) for i in range(n)}
    for name, d in data.items():
        write(m / name, d)
    before = set(packs(v))
    wait_until(lambda: not before & set(packs(v)), "the first objects to go", 60)
    return data


@suite.case
def half_used_objects_shrink(t):
    """Space comes back before the last file of an object is gone."""
    v = t.volume()
    m = t.mount(v, options=SOON)
    data = merged(t, v, m, 40, 200_000)
    check(max(packs(v).values()) > 2_000_000, f"{packs(v)}: large objects")
    left = sorted(data)[::5]
    for name in data:
        if name not in left:
            os.unlink(m / name)
    live = sum(len(data[name]) for name in left)
    wait_until(lambda: sum(packs(v).values()) < live * 1.1, "the bytes of the others to go", 60)
    for name in left:
        equal(read(m / name), data[name], name)
    fsck(t, v)


@suite.case
def logs_move_too(t):
    """Files of several extents: written over here and there, and appended to."""
    v = t.volume()
    m = t.mount(v, options=SOON)
    rng = random.Random(5)
    data = {}
    for i in range(6):
        name = f"f{i}"
        data[name] = bytearray(rng.randbytes(50_000))
        write(m / name, data[name])
        for _ in range(12):
            at, piece = rng.randrange(60_000), rng.randbytes(rng.choice([10, 3000, 9000]))
            with open(m / name, "r+b") as f:
                f.seek(at)
                f.write(piece)
            data[name].extend(bytes(max(0, at + len(piece) - len(data[name]))))
            data[name][at:at + len(piece)] = piece
        with open(m / name, "ab") as f:
            f.write(b"the end")
        data[name] += b"the end"
    before = packs(v)
    # What was appended stays for a day, in objects of its own here.
    wait_until(lambda: len(packs(v)) <= 6 + 4, f"fewer than {len(before)} objects", 60)
    other = t.mount(v, options=["cache-dir=none", "compact-rate=0"])
    for name, d in data.items():
        equal(read(other / name), bytes(d), name)
    fsck(t, v)


@suite.cases_for(mode=["default", "relaxed"])
def what_was_moved_is_still_watched(t, mode):
    """That a file's bytes have moved is nothing that its kernel hears of. What changes later is."""
    v = t.volume()
    writer = t.mount(v, options=["compact-rate=0"])
    for i in range(20):
        write(writer / f"f{i}", payload(i, 4000))
    a = t.mount(v, options=["compact-rate=0", *(["consistency=relaxed"] if mode == "relaxed" else [])])
    os.listdir(a.path)
    fd = os.open(a / "f3", os.O_RDONLY)
    os.pread(fd, 10, 0)
    for _ in range(12):         # so that it is told for long
        os.fstat(fd), os.stat(a / "f3")
        time.sleep(0.1)
    before = set(packs(v))
    t.mount(v, options=SOON)
    wait_until(lambda: not before & set(packs(v)), "the objects to be merged", 60)
    time.sleep(1)
    os.chmod(writer / "f3", 0o600)
    wait_until(lambda: os.fstat(fd).st_mode & 0o777 == 0o600, "the open file's mode to be seen", 3)
    os.close(fd)
    with open(writer / "f3", "ab") as f:
        f.write(b"x" * 1000)
    wait_until(lambda: os.stat(a / "f3").st_size == 5000, "the size to be seen", 3)
    equal(read(a / "f3"), payload(3, 4000) + b"x" * 1000, "f3")


@suite.case
def clones_keep_what_they_share(t):
    """Bytes that another file shares stay where they are: moved, they would be there twice."""
    v = t.volume()
    m = t.mount(v, options=SOON)
    for i in range(20):
        write(m / f"f{i}", payload(i, 30_000))
        with open(m / f"f{i}", "rb") as a, open(m / f"clone{i}", "wb") as b:
            equal(os.copy_file_range(a.fileno(), b.fileno(), 30_000), 30_000, "a copy")
    total = sum(packs(v).values())
    time.sleep(8)
    check(sum(packs(v).values()) <= total, f"{packs(v)} after {total} bytes")
    for i in range(20):
        os.unlink(m / f"f{i}")
        equal(read(m / f"clone{i}"), payload(i, 30_000), f"clone{i}")
    fsck(t, v)


@suite.case
def damaged_objects_stay(t):
    """They are named in the log, read as before, and hold nothing else up."""
    v = t.volume()
    m = t.mount(v, options=["compact-rate=0"])
    for i in range(12):
        write(m / f"f{i}", payload(i, 4000))
    m.umount()
    top = os.path.join(v.bucket.path, v.name, "packs")
    name = sorted(packs(v))[3]
    path = next(os.path.join(d, name) for d, _, files in os.walk(top) if name in files)
    data = bytearray(read(path))
    data[100] ^= 1
    os.chmod(path, 0o644)
    write(path, data)
    m = t.mount(v, options=SOON)
    m.expect("damaged", "reading 4000 bytes")
    wait_until(lambda: len(packs(v)) <= 3, "the others to be merged", 60)
    check(name in packs(v), "the damaged one is there")
    with open(m.log) as f:
        said = [x for x in f if "can't be compacted" in x]
    equal(len(said), 1, f"lines: {said}")
    wrong = 0
    for i in range(12):
        try:
            equal(read(m / f"f{i}"), payload(i, 4000), f"f{i}")
        except OSError:
            wrong += 1
    equal(wrong, 1, "files that can't be read")


@suite.cases_for(shards=[1, 4])
def beside_clients(t, shards):
    """Two mounts that write, copy and remove while two workers take turns; one is killed now and then."""
    v = t.volume(shards=shards)
    mounts = [t.mount(v, options=SOON) for _ in range(2)]
    until = time.monotonic() + (8 if silt.QUICK else 25)
    churns = [Churn(mounts[i % 2] / f"d{i}", i, until) for i in range(4)]
    killed = 0
    while time.monotonic() < until - 2:
        worker = t.mount(v, options=SOON)
        time.sleep(1 + random.random() * 3)
        worker.kill()
        killed += 1
    for c in churns:
        c.join()
        check(c.error is None, f"{c.error!r}")
    moved = sum(m.counters()["pack.compacted"] for m in mounts)
    print(f"# {sum(c.n for c in churns)} changes, {killed} mounts killed, {moved} packs compacted by the others")
    check(moved > 0, "something was compacted")
    last = t.mount(v, options=["cache-dir=none", "compact-rate=0"])
    for i, c in enumerate(churns):
        c.verify(last / f"d{i}")
    fsck(t, v)


suite.main()

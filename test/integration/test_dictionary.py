#!/usr/bin/env python3
"""zstd dictionaries: trained on demand and by itself, used for small files, had by every mount."""
# timeout: 300
# asan: yes

import json
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, wait_until  # noqa: E402

suite = silt.Suite()
READER = ["cache-dir=none", "memory-size=1M", "compact-rate=0"]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def docked(i):
    """A result of a docking run, as there are millions: little in common with itself, much with others."""
    rng = random.Random(i)
    atoms = "".join(f"ATOM  {k:5d}  {rng.choice('CNOS')}{k % 9}  LIG A   1    {rng.uniform(-40, 40):8.3f}"
                    f"{rng.uniform(-40, 40):8.3f}{rng.uniform(-40, 40):8.3f}  1.00  0.00\n" for k in range(20))
    return (json.dumps({"ligand": f"ZINC{i:012d}", "receptor": "6LU7_main_protease", "program": "vina 1.2.5",
                        "exhaustiveness": 32, "seed": rng.randrange(10**9), "box": [22.5, 24.0, 22.5],
                        "affinity_kcal_mol": round(rng.uniform(-11, -3), 3), "converged": True}) + "\n" +
            f"REMARK VINA RESULT: {rng.uniform(-11, -3):9.3f}\n" + atoms + "TER\nENDMDL\n").encode()


def fill(folder, n, first=0):
    os.makedirs(folder, exist_ok=True)
    for i in range(first, first + n):
        write(os.path.join(folder, f"{i}.pdbqt"), docked(i))


def train(t, v, *args, status=0):
    r = t.siltfs("train", *args, env=v.env, check_status=False)
    equal(r.returncode, status, f"train: {r.out} {r.err}")
    return r


def stored(m):
    c = m.counters()
    return c["pack.stored_bytes"], c["pack.raw_bytes"]


def objects(v, kind):
    top = os.path.join(v.bucket.path, v.name, kind)
    return {f: os.path.join(d, f) for d, _, files in os.walk(top) for f in files}


@suite.cases_for(storage=["file", "s3"])
def trained_on_demand(t, storage):
    v = t.volume(storage=storage)
    samples, n = t.folder(), 300
    fill(samples, 400, 10_000)
    m = t.mount(v, options=["compact-rate=0", "upload-threads=1"])
    fill(m / "before", n)
    bytes_before, raw = stored(m)
    said = train(t, v, "--dry-run", v.address, samples).out
    check("%" in said and "stored" not in said, said)
    said = train(t, v, v.address, samples).out
    check("stored as dictionary 1" in said, said)
    other = t.mount(v, options=["compact-rate=0"])
    fill(other / "after", n)
    bytes_after, raw_after = stored(other)
    equal(raw_after, raw, "bytes of the files")
    print(f"# stored bytes of a file of {raw // n}: {bytes_before // n} without, {bytes_after // n} with a dictionary")
    check(bytes_after < bytes_before * 0.85, f"{bytes_before} without, {bytes_after} with it")
    # The first mount takes it up by itself.
    def uses_it():
        a, _ = stored(m)
        fill(m / "later", 20, random.randrange(10**6))
        return (stored(m)[0] - a) / 20 < bytes_before / n * 0.85
    wait_until(uses_it, "the first mount to use it", 30)
    for m2 in (m, other, t.mount(v, options=READER)):
        for folder in ("before", "after"):
            for i in range(0, n, 7):
                equal(read(m2 / f"{folder}/{i}.pdbqt"), docked(i), f"{folder}/{i}")
    r = t.siltfs("fsck", "--data", v.address, env=v.env, check_status=False)
    equal(r.returncode, 0, f"fsck: {r.out} {r.err}")
    # Another one, for what comes now; what was written with the first is read with that.
    check("stored as dictionary 2" in train(t, v, "--size", "8K", v.address, m / "before", samples).out, "the next")
    last = t.mount(v, options=READER)
    fill(last / "last", 30)
    for folder in ("before", "after", "last"):
        equal(read(last / f"{folder}/7.pdbqt"), docked(7), folder)


@suite.case
def warmed_up_without_the_store(t):
    """After a warmup neither packs nor dictionaries are asked of the store, by later mounts of the cache directory too."""
    v = t.volume()
    samples, cache = t.folder(), t.folder()
    fill(samples, 200, 10_000)
    train(t, v, v.address, samples)
    writer = t.mount(v, options=["compact-rate=0"])
    fill(writer / "d", 40)
    m = t.mount(v, options=["compact-rate=0"], cache_dir=cache)
    t.siltfs("warmup", m / "d")
    m.umount()
    writer.umount()
    for kind in ("packs", "dicts"):
        for path in objects(v, kind).values():
            os.unlink(path)
    m = t.mount(v, options=["compact-rate=0"], cache_dir=cache)
    for i in range(40):
        equal(read(m / f"d/{i}.pdbqt"), docked(i), f"{i}")
    equal(m.counters()["store.gets"], 0, "GETs")


@suite.case
def trained_by_itself(t):
    v = t.volume()
    m = t.mount(v, options=["delete-grace=1", "compact-wait=1", "compact-rate=1G"])
    n = 1100
    fill(m / "d", n)
    wait_until(lambda: objects(v, "dicts"), "a dictionary", 60)
    before, _ = stored(m)
    wait_until(lambda: v.redis.cmd("HGET", "{0}c", "K") == b"1", "it to be the current one", 10)
    equal(len(objects(v, "dicts")), 1, "dictionaries")
    reader = t.mount(v, options=READER)
    for i in range(0, n, 13):
        equal(read(reader / f"d/{i}.pdbqt"), docked(i), f"{i}")
    with open(m.log) as f:
        check("are compressed with dictionary 1" in f.read(), "the log says so")


@suite.case
def nothing_in_common(t):
    """Noise: no dictionary is of use, and none is made."""
    v = t.volume()
    noise = t.folder()
    for i in range(80):
        write(os.path.join(noise, str(i)), random.Random(i).randbytes(4000))
    r = train(t, v, v.address, noise, status=1)
    check("saves nothing worth it" in r.err or "in common" in r.err, r.err)
    equal(objects(v, "dicts"), {}, "dictionaries")


@suite.case
def lost_and_damaged(t):
    """Files that need it are EIO, and a line in the log says which dictionary; others are read, and with the
    dictionary back all are."""
    v = t.volume()
    samples = t.folder()
    fill(samples, 200, 10_000)
    m = t.mount(v, options=["compact-rate=0"])
    fill(m / "before", 3)
    train(t, v, v.address, samples)
    m.umount()
    m = t.mount(v, options=["compact-rate=0"])
    fill(m / "after", 3)
    m.umount()
    name, path = next(iter(objects(v, "dicts").items()))
    good = read(path)
    os.chmod(path, 0o644)
    for bad in (None, good[:-1], good[:60] + bytes([good[60] ^ 1]) + good[61:], b"", good + b"x"):
        os.unlink(path)
        if bad is not None:
            write(path, bad)
        m = t.mount(v, options=READER)
        m.expect(" error: ")
        for i in range(3):
            equal(read(m / f"before/{i}.pdbqt"), docked(i), f"before/{i}")
            try:
                read(m / f"after/{i}.pdbqt")
                check(False, "an error")
            except OSError as e:
                equal(e.errno, 5, "errno")
        fill(m / "meanwhile", 2)        # without it
        with open(m.log) as f:
            equal(sum(f"dictionary dicts/{name} can't be had" in x for x in f), 1, "lines")
        os.unlink(path) if os.path.exists(path) else None
        write(path, good)
        for i in range(3):
            equal(read(m / f"after/{i}.pdbqt"), docked(i), f"after/{i}")
        m.umount()


@suite.case
def arguments(t):
    v = t.volume()
    for args, status, words in (((), 2, "takes an ADDRESS"), ((v.address,), 2, "at least one PATH"),
                                (("--size", "x", v.address, "/"), 2, "--size x"),
                                (("--size", "2M", v.address, "/"), 2, "--size 2M"),
                                (("--nonsense", v.address, "/"), 2, "unknown"),
                                ((v.address, t.folder()), 1, "at least 50 files"),
                                ((v.address, "/nowhere"), 1, "/nowhere")):
        r = train(t, v, *args, status=status)
        check(words in r.err, r.err)


suite.main()

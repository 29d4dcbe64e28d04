#!/usr/bin/env python3
"""warmup: its exit status is the truth about what is on the SSD."""
# timeout: 600
# asan: yes

import concurrent.futures
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import SILTFS, check, equal  # noqa: E402

suite = silt.Suite()
SMALL = 400 if silt.QUICK or silt.SANITIZED else 1500
BIG = (9 << 20) if silt.QUICK or silt.SANITIZED else (72 << 20)  # two windows of a map, five packs


@functools.cache  # the same files in every case
def noise(seed, n):
    return random.Random(seed).randbytes(n)


def make_data(m, top="data"):
    """Many small files in directories, some of MiBs, one of many packs, links and empty files."""
    files = {}
    for i in range(SMALL):
        files[f"{top}/d{i % 11}/s{i}"] = (i, 200 + (i * 7) % 6000)
    for i in range(5):
        files[f"{top}/m{i}"] = (f"m{i}", (2 << 20) + i)
    files[f"{top}/big"] = ("big", BIG)
    files[f"{top}/empty"] = ("e", 0)
    for folder in sorted({os.path.dirname(name) for name in files}):
        os.makedirs(m / folder, exist_ok=True)

    def write(name):
        with open(m / name, "wb") as f:
            f.write(noise(*files[name]))
    # Several writers, so that files share packs.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, files))
    os.symlink("big", m / f"{top}/link")
    os.symlink("nowhere", m / f"{top}/dangling")
    os.link(m / f"{top}/m0", m / f"{top}/hard")
    os.mkdir(m / f"{top}/emptydir")
    return files


def verify(m, files):
    for name, (seed, n) in files.items():
        with open(m / name, "rb") as f:
            check(f.read() == noise(seed, n), f"content of {name}")


def prepared(t, storage="file", shards=1, **mount):
    v = t.volume(storage, shards)
    m = t.mount(v)
    files = make_data(m)
    m.umount()
    return v, t.mount(v, **mount), files


def delta(m, before, *names):
    now = m.counters()
    return {n: now.get(n, 0) - before.get(n, 0) for n in names}


@suite.cases_for(storage=["file", "s3"], shards=[1, 8])
def after_it_nothing_is_fetched(t, storage, shards):
    """At most one GET a pack; after it, reading everything makes 0 S3 requests; a second warmup
    fetches nothing."""
    v, m, files = prepared(t, storage, shards)
    packs = len(v.bucket.objects())
    p = t.siltfs("warmup", m / "data", timeout=300)
    c = m.counters()
    check(0 < c["store.gets"] <= packs, f"{c['store.gets']} GETs for {packs} packs")
    check(re.search(r"\d", p.out + p.err), f"it says what it did: {p.out!r}")
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, "store.gets", "store.heads", "store.lists", "cache.misses"),
          {"store.gets": 0, "store.heads": 0, "store.lists": 0, "cache.misses": 0},
          "requests while reading everything")
    before = m.counters()
    t.siltfs("warmup", m / "data", timeout=300)
    equal(delta(m, before, "store.gets"), {"store.gets": 0}, "GETs of a second warmup")
    # Reads in random order and of parts, too.
    before = m.counters()
    rng = random.Random(1)
    with open(m / "data/big", "rb", buffering=0) as f:
        want = noise("big", BIG)
        for _ in range(100):
            at = rng.randrange(BIG)
            f.seek(at)
            n = rng.randrange(1, 5000)
            equal(f.read(n), want[at:at + n], f"{n} bytes at {at}")
    equal(delta(m, before, "store.gets"), {"store.gets": 0}, "GETs for random reads")
    # The cache is there after a restart of the daemon.
    m.umount()
    m = t.mount(v, cache_dir=m.cache_dir)
    verify(m, files)
    equal(m.counters()["store.gets"], 0, "GETs after a remount with the same cache")


@suite.case
def parts_of_a_tree_and_single_files(t):
    v, m, files = prepared(t)
    t.siltfs("warmup", m / "data/m3", m / "data/d4")
    before = m.counters()
    verify(m, {n: f for n, f in files.items() if n == "data/m3" or n.startswith("data/d4/")})
    equal(delta(m, before, "store.gets"), {"store.gets": 0}, "GETs for what was asked for")
    equal(t.siltfs("warmup", "--check", m / "data", check_status=False).returncode, 1,
          "--check of the whole tree")


@suite.case
def check_and_evict(t):
    v, m, files = prepared(t)
    p = t.siltfs("warmup", "--check", m / "data", check_status=False)
    equal(p.returncode, 1, "--check of a cold cache")
    equal(m.counters()["store.gets"], 0, "--check fetches nothing")
    t.siltfs("warmup", m / "data")
    equal(t.siltfs("warmup", "--check", m / "data").returncode, 0, "--check of a warm cache")
    t.siltfs("warmup", "--evict", m / "data")
    equal(t.siltfs("warmup", "--check", m / "data", check_status=False).returncode, 1,
          "--check after --evict")
    before = m.counters()
    verify(m, files)
    check(delta(m, before, "store.gets")["store.gets"] > 0, "after --evict bytes are fetched")


NO_REQUESTS = {"store.gets": 0, "cache.misses": 0, "cache.ssd_bad": 0}


def rot(slots, seed=1):
    """500 bytes of each slot become others."""
    rng = random.Random(seed)
    for _, used, path, at in slots:
        n = min(500, used)
        with open(path, "r+b") as f:
            f.seek(at + rng.randrange(used - n + 1))
            old = f.read(n)
            f.seek(-n, os.SEEK_CUR)
            f.write(bytes(b ^ 0x55 for b in old))


def result_of(p):
    return json.loads(p.out.splitlines()[-1])["result"]


@suite.case
def rot_on_the_ssd_while_unmounted(t):
    """Bytes that rotted on the SSD between two mounts are not taken for sound: --check says 1, names
    the files and fetches nothing; warmup fetches them again, and then nothing is damaged."""
    v, m, files = prepared(t)
    t.siltfs("warmup", m / "data")
    slots = m.slots()
    check(len(slots) > 10, f"{len(slots)} slots")
    m.umount()
    rot(slots)
    m = t.mount(v, cache_dir=m.cache_dir)
    m.expect("damaged")
    p = t.siltfs("warmup", "--check", m / "data", check_status=False)
    equal(p.returncode, 1, f"--check of rotten slots ({p.out}{p.err})")
    check("data/m0: damaged on the SSD" in p.err, f"it names what is damaged: {p.err[:500]}")
    full = [n for n, (_, size) in files.items() if size]
    told = int(re.search(r"(\d+) not on the SSD", p.out).group(1))
    equal(told, len(full) + 1, "files told to be damaged (with the second name of one)")
    equal(m.counters()["store.gets"], 0, "GETs of --check")
    p = t.siltfs("warmup", m / "data")
    check("0 files missing" in p.out, f"warmup says {p.out}")
    packs = len({pack for pack, *_ in slots})
    check(m.counters()["store.gets"] <= packs, f"GETs of warmup for {packs} packs")
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, *NO_REQUESTS), NO_REQUESTS, "what reading everything found")


@suite.case
def warmup_heals_rot_by_itself(t):
    """The same without --check before it; one rotten pack is fetched, not the others."""
    v, m, files = prepared(t)
    t.siltfs("warmup", m / "data")
    slots = m.slots()
    m.umount()
    rot(slots[:1])
    m = t.mount(v, cache_dir=m.cache_dir)
    m.expect("damaged")
    r = result_of(t.siltfs("warmup", "--json", m / "data"))
    packs = len({pack for pack, *_ in slots})
    equal((r["damaged_packs"], r["fetched_packs"], r["checked_packs"]), (1, 1, packs - 1),
          "packs damaged, fetched, found right")
    equal(m.counters()["store.gets"], 1, "GETs")
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, *NO_REQUESTS), NO_REQUESTS, "what reading everything found")


@suite.case
def the_ssd_is_read_back_once_a_mount(t):
    """What an earlier mount brought is read back by the first warmup (or --check), not by the next;
    what this mount brought is not read back; --verify reads back everything."""
    v, m, files = prepared(t)

    def read_back(m, *args, status=0):
        before = m.counters()
        p = t.siltfs("warmup", "--json", *args, m / "data", check_status=False)
        equal(p.returncode, status, f"status of warmup {args} ({p.err})")
        r = result_of(p)
        if r["checked_packs"] == 0:
            equal(delta(m, before, "cache.ssd_read_bytes"), {"cache.ssd_read_bytes": 0},
                  "bytes read from the SSD")
        return r["checked_packs"], r["damaged_packs"], r["fetched_packs"]
    packs = len(v.bucket.objects())
    equal(read_back(m), (0, 0, packs), "the first warmup")
    equal(read_back(m, "--check"), (0, 0, 0), "--check after it")
    m.umount()
    m = t.mount(v, cache_dir=m.cache_dir)
    info = json.loads(t.siltfs("info", "--json", m / "data/m1").out.splitlines()[-1])
    equal({e["cached"] for e in info["extents"]}, {"unchecked"}, "how info calls it")
    equal(read_back(m, "--check"), (packs, 0, 0), "--check of the next mount")
    info = json.loads(t.siltfs("info", "--json", m / "data/m1").out.splitlines()[-1])
    equal({e["cached"] for e in info["extents"]}, {"full"}, "how info calls it then")
    equal(read_back(m, "--check"), (0, 0, 0), "--check again")
    equal(read_back(m), (0, 0, 0), "warmup after it")
    m.umount()
    m = t.mount(v, cache_dir=m.cache_dir)
    equal(read_back(m), (packs, 0, 0), "warmup of the next mount")
    equal(read_back(m), (0, 0, 0), "warmup again")
    equal(read_back(m, "--verify"), (packs, 0, 0), "--verify")
    # Rot under the mount is what --verify is for.
    m.expect("damaged")
    rotten = m.slots()[:1]
    rot(rotten)
    equal(read_back(m, "--verify", "--check", status=1), (packs - 1, 1, 0), "--verify --check")
    equal(m.counters()["store.gets"], 0, "it fetched nothing")
    equal(read_back(m, "--verify"), (packs - 1, 0, 1), "--verify, which repairs")
    rot(m.slots()[:1])
    equal(read_back(m, "--verify"), (packs - 1, 1, 1), "--verify by itself")
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, *NO_REQUESTS), NO_REQUESTS, "what reading everything found")


@suite.cases_for(cut=["to nothing", "and made long again", "under readers"])
def slots_cut_under_the_mount(t, cut):
    """A file of slots that is cut while mounted: --check says 1 and names every file, warmup heals."""
    v, m, files = prepared(t)
    m.expect("damaged")
    t.siltfs("warmup", m / "data")
    path = os.path.join(m.cache_dir, "slots.000")
    size = os.path.getsize(path)
    os.truncate(path, 0)
    if cut == "and made long again":
        os.truncate(path, size)
    if cut == "under readers":
        verify(m, files)  # from the store, where the SSD has lost it
        t.siltfs("warmup", m / "data")
    else:
        p = t.siltfs("warmup", "--check", m / "data", check_status=False)
        equal(p.returncode, 1, f"--check ({p.out}{p.err})")
        names = re.findall(r"^missing: (.*?): ", p.err, re.M)
        want = [n for n, (_, size) in files.items() if size] + ["data/hard"]
        equal(sorted(names), sorted(m / n for n in want), "every file is named")
        equal(t.siltfs("warmup", m / "data").returncode, 0, "warmup")
    equal(os.path.getsize(path), size, "the file's size")
    equal(os.stat(path).st_blocks * 512 >= size, True, "its blocks are reserved again")
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, *NO_REQUESTS), NO_REQUESTS, "what reading everything found")
    m.umount()
    m = t.mount(v, cache_dir=m.cache_dir)
    equal(t.siltfs("warmup", "--check", m / "data").returncode, 0, "--check after a new mount")


@suite.case
def names_on_a_terminal(t):
    """The name of a missing file is written as it is, but gives no commands to a terminal."""
    m = t.mount(t.volume())
    os.mkdir(m / "data")
    with open(m / "data/a\x1b[31m\u00fc\u009b\x7f", "wb") as f:
        f.write(b"x" * 5000)
    check_it = [SILTFS, "warmup", "--check", m / "data"]
    plain = subprocess.run(check_it, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    equal(plain.returncode, 1, "status")
    check("data/a\x1b[31m\u00fc\u009b\x7f: ".encode() in plain.stderr, f"to a pipe: {plain.stderr!r}")
    ours, theirs = os.openpty()
    equal(subprocess.run(check_it, stderr=theirs, stdout=subprocess.DEVNULL).returncode, 1, "status")
    os.close(theirs)
    seen = os.read(ours, 65536)
    check("data/a?[31m\u00fc??: ".encode() in seen, f"to a terminal: {seen!r}")
    check(b"a\x1b[31m" not in seen, f"to a terminal: {seen!r}")
    os.close(ours)
    m.umount()


@suite.case
def slots_deleted_under_the_mount(t):
    """A file of slots that is deleted or replaced: warmup refuses, since it would be lost at the next
    mount; files are read as before."""
    v, m, files = prepared(t)
    t.siltfs("warmup", m / "data")
    path = os.path.join(m.cache_dir, "slots.000")
    os.unlink(path)
    for what in "deleted", "replaced":
        for args in (), ("--check",), ("--verify",):
            p = t.siltfs("warmup", *args, m / "data", check_status=False)
            equal(p.returncode, 2, f"status of warmup {args} ({p.err})")
            check("slots.000" in p.err, f"it says why: {p.err}")
        with open(path, "wb"):
            pass
    verify(m, files)
    m.umount()
    m = t.mount(v, cache_dir=m.cache_dir)
    equal(t.siltfs("warmup", "--check", m / "data", check_status=False).returncode, 1, "--check")
    t.siltfs("warmup", m / "data")
    verify(m, files)


@suite.case
def as_json_and_by_its_own_name(t):
    v, m, files = prepared(t)
    warmup = os.path.join(os.path.dirname(SILTFS), "warmup")
    command = [warmup] if os.path.exists(warmup) else [SILTFS, "warmup"]
    p = silt.run(*command, "--json", m / "data")
    lines = [json.loads(x) for x in p.out.splitlines() if x.strip()]
    check(lines, "JSON lines")
    text = json.dumps(lines[-1])
    total = sum(n for _, n in files.values())
    check(str(total) in text or str(total + (2 << 20)) in text,
          f"the bytes of all files ({total}) are in {text}")


@suite.case
def missing_objects_are_named(t):
    """1 with the list of what is missing, when objects are lost; the rest is on the SSD."""
    v, m, files = prepared(t)
    m.expect("damaged", " error: ")
    lone = m / "lone"
    before = {k for k, _ in v.bucket.objects()}
    m2 = t.mount(v)
    with open(m2 / "lone", "wb") as f:
        f.write(noise("lone", 50_000))
    m2.umount()
    key = next(k for k, _ in v.bucket.objects() if k not in before)
    v.bucket.delete(key)
    p = t.siltfs("warmup", m.path, check_status=False, timeout=300)
    equal(p.returncode, 1, f"status ({p.out} {p.err})")
    check("lone" in p.out + p.err, f"the lost file is named: {p.out} {p.err}")
    check("big" not in p.out + p.err, "only that is named")
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, "store.gets"), {"store.gets": 0}, "GETs for the rest")
    check(os.path.exists(lone), "its name is still there")


@suite.case
def a_cache_that_is_too_small(t):
    """2, refused, when it does not fit; nothing else breaks."""
    v = t.volume()
    m = t.mount(v)
    with open(m / "big", "wb") as f:
        for i in range(20):
            f.write(noise(i, 8 << 20))
    m.umount()
    m = t.mount(v, options=["cache-size=64M"])
    p = t.siltfs("warmup", m.path, check_status=False)
    equal(p.returncode, 2, f"status ({p.out} {p.err})")
    check(re.search("fit|space|small|size", p.out + p.err), f"says why: {p.err}")
    with open(m / "big", "rb") as f:
        for i in range(20):
            check(f.read(8 << 20) == noise(i, 8 << 20), f"part {i} through a cache too small")
    m.umount()
    m = t.mount(v, cache=False)
    equal(t.siltfs("warmup", m.path, check_status=False).returncode, 2, "without a cache directory")


@suite.cases_for(victim=["warmup", "daemon"])
def killed_and_resumed(t, victim):
    """kill -9 of warmup, or of the daemon, in the middle: run again, it fetches the rest and what it
    then says is true."""
    rgw = t.rgw()
    proxy = t.proxy(rgw.port)
    v = t.volume("s3", bucket=rgw.bucket(port=proxy.port))
    m = t.mount(v)
    files = make_data(m)
    m.umount()
    proxy.set(delay_ms=40)  # a slow link, so that there is a middle
    m = t.mount(v, options=["fetch-threads=1"])
    w = subprocess.Popen([SILTFS, "warmup", m.path], stdout=subprocess.DEVNULL,
                         stderr=subprocess.DEVNULL)
    silt.wait_until(lambda: m.counters()["store.gets"] >= 2 or w.poll() is not None, "the middle")
    if victim == "warmup":
        w.send_signal(signal.SIGKILL)
        w.wait()
    else:
        m.kill()
        check(w.wait(30) != 0, "warmup of a dead mount does not say it is done")
        m = t.mount(v, cache_dir=m.cache_dir)
    proxy.set(delay_ms=0)
    t.siltfs("warmup", m.path, timeout=300)
    before = m.counters()
    verify(m, files)
    equal(delta(m, before, "store.gets", "cache.misses"), {"store.gets": 0, "cache.misses": 0},
          "requests after the resumed warmup")


@suite.case
def while_files_change(t):
    """A tree that another mount changes during the warmup: no crash, and a status that is true for
    what was there."""
    v, m, files = prepared(t)
    other = t.mount(v)
    w = subprocess.Popen([SILTFS, "warmup", m / "data"], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    for i in range(200):
        name = f"data/d{i % 11}/new{i}"
        with open(other / name, "wb") as f:
            f.write(b"new")
        if i % 2:
            os.unlink(other / name)
    check(w.wait(120) in (0, 1), f"status {w.returncode}: {w.stdout.read()[-300:]}")
    t.siltfs("warmup", m / "data")
    verify(m, files)


suite.main()

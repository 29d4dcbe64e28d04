#!/usr/bin/env python3
"""A damaged pack, slot table or Redis record gives EIO for the file that it hits (or is healed from
the store) and a log line that names it; everything else goes on."""
# timeout: 400
# asan: yes

import errno
import os
import random
import re
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, raises  # noqa: E402

suite = silt.Suite()


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def noise(seed, n):
    return random.Random(seed).randbytes(n)


def in_packs_of_their_own(m, names, size=20_000):
    """Writes files one after the other, each closed alone: each in its own pack."""
    for n in names:
        write(m / n, noise(n, size))


def pack_of(v, before):
    new = [k for k, _ in v.bucket.objects() if k not in before]
    equal(len(new), 1, "packs that one lone file made")
    return new[0]


def log_names(m, *words):
    text = m.log_text()
    for w in words:
        check(re.search(w, text), f"the log does not say {w!r}:\n{text[-1500:]}")


@suite.cases_for(storage=["file", "s3"])
def damaged_pack(t, storage):
    """One byte of one object is wrong: EIO for the file there, a log line naming pack and inode, all
    other files are read."""
    v = t.volume(storage)
    m = t.mount(v)
    packs = {}
    for n in ("a", "b", "c"):
        before = {k for k, _ in v.bucket.objects()}
        write(m / n, noise(n, 20_000))
        packs[n] = pack_of(v, before)
    m.umount()
    body = bytearray(v.bucket.get(packs["b"]))
    body[5000] ^= 1
    v.bucket.put(packs["b"], bytes(body))
    m = t.mount(v)
    m.expect("damaged", " error: ")
    with raises(errno.EIO, "read of a damaged file"):
        read(m / "b")
    for n in ("a", "c"):
        equal(read(m / n), noise(n, 20_000), f"the file {n} beside it")
    ino = os.stat(m / "b").st_ino
    pack = packs["b"].rsplit("/", 1)[1].lstrip("0")
    log_names(m, pack, rf"\b{ino}\b|\b{ino:x}\b")
    check(m.counters().get("pack.damaged_frames", 0) > 0, "pack.damaged_frames counts it")
    write(m / "b", b"new bytes")
    equal(read(m / "b"), b"new bytes", "the file can be written anew")
    # A repaired object is read again after a new mount.
    m.umount()


@suite.cases_for(storage=["file", "s3"])
def missing_and_cut_packs(t, storage):
    v = t.volume(storage)
    m = t.mount(v)
    packs = {}
    for n in ("gone", "cut", "empty", "swapped", "fine"):
        before = {k for k, _ in v.bucket.objects()}
        write(m / n, noise(n, 20_000))
        packs[n] = pack_of(v, before)
    m.umount()
    good = v.bucket.get(packs["fine"])
    v.bucket.delete(packs["gone"])
    v.bucket.put(packs["cut"], v.bucket.get(packs["cut"])[:9000])
    v.bucket.put(packs["empty"], b"")
    v.bucket.put(packs["swapped"], good)  # a valid pack, but another one
    m = t.mount(v)
    m.expect("damaged", " error: ")
    for n in ("gone", "cut", "empty", "swapped"):
        with raises(errno.EIO, f"read of the file whose pack is {n}"):
            read(m / n)
        log_names(m, packs[n].rsplit("/", 1)[1].lstrip("0"))
    equal(read(m / "fine"), noise("fine", 20_000), "the file beside them")
    p = t.siltfs("warmup", m.path, check_status=False)
    equal(p.returncode, 1, f"warmup of a tree with lost objects ({p.out}{p.err})")
    for n in ("gone", "cut", "empty", "swapped"):
        check(n in p.out + p.err, f"warmup names {n}")
    check(not re.search(r"\bfine\b", p.out + p.err), "warmup names only what is missing")


@suite.case
def one_frame_of_a_shared_pack(t):
    """Many files in one pack: only the one whose frame is damaged is lost."""
    v = t.volume()
    m = t.mount(v)
    names = [f"f{i:03d}" for i in range(200)]
    fds = [os.open(m / n, os.O_CREAT | os.O_WRONLY) for n in names]
    for n, fd in zip(names, fds):
        os.write(fd, noise(n, 3000))
    os.sync()  # everything in as few packs as it likes
    for fd in fds:
        os.close(fd)
    m.umount()
    target = noise("f100", 3000)[1000:1100]
    for key, _ in v.bucket.objects():
        body = v.bucket.get(key)
        at = body.find(target)
        if at >= 0:
            v.bucket.put(key, body[:at] + b"\0" + body[at + 1:])
            break
    else:
        raise silt.Failure("the bytes of f100 are in no pack")
    m = t.mount(v)
    m.expect("damaged", " error: ")
    lost = []
    for n in names:
        try:
            equal(read(m / n), noise(n, 3000), n)
        except OSError as e:
            equal(e.errno, errno.EIO, f"errno for {n}")
            lost.append(n)
    equal(lost, ["f100"], "files lost")


@suite.case
def damaged_slots_are_healed(t):
    """Wrong bytes on the SSD are found by their checksum, dropped and fetched again: no reader sees
    them, none gets an error."""
    v = t.volume()
    m = t.mount(v)
    names = [f"f{i}" for i in range(40)]
    for n in names:
        write(m / n, noise(n, 150_000))
    t.siltfs("warmup", m.path)
    m.umount()
    data = max((os.path.join(d, f) for d, _, fs in os.walk(m.cache_dir) for f in fs),
               key=lambda p: os.stat(p).st_blocks)
    with open(data, "r+b") as f:
        size = os.fstat(f.fileno()).st_size
        at = 0
        while True:  # only where there is data: the file is preallocated
            f.seek(at)
            block = f.read(4096)
            if not block:
                break
            if block.strip(b"\0"):
                f.seek(at + 1000)
                f.write(b"\xde\xad")
            at += 40_000 // 4096 * 4096
            if at > min(size, 64 << 20):
                break
    m = t.mount(v, cache_dir=m.cache_dir)
    m.expect("damaged", "checksum", " error: ")
    for n in names:
        equal(read(m / n), noise(n, 150_000), n)
    check(m.counters().get("cache.ssd_bad", 0) > 0, "cache.ssd_bad counts what was dropped")


@suite.case
def damaged_slot_table(t):
    """Any part of the slot table may be garbage, or the whole file gone: the mount comes up, and what
    was cached there is fetched again."""
    v = t.volume()
    m = t.mount(v)
    names = [f"f{i}" for i in range(20)]
    for n in names:
        write(m / n, noise(n, 100_000))
    t.siltfs("warmup", m.path)
    cache_dir = m.cache_dir
    m.umount()
    files = sorted((os.path.join(d, f) for d, _, fs in os.walk(cache_dir) for f in fs),
                   key=lambda p: os.stat(p).st_blocks)
    tables = files[:-1]
    check(tables, f"files in the cache directory: {files}")
    rng = random.Random(5)

    def scribble(path):
        with open(path, "r+b") as f:
            size = os.fstat(f.fileno()).st_size
            for _ in range(40):
                f.seek(rng.randrange(max(1, min(size, 65536))))
                f.write(rng.randbytes(16))

    def zero(path):
        with open(path, "r+b") as f:
            f.write(bytes(os.fstat(f.fileno()).st_size))

    def cut(path):
        os.truncate(path, os.path.getsize(path) // 2)
    for what in (scribble, zero, cut, os.unlink):
        for path in tables:
            if os.path.exists(path):
                what(path)
        m = t.mount(v, cache_dir=cache_dir)
        m.expect("damaged", "slot table", "checksum", " error: ")
        for n in names:
            equal(read(m / n), noise(n, 100_000), f"{n} after {what.__name__}")
        m.umount()


def inode_key(ino):
    shard, seq = ino >> 48, ino & ((1 << 48) - 1)
    return "{%d}i%x" % (shard, seq // 64), seq % 64


@suite.cases_for(shards=[1, 8])
def damaged_inode_record(t, shards):
    """A record in Redis that does not decode: EIO for that file, a log line that names it; its
    neighbours in the same bucket are served."""
    v = t.volume(shards=shards)
    m = t.mount(v)
    os.mkdir(m / "d")
    names = [f"f{i}" for i in range(30)]
    for n in names:
        write(m / f"d/{n}", n.encode() * 100)
    ino = os.stat(m / "d/f7").st_ino
    m.umount()
    key, field = inode_key(ino)
    c = v.redis.connect()
    fields = dict(zip(*[iter(c.cmd("HGETALL", key))] * 2))
    record = fields.get(str(field).encode()) or fields.get(bytes([field]))
    check(record, f"no field {field} in {key}: {list(fields)[:5]}")
    name = str(field).encode() if str(field).encode() in fields else bytes([field])
    for bad in (b"", b"\xff" * 5, record[:3], record[:-1] + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                b"\x1f" + record[1:]):
        c.cmd("HSET", key, name, bad)
        m = t.mount(v)
        m.expect("damaged", " error: ", "DAMAGED")
        with raises(errno.EIO, f"stat of a file whose record is {bad[:8]!r}"):
            os.stat(m / "d/f7")
            read(m / "d/f7")
        for n in names:
            if n != "f7":
                equal(read(m / f"d/{n}"), n.encode() * 100, f"{n}, a neighbour of {bad[:8]!r}")
        try:
            listed = set(os.listdir(m / "d"))
            check(set(names) - {"f7"} <= listed, f"names listed: {sorted(listed)}")
        except OSError as e:
            raise silt.Failure(f"listing the directory of a damaged file: {e}")
        log_names(m, rf"\b{ino}\b|\b{ino:x}\b|{re.escape(key)}|f7")
        write(m / "d/new", b"goes on")
        os.unlink(m / "d/new")
        m.umount()
    c.cmd("HSET", key, name, record)
    m = t.mount(v)
    equal(read(m / "d/f7"), b"f7" * 100, "the restored record")


@suite.cases_for(shards=[1, 8])
def damaged_entry(t, shards):
    """An entry of a directory that does not decode: that name is EIO, left out of listings, named in the
    log and counted, and can be removed; all others are served."""
    v = t.volume(shards=shards)
    m = t.mount(v)
    os.mkdir(m / "d")
    names = [f"f{i}" for i in range(30)]
    for n in names:
        write(m / f"d/{n}", n.encode() * 100)
    dirs = ["sub1", "sub2"]
    for n in dirs:
        os.mkdir(m / f"d/{n}")
    ino = os.stat(m / "d").st_ino
    m.umount()
    c = v.redis.connect()
    key = "{%d}d%x:0" % (ino >> 48, ino & ((1 << 48) - 1))
    good = c.cmd("HGET", key, "f7")
    check(good, f"no entry f7 in {key}: {c.cmd('HKEYS', key)}")
    for bad in (b"", b"\x4f", b"\x08", b"\xff" * 12, b"\x18" + good[1:], b"\x48\xff\x0f", b"\x48\xff\x0f\x05",
                b"\x03" + good[1:], good + b"\1" * 8):
        c.cmd("HSET", key, "f7", bad)
        m = t.mount(v)
        m.expect("damaged", " error: ", "DAMAGED")
        what = f"with the entry {bad!r}"
        elsewhere = bad == b"\x48\xff\x0f\x05"  # well formed, of a shard that the volume does not have
        for call in () if elsewhere else (os.stat, os.lstat, read, lambda p: write(p, b"x"), os.listdir, os.readlink, os.rmdir,
                     lambda p: os.chmod(p, 0o600), lambda p: os.rename(p, m / "d/g"),
                     lambda p: os.rename(m / "d/f8", p)):
            try:
                call(m / "d/f7")
                raise silt.Failure(f"an operation on the name went through {what}")
            except OSError as e:
                check(e.errno in (errno.EIO, errno.ENOTDIR, errno.EINVAL, errno.EBUSY),
                      f"{os.strerror(e.errno)} {what}")
        with raises(errno.EIO, f"stat {what}"):
            os.stat(m / "d/f7")
        equal(sorted(os.listdir(m / "d")), sorted(set(names) - {"f7"} | set(dirs)), f"listed {what}")
        for n in names:
            if n != "f7":
                equal(read(m / f"d/{n}"), n.encode() * 100, f"{n} {what}")
        log_names(m, rf"f7.*\b{ino}\b")
        check(m.counters().get("meta.damaged_records", 0) > 0, "meta.damaged_records counts it")
        p = t.siltfs("debug", "digest", m / "d", check_status=False)
        equal(p.returncode, 0, f"debug digest {what} ({p.err})")
        write(m / "d/new", b"goes on")
        os.unlink(m / "d/new")
        m.umount()
    m = t.mount(v)
    m.expect("damaged", " error: ", "DAMAGED")
    silt.run("rm", m / "d/f7")
    log_names(m, rf"f7.*\b{ino}\b.*removed")
    check(not os.path.lexists(m / "d/f7"), "it is gone")
    write(m / "d/f7", b"anew")
    equal(read(m / "d/f7"), b"anew", "the name can be used again")
    silt.run("rm", "-r", m / "d")
    check(not os.path.lexists(m / "d"), "the directory can be emptied and removed: its count was right")
    m.umount()


@suite.case
def names_that_no_file_can_have(t):
    """They are left out of listings and named in the log; a kernel that is handed one refuses the whole
    directory."""
    v = t.volume()
    m = t.mount(v)
    os.mkdir(m / "d")
    names = [f"f{i}" for i in range(30)]
    for n in names:
        write(m / f"d/{n}", n.encode())
    ino = os.stat(m / "d").st_ino
    m.umount()
    c = v.redis.connect()
    key = "{0}d%x:0" % ino
    good = c.cmd("HGET", key, "f7")
    for bad in (b"a/b", b"/", b"n" * 256, b"m" * 100_000, b"zero\0in", b""):
        c.cmd("HSET", key, bad, good)
    for options in ([], ["consistency=relaxed"]):
        m = t.mount(v, options=options)
        m.expect("damaged", " error: ")
        for _ in range(3):
            equal(sorted(os.listdir(m / "d")), sorted(names), f"listed, {options}")
            equal(sorted(e.name for e in os.scandir(m / "d") if e.stat().st_size > 0), sorted(names),
                  f"listed with attributes, {options}")
            time.sleep(0.2)
        log_names(m, rf"a/b.*\b{ino}\b")
        check(m.counters().get("meta.damaged_records", 0) >= 6, "meta.damaged_records counts them")
        for n in names:
            equal(read(m / f"d/{n}"), n.encode(), n)
        m.umount()


@suite.case
def name_without_an_inode(t):
    """An entry whose inode is not there: EIO, and it can be removed, as what it was."""
    v = t.volume()
    m = t.mount(v)
    os.mkdir(m / "d")
    os.mkdir(m / "d/sub")
    write(m / "d/file", b"x")
    inodes = [os.stat(m / f"d/{n}").st_ino for n in ("sub", "file")]
    m.umount()
    for ino in inodes:
        key, field = inode_key(ino)
        equal(v.redis.connect().cmd("HDEL", key, field), 1, f"records removed of {ino}")
    m = t.mount(v)
    m.expect("damaged", " error: ")
    for n in ("sub", "file"):
        with raises(errno.EIO, f"stat of {n}"):
            os.stat(m / f"d/{n}")
        log_names(m, "is not there")
    silt.run("rm", m / "d/file")
    os.rmdir(m / "d/sub")
    os.rmdir(m / "d")


@suite.case
def damaged_extent_log(t):
    """The extents of one big file are garbage: EIO for it, the rest goes on."""
    v = t.volume()
    m = t.mount(v)
    write(m / "big", noise("big", 1 << 20))
    with open(m / "big", "r+b") as f:
        for at in range(0, 1 << 20, 100_000):
            f.seek(at)
            f.write(b"patch")
            f.flush()
            os.fsync(f.fileno())
    write(m / "fine", b"fine")
    ino = os.stat(m / "big").st_ino
    m.umount()
    c = v.redis.connect()
    key = "{%d}x%x" % (ino >> 48, ino & ((1 << 48) - 1))
    fields = c.cmd("HKEYS", key)
    check(fields, f"no extent log at {key}: {c.cmd('KEYS', '*')[:20]}")
    c.cmd("HSET", key, fields[0], b"\xff\xff\xff\xff garbage")
    m = t.mount(v)
    m.expect("damaged", " error: ", "DAMAGED")
    with raises(errno.EIO, "read of a file with a damaged extent log"):
        read(m / "big")
    equal(read(m / "fine"), b"fine", "the file beside it")
    log_names(m, rf"\b{ino}\b|\b{ino:x}\b|{re.escape(key)}")


@suite.case
def garbage_on_the_control_socket(t):
    """Damaged, oversized or unknown requests get an error line; they never end the daemon."""
    import socket
    v = t.volume()
    m = t.mount(v)
    path = os.getxattr(m.path, "user.siltfs.control").decode()
    check(path, "the mount has a control socket")
    for junk in (b"\n", b"{}\n", b"nonsense\n", b'{"cmd":"nosuch"}\n', b'{"cmd":5}\n', b"[1,2]\n",
                 b'{"cmd":"warmup"}\n', b'{"cmd":"warmup","inodes":["x",-1,{}]}\n',
                 b'{"cmd":"warmup","inodes":[99999999999999999999999]}\n',
                 b'{"cmd":"drop","inodes":7}\n', b"\0\xff\xfe\n", b'{"cmd":"status"',
                 b"x" * (3 << 20)):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(20)
        s.connect(path)
        try:
            s.sendall(junk)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        s.close()
        check(m.status(), "status still answers")
    write(m / "f", payload(1, 100))
    equal(read(m / "f"), payload(1, 100), "and files are served")


suite.main()

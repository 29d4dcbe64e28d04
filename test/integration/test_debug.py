#!/usr/bin/env python3
"""siltfs debug and siltfs info show what is stored, as it is; what they can't show is an error."""
# timeout: 300
# asan: yes

import json
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload  # noqa: E402

suite = silt.Suite()
SMALL, BIG, PATCH, PATCH_AT = 1000, 3 << 20, b"patched", 100_000


def write(path, data, mode="wb"):
    with open(path, mode) as f:
        f.write(data)


def number(path):
    return str(os.lstat(path).st_ino)


def made(t, **kwargs):
    """A volume with a bit of everything: d/n0 .. d/n9 (each in a pack of its own), a link to one, a
    symbolic link, a file with a patched piece."""
    v = t.volume(**kwargs)
    m = t.mount(v)
    os.mkdir(m / "d", 0o750)
    for i in range(10):
        write(m / f"d/n{i}", payload(i, SMALL))
    os.link(m / "d/n0", m / "hard")
    os.symlink("d/n0", m / "link")
    write(m / "big", os.urandom(BIG))
    with open(m / "big", "r+b") as f:
        f.seek(PATCH_AT)
        f.write(PATCH)
    return v, m


def told(text):
    """{"size": "1000", ...} of the lines of `debug inode`."""
    return dict(line.split(None, 1) for line in text.splitlines()[1:]
                if len(line.split(None, 1)) == 2 and line.startswith("  ") and line[2] != " ")


def refused(t, status, word, *args, env=None):
    p = t.siltfs(*args, check_status=False, env=env)
    equal(p.returncode, status, f"status of siltfs {' '.join(args)} ({p.out}{p.err})")
    check(re.search(word, p.err), f"siltfs {' '.join(args)} says {p.err!r}, not {word!r}")


@suite.cases_for(shards=[1, 8])
def inode(t, shards):
    """debug inode: the attributes that stat() gives, the target, the extents."""
    v, m = made(t, shards=shards)

    def show(name):
        return t.siltfs("debug", "inode", v.address, number(m / name)).out
    for name in ("d", "d/n3", "hard", "link", "big"):
        st = os.lstat(m / name)
        out = show(name)
        check(out.startswith(f"inode {st.st_ino}: key {{{st.st_ino >> 48}}}i"), f"it begins: {out[:80]!r}")
        got = told(out)
        equal(got["mode"], f"{st.st_mode:o}", f"mode of {name}")
        equal(got["owner"], f"{st.st_uid}:{st.st_gid}", f"owner of {name}")
        equal(got["mtime"], f"{st.st_mtime_ns // 10**9}.{st.st_mtime_ns % 10**9:09d}", f"mtime of {name}")
        if name != "d":
            equal((got["links"], got["size"]), (str(st.st_nlink), str(st.st_size)),
                  f"links and size of {name}")
    equal(told(show("link"))["target"], "d/n0", "target of the symbolic link")
    equal(told(show("d"))["parent"], "1", "parent of the directory")
    equal(told(show("d/n3"))["extents"], "inline", "the map of a small file")
    check(re.search(rf"off 0 len {SMALL} pack [0-9a-f]{{16}} at 48 stored \d+", show("d/n3")),
          f"its extent: {show('d/n3')}")
    out = show("big")
    equal(told(out)["extents"], "external", "the map of the patched file")
    check(re.search(rf"window 0: log of \d+ bytes\n +off 0 len {BIG} .*\n"
                    rf" +off {PATCH_AT} len {len(PATCH)} ", out), f"its extents: {out}")
    refused(t, 1, "no inode 987654", "debug", "inode", v.address, "987654")
    for bad in (("x",), ("0",), (), ("1", "2"), ("99999999999999999999999",)):
        refused(t, 2, "takes an ADDRESS", "debug", "inode", v.address, *bad)
    refused(t, 1, "cannot connect", "debug", "inode", f"redis://127.0.0.1:{silt.free_port()}", "1")
    # A damaged record is shown as bytes, and said to be damaged.
    ino = number(m / "d/n3")
    key, field = re.search(r"key (\S+) field (\d+)", show("d/n3")).groups()
    v.redis.cmd("HSET", key, field, b"\x1f\xff")
    p = t.siltfs("debug", "inode", v.address, ino, check_status=False)
    equal(p.returncode, 1, "status for a damaged record")
    check("1fff" in p.out and "damaged" in p.err, f"it says {p.out!r} {p.err!r}")


@suite.case
def bucket(t):
    """debug bucket: every name of a directory, with inode and type, also when it has many buckets."""
    v, m = made(t)
    os.mkdir(m / "many")
    for i in range(700):
        write(m / f"many/file-{i}", b"")

    def names(path):
        out = t.siltfs("debug", "bucket", v.address, number(path)).out
        found = re.findall(r"^  (\S+) +inode (\d+) type (\d+) place [0-9a-f]{13}$", out, re.M)
        equal(sum(int(n) for n in re.findall(r"^  (\d+) entries$", out, re.M)), len(found), "their count")
        return {n: (ino, kind) for n, ino, kind in found}, out.count("\nbucket {")
    for d, least in ((m.path, 1), (m / "d", 1), (m / "many", 2)):
        got, buckets = names(d)
        equal(got, {n: (number(f"{d}/{n}"), f"{os.lstat(f'{d}/{n}').st_mode & 0o170000:o}")
                    for n in os.listdir(d)}, f"names in {d}")
        check(buckets >= least, f"{buckets} buckets of {len(got)} names")
    refused(t, 1, "is no directory", "debug", "bucket", v.address, number(m / "big"))
    refused(t, 1, "no inode", "debug", "bucket", v.address, "987654")
    refused(t, 2, "takes an ADDRESS", "debug", "bucket", v.address)


@suite.cases_for(storage=["file", "s3"])
def pack(t, storage):
    """debug pack: header, index, and whether every checksum is right; from the store and from a
    file."""
    v, m = made(t, storage=storage)
    ino = number(m / "d/n0")
    extent = json.loads(t.siltfs("info", "--json", m / "d/n0").out)["extents"][0]
    key = f"packs/{extent['pack'][-2:]}/{extent['pack']}"
    body = v.bucket.get(key)
    p = t.siltfs("debug", "pack", v.address, extent["pack"], env=v.env)
    check(f"object {key} at " in p.out and f"pack {extent['pack']}, volume " in p.out, f"names: {p.out}")
    check(f"{len(body)} bytes" in p.out and ", 1 frames" in p.out, f"sizes: {p.out}")
    stored = int(extent["stored"])
    row = [line.split() for line in p.out.splitlines() if line.split()[1:2] == [ino]]
    equal(len(row), 1, "frames of the inode")
    equal(row[0][:4], ["48", ino, "0", str(SMALL)], "its frame: place, inode, offset, bytes")
    check(0 < int(row[0][4]) < stored, f"stored bytes {row[0][4]} of {stored} with their header")
    equal(p.out.splitlines()[-1], "verified: every checksum is right", "the last line")
    path = os.path.join(t.folder(), "pack")
    write(path, body)
    equal(t.siltfs("debug", "pack", path).out.splitlines(), p.out.splitlines()[1:], "the same, of a file")
    for at in range(0, len(body), 7):
        write(path, body[:at] + bytes([body[at] ^ 1]) + body[at + 1:])
        refused(t, 1, "damaged", "debug", "pack", path)
    write(path, body[:-1])
    refused(t, 1, "damaged", "debug", "pack", path)
    refused(t, 1, "header is damaged", "debug", "pack", "/dev/null")
    refused(t, 1, "No such file", "debug", "pack", path + "-not")
    refused(t, 1, "no such object", "debug", "pack", v.address, "fffff", env=v.env)
    for bad in ("0", "xyz", ""):
        refused(t, 2, "pack id in hex", "debug", "pack", v.address, bad)
    # An object that is another pack is not taken for this one.
    v.bucket.put(key, v.bucket.get(next(k for k, _ in v.bucket.objects() if k != key)))
    refused(t, 1, "damaged: is pack", "debug", "pack", v.address, extent["pack"], env=v.env)


@suite.case
def slots(t):
    """debug slots: each used slot of the SSD with what is in it; the bytes are there."""
    v, m = made(t)
    equal(t.siltfs("debug", "slots", m.path).out, "0 slots used, of 64.0 KiB each\n", "of an empty cache")
    t.siltfs("warmup", m.path)
    objects = {k.rsplit("/", 1)[1]: v.bucket.get(k) for k, _ in v.bucket.objects()}
    used = m.slots()
    equal(len(used), sum(-(-len(b) // 65536) for b in objects.values()), "used slots")
    equal({p for p, *_ in used}, set(objects), "packs in them")
    for line in t.siltfs("debug", "slots", m.path).out.splitlines()[1:-1]:
        slot, name, piece, pack_len, valid, freq = line.split()
        part = objects[name][int(piece) * 65536:][:65536]
        equal(int(pack_len), len(objects[name]), f"length of pack {name}")
        equal(int(valid, 16), (1 << -(-len(part) // 4096)) - 1, "its chunks")
        check(freq in "0123", f"freq {freq}")
        with open(os.path.join(m.cache_dir, "slots.000"), "rb") as f:
            f.seek(int(slot) * 65536)
            check(f.read(len(part)) == part, f"the bytes of slot {slot}")
    refused(t, 2, "not on a siltfs mount", "debug", "slots", t.tmp)
    refused(t, 2, "takes a MOUNTPOINT", "debug", "slots")
    bare = t.mount(v, cache=False)
    equal(t.siltfs("debug", "slots", bare.path).out, "no SSD cache\n", "without a cache")


@suite.case
def digest(t):
    """debug digest: the same for two trees with the same names, modes, sizes, targets and bytes, on any
    file system; another when one of these differs."""
    v, m = made(t)
    copy = os.path.join(t.folder(), "copy")

    def of(path):
        line = t.siltfs("debug", "digest", path).out
        check(re.fullmatch(r"[0-9a-f]{32}  \d+ directories, \d+ files, \d+ bytes\n", line), f"it is {line!r}")
        return line
    shutil.copytree(m.path, copy, symlinks=True)
    os.chmod(copy, os.stat(m.path).st_mode & 0o7777)
    first = of(m.path)
    check(first.endswith(f"2 directories, 12 files, {11 * SMALL + BIG} bytes\n"), f"counts: {first}")
    equal(of(copy), first, "digest of a copy elsewhere")
    seen = {first}

    def differs(what):
        new = of(copy)
        check(new.split()[0] not in {x.split()[0] for x in seen}, f"the digest does not see {what}")
        seen.add(new)
    with open(os.path.join(copy, "big"), "r+b") as f:
        f.seek(BIG // 2)
        f.write(b"other")
    differs("bytes")
    os.rename(os.path.join(copy, "d/n9"), os.path.join(copy, "d/m9"))
    differs("a name")
    os.chmod(os.path.join(copy, "d/n1"), 0o600)
    differs("a mode")
    os.truncate(os.path.join(copy, "d/n2"), 1)
    differs("a size")
    os.unlink(os.path.join(copy, "link"))
    os.symlink("d/n1", os.path.join(copy, "link"))
    differs("a target")
    os.mkdir(os.path.join(copy, "empty"))
    differs("an empty directory")
    refused(t, 1, "No such file", "debug", "digest", copy + "-not")
    refused(t, 2, "takes a PATH", "debug", "digest")


@suite.case
def redis(t):
    """debug redis: the answer of a command, bytes escaped; an error is one."""
    v, m = made(t)
    equal(t.siltfs("debug", "redis", v.address, "PING").out, '"PONG"\n', "PING")
    v.redis.cmd("SET", "x", b"a\x00\xff\"b")
    equal(t.siltfs("debug", "redis", v.address, "GET", "x").out, '"a\\x00\\xff\\x22b"\n', "GET")
    v.redis.cmd("DEL", "x")
    keys = re.findall(r'"(.*)"', t.siltfs("debug", "redis", v.address, "KEYS", "*").out)
    equal(sorted(keys), sorted(k.decode() for k in v.redis.cmd("KEYS", "*")), "KEYS")
    p = t.siltfs("debug", "redis", v.address, "NOSUCH", check_status=False)
    equal((p.returncode, p.out[:11]), (1, "(error) ERR"), "an unknown command")
    refused(t, 2, "takes an ADDRESS", "debug", "redis", v.address)
    refused(t, 1, "cannot connect", "debug", "redis", f"redis://127.0.0.1:{silt.free_port()}", "PING")


@suite.case
def info(t):
    """info: inode, mode, links, size and extents of paths, and whether these are on the SSD."""
    v, m = made(t)
    st = os.stat(m / "d/n0")
    out = t.siltfs("info", m / "d/n0", m / "d").out
    head = (f"{m / 'd/n0'}: inode {st.st_ino}, mode {st.st_mode:o}, links 2, size {SMALL}, "
            r"version [0-9a-f]{16}, map inline\n")
    check(re.match(head, out), f"it begins {out[:200]!r}")
    check("0 of 1 extents on the SSD" in out and f"{m / 'd'}: inode " in out, f"it goes on {out!r}")
    t.siltfs("warmup", m / "d/n0")
    check("1 of 1 extents on the SSD" in t.siltfs("info", m / "d/n0").out, "after warmup")
    lines = [json.loads(x) for x in t.siltfs("info", "--json", m / "big").out.splitlines()]
    equal({x["path"] for x in lines}, {m / "big"}, "paths in JSON")
    extents = [e for x in lines for e in x["extents"]]
    equal([(e["off"], e["len"], e["cached"]) for e in extents],
          [(0, PATCH_AT, "absent"), (PATCH_AT, len(PATCH), "absent"),
           (PATCH_AT + len(PATCH), BIG - PATCH_AT - len(PATCH), "absent")], "extents")
    equal(extents[2]["skip"] - extents[0]["skip"], PATCH_AT + len(PATCH), "where the rest begins")
    names = {k.rsplit("/", 1)[1] for k, _ in v.bucket.objects()}
    check({e["pack"] for e in extents} <= names, "their packs are in the store")
    refused(t, 2, "not on a siltfs mount", "info", t.tmp)
    refused(t, 2, "No such file", "info", m / "not")
    refused(t, 2, "one or more PATHs", "info")
    refused(t, 2, "unknown option", "info", "--not", m.path)


@suite.case
def wrong_words(t):
    refused(t, 2, "debug what", "debug")
    refused(t, 2, 'no "nosuch" to debug', "debug", "nosuch")
    for what in ("inode", "bucket", "redis", "pack", "slots", "digest"):
        check(f"\n  {what} " in t.siltfs("debug", "--help").out, f"debug --help names {what}")


suite.main()

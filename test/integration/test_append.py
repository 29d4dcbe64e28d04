#!/usr/bin/env python3
"""O_APPEND from several processes on several mounts: every record is in the file once, whole, and those
of one process in their order; what was acknowledged survives the death of a daemon."""
# timeout: 900
# asan: yes

import errno
import os
import random
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, raises  # noqa: E402

suite = silt.Suite()
HEAD = struct.Struct("<4sIII")  # magic, writer, number, length of what follows

# Appends records to a file; after each that is durable, a line with its number goes to standard output.
WRITER = r"""
import os, random, struct, sys
path, writer, count, how, seed, longest = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4], \
    *map(int, sys.argv[5:7])
rng = random.Random(seed)
fd = None
for number in range(count):
    n = rng.randrange(longest) if rng.randrange(10) else rng.randrange(longest * 10)
    record = struct.pack("<4sIII", b"SREC", writer, number, n) + bytes([writer * 31 + number & 255]) * n
    if fd is None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    if os.write(fd, record) != len(record):
        sys.exit("short write")
    if how == "reopen":
        os.close(fd)
        fd = None
        print(number, flush=True)
    elif how == "fsync" or number % 16 == 15:
        os.fsync(fd)
        print(number, flush=True)
if fd is not None:
    os.close(fd)
print(count - 1, flush=True)
"""


def start(path, writer, count, how, seed, longest=200):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, str(writer), str(count), how,
                             str(seed), str(longest)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def records(data):
    """{writer: [numbers in the order of the file]}; fails at a record that is torn."""
    out, at = {}, 0
    while at < len(data):
        check(len(data) - at >= HEAD.size, f"half a head at {at}")
        magic, writer, number, n = HEAD.unpack_from(data, at)
        check(magic == b"SREC", f"no record at {at}: {data[at:at + 16]!r}")
        body = data[at + HEAD.size:at + HEAD.size + n]
        equal(body, bytes([writer * 31 + number & 255]) * n, f"record {number} of writer {writer} at {at}")
        out.setdefault(writer, []).append(number)
        at += HEAD.size + n
    return out


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


@suite.cases_for(shards=[1, 4])
def four_mounts_of_four_processes(t, shards):
    """Half of them reopen the file for each record, half sync."""
    count = 100 if silt.QUICK or silt.SANITIZED else 800
    v = t.volume(shards=shards)
    mounts = [t.mount(v) for _ in range(4)]
    os.mkdir(mounts[0] / "d")
    open(mounts[0] / "d/log", "w").close()
    writers = [start(mounts[i % 4] / "d/log", i, count,
                     ("reopen", "fsync", "reopen", "some")[i // 4], i) for i in range(16)]
    for i, w in enumerate(writers):
        _, err = w.communicate(timeout=800)
        equal((w.returncode, err), (0, ""), f"writer {i}")
    data = read_file(mounts[1] / "d/log")
    got = records(data)
    for i in range(16):
        equal(got.get(i), list(range(count)), f"records of writer {i}")
    for m in mounts:  # whoever wrote, whatever its kernel had cached
        equal(read_file(m / "d/log") == data, True, "what each mount reads")
    for m in mounts:
        m.umount()
    equal(read_file(t.mount(v) / "d/log") == data, True, "what a new mount reads")


@suite.case
def large_records_across_windows(t):
    """Records up to nearly 1 MiB, over the borders of packs and windows, are whole."""
    v = t.volume()
    mounts = [t.mount(v) for _ in range(3)]
    path = [m / "log" for m in mounts]
    open(path[0], "w").close()
    writers = [start(path[i % 3], i, 40 if silt.QUICK else 150, "some", i, 100000) for i in range(6)]
    for i, w in enumerate(writers):
        _, err = w.communicate(timeout=800)
        equal((w.returncode, err), (0, ""), f"writer {i}")
    got = records(read_file(path[2]))
    equal(sorted(got), list(range(6)), "writers")
    for i in range(6):
        equal(got[i], list(range(40 if silt.QUICK else 150)), f"records of writer {i}")


@suite.case
def killed_daemons(t):
    """What fsync() or close() acknowledged before kill -9 is there, once."""
    v = t.volume()
    stays = t.mount(v)
    open(stays / "log", "w").close()
    for turn in range(2 if silt.QUICK else 5):
        dies = t.mount(v)

        writers = [start(dies / "log", turn * 10 + i, 10**6, ("reopen", "fsync")[i % 2], turn * 10 + i)
                   for i in range(4)]
        going_on = start(stays / "log", turn * 10 + 9, 200, "fsync", turn)
        acked = [-1] * 4
        for _ in range(10 + random.randrange(40)):
            for i, w in enumerate(writers):
                acked[i] = int(w.stdout.readline())
        dies.kill()
        for i, w in enumerate(writers):
            for line in w.communicate(timeout=60)[0].splitlines():
                acked[i] = int(line)
        _, err = going_on.communicate(timeout=300)
        equal((going_on.returncode, err), (0, ""), "the writer of the other mount")
        got = records(read_file(stays / "log"))
        equal(got[turn * 10 + 9], list(range(200)), "records of the other mount")
        for i in range(4):
            numbers = got.get(turn * 10 + i, [])
            equal(numbers, list(range(len(numbers))), f"records of writer {i}, in order and once")
            check(len(numbers) > acked[i], f"writer {i}: {len(numbers)} records, {acked[i]} acknowledged")


@suite.case
def lost_replies(t):
    """A commit whose answer is lost with the connection is applied once."""
    v = t.volume()
    mounts = [t.mount(v) for _ in range(2)]
    for m in mounts:
        m.expect(r"redis at .*closed")
    open(mounts[0] / "log", "w").close()
    count = 60 if silt.QUICK else 300
    writers = [start(mounts[i % 2] / "log", i, count, "fsync", i) for i in range(4)]
    cuts = 0
    while any(w.poll() is None for w in writers):
        v.redis.cmd("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        cuts += 1
        # Not before something got done: a busy machine needs longer to connect than a fixed time would leave it.
        done, since = v.redis.function_calls(), time.monotonic()
        while any(w.poll() is None for w in writers) and time.monotonic() - since < 10 and \
                v.redis.function_calls() < done + 4:
            time.sleep(0.01)
        time.sleep(random.choice([0, 0.02, 0.1, 0.5]))
        for w in writers:
            if w.poll() is None:
                break
        else:
            break
    for i, w in enumerate(writers):
        _, err = w.communicate(timeout=300)
        equal((w.returncode, err), (0, ""), f"writer {i}")
    check(cuts > 3, f"{cuts} cuts")
    got = records(read_file(mounts[0] / "log"))
    for i in range(4):
        equal(got.get(i), list(range(count)), f"records of writer {i} after {cuts} cuts")


@suite.case
def refused_appends_are_tried_again(t):
    """A full Redis refuses commits of appends whose bytes are stored: later they are in, once."""
    v = t.volume()
    m = t.mount(v)
    m.expect(r"OOM", r"not stored", r"refused", r"failed")
    fd = os.open(m / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, payload(0, 1000))
    os.fsync(fd)
    v.redis.cmd("CONFIG", "SET", "maxmemory", "1")
    os.write(fd, payload(1, 1000))
    with raises((errno.ENOSPC, errno.EIO), "fsync() with Redis full"):
        os.fsync(fd)
    v.redis.cmd("CONFIG", "SET", "maxmemory", "0")
    os.write(fd, payload(2, 1000))
    os.fsync(fd)
    os.close(fd)
    equal(read_file(m / "log"), payload(0, 1000) + payload(1, 1000) + payload(2, 1000), "bytes")


@suite.case
def appends_mixed_with_other_writes(t):
    """On one mount: pwrite elsewhere, appends, truncation to 0 by another, mappings."""
    v = t.volume()
    m, other = t.mount(v), t.mount(v)
    a = os.open(m / "f", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    b = os.open(m / "f", os.O_RDWR)
    want = bytearray()
    for i in range(30):
        os.write(a, payload(i, 300))
        want += payload(i, 300)
        os.pwrite(b, b"hello", i * 7)
        want[i * 7:i * 7 + 5] = b"hello"
        equal(os.pread(a, 100000, 0), bytes(want), f"bytes after {i}")
    os.fsync(a)
    equal(read_file(other / "f"), bytes(want), "bytes seen elsewhere")
    fd = os.open(other / "f", os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"theirs")
    os.close(fd)
    os.write(a, b"ours")
    os.fsync(a)
    equal(os.pread(a, 100000, 0), bytes(want) + b"theirsours", "after an append elsewhere, same descriptor")
    os.truncate(other / "f", 0)
    os.write(a, b"first")
    os.fsync(a)
    equal(read_file(other / "f"), b"first", "after a truncation elsewhere")
    equal(os.pread(a, 100, 0), b"first", "after a truncation elsewhere, here")
    os.close(a)
    os.close(b)


suite.main()

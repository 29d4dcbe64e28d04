#!/usr/bin/env python3
"""Big and odd trees: a thousand levels, names of every byte, very many small directories. By hand with
larger numbers: --directories 1000000; one directory of 10,000,000 entries is bench/big-directory."""
# timeout: 400

import errno
import os
import shutil
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, raises  # noqa: E402

suite = silt.Suite()
suite.parser.add_argument("--directories", type=int, default=500 if silt.QUICK else 2000)
SHARDS = {"shards": [1, 8]}
LEVELS = 1000


def descend(top, names, make=False):
    """A descriptor of top/names[0]/names[1]/..., whatever the length of that path."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for n in names:
        if make:
            os.mkdir(n, dir_fd=fd)
        inner = os.open(n, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


def leaf(fd, flags=os.O_RDONLY):
    return os.open("leaf", flags, 0o644, dir_fd=fd)


@suite.cases_for(**SHARDS)
def a_thousand_levels(t, shards):
    """A tree of 1,000 levels is made, read from another mount, moved by its top, refused where it would
    lie within itself, and removed."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    os.mkdir(a / "top")
    names = [f"level-{i}" for i in range(LEVELS)]
    fd = descend(a / "top", names, make=True)
    with os.fdopen(leaf(fd, os.O_CREAT | os.O_WRONLY), "wb") as f:
        f.write(b"at the bottom")
    with raises(errno.EINVAL, "a directory moved into its own descendant"):
        os.rename(a / "top", "inside", dst_dir_fd=fd)
    os.rename(a / "top", a / "moved")
    os.mkdir(a / "other")
    os.rename(a / "moved", a / "other/moved")
    # What was deep stays reachable through the descriptor, under its new parent.
    equal(os.stat("leaf", dir_fd=fd).st_size, 13, "size by a descriptor from before")
    os.close(fd)
    fd = descend(b / "other/moved", names)
    with os.fdopen(leaf(fd), "rb") as f:
        equal(f.read(), b"at the bottom", "read by the other mount")
    os.close(fd)
    path = b / "other/moved"
    for i in range(0, LEVELS, 250):  # in parts that a path can name
        path = os.path.join(path, *names[i:i + 250])
        if len(path) > 4000:
            break
        check(os.path.isdir(path), f"{i + 250} levels by their path")
    run_rm(b / "other")
    equal(os.listdir(a.path), [], "left after rm -r")


def run_rm(path):
    silt.run("rm", "-r", path)


@suite.cases_for(**SHARDS)
def names_of_every_byte(t, shards):
    """Names may have every byte but / and NUL, in every place, up to 255 of them."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    os.mkdir(a / "d")
    top, there = os.fsencode(a / "d"), os.fsencode(b / "d")
    allowed = [i for i in range(1, 256) if i != ord("/")]
    names = {bytes([i]) for i in allowed if i != ord(".")}
    names |= {b"x" + bytes([i]) + b"y" for i in allowed}
    names |= {bytes([i]) * 255 for i in allowed}
    names |= {bytes(allowed), bytes(allowed)[::-1]}
    for n in names:
        fd = os.open(os.path.join(top, n), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(fd, n)
        os.close(fd)
    equal(set(os.listdir(there)), names, "names listed by the other mount")
    for n in names:
        with open(os.path.join(there, n), "rb") as f:
            equal(f.read(), n, f"content of {n!r}")
    for n in sorted(names)[::7]:
        os.rename(os.path.join(there, n), os.path.join(there, n[:250] + b"moved"))
        check(not os.path.lexists(os.path.join(top, n)), f"{n!r} was moved")
    for n in os.listdir(there):
        os.unlink(os.path.join(there, n))
    equal(os.listdir(top), [], "left")


@suite.cases_for(**SHARDS)
def many_small_directories(t, shards):
    """Very many directories of one file each: made by four threads, walked by another mount, removed;
    nothing is left in Redis but what was there before."""
    v = t.volume("file", shards)
    a, b = t.mount(v), t.mount(v)
    n = t.args.directories
    groups = max(10, n // 1000)
    os.mkdir(a / "warm")
    os.rmdir(a / "warm")
    for g in range(groups):
        os.mkdir(a / f"g{g}")
    wrong = []

    def make(part):
        try:
            for i in part:
                d = a / f"g{i % groups}/d{i}"
                os.mkdir(d)
                with open(f"{d}/f", "wb") as f:
                    f.write(b"%d" % i)
        except OSError as e:
            wrong.append(e)
    in_four(make, n)
    equal(wrong, [], "failures while making them")
    seen = 0
    for d, dirs, files in os.walk(b.path):
        if files:
            with open(os.path.join(d, "f"), "rb") as f:
                equal(os.path.basename(d), f"d{int(f.read())}", "the file of a directory")
            equal(files, ["f"], f"files of {d}")
            seen += 1
    equal(seen, n, "directories walked by the other mount")

    def remove(part):
        try:
            for i in part:
                shutil.rmtree(b / f"g{i % groups}/d{i}")
        except OSError as e:
            wrong.append(e)
    in_four(remove, n)
    equal(wrong, [], "failures while removing them")
    for g in range(groups):
        equal(os.listdir(a / f"g{g}"), [], f"left in g{g}")
        equal(os.stat(a / f"g{g}").st_nlink, 2, f"links of g{g}")


def in_four(f, n):
    threads = [threading.Thread(target=f, args=(range(k, n, 4),)) for k in range(4)]
    for x in threads:
        x.start()
    for x in threads:
        x.join()


suite.main()

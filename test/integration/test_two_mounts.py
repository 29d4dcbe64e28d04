#!/usr/bin/env python3
"""Two mounts of one volume, as on two nodes. Default consistency is close-to-open, exactly: after
close() returns on one, an open() on the other sees the bytes; names that one makes, moves or removes
are seen by the other's next lookup of them."""
# timeout: 600
# asan: yes

import errno
import os
import random
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload, raises  # noqa: E402

suite = silt.Suite()
SHORT = silt.QUICK or silt.SANITIZED
SHARDS = {"shards": [1, 8]}


def pair(t, shards=1, storage="file", options=()):
    v = t.volume(storage, shards)
    return v, t.mount(v, options=options), t.mount(v, options=options)


# The kernel keeps names and attributes for a second by default; without that, other mounts' changes of
# names are seen at once.
NO_KERNEL_CACHE = ["attr-timeout=0", "entry-timeout=0", "dir-entry-timeout=0"]


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def in_threads(*functions):
    """Runs functions side by side; the first one's exception is ours."""
    wrong = []

    def guard(f):
        try:
            f()
        except BaseException as e:
            wrong.append(e)
    threads = [threading.Thread(target=guard, args=(f,)) for f in functions]
    for x in threads:
        x.start()
    for x in threads:
        x.join()
    if wrong:
        raise wrong[0]


@suite.case
def close_to_open_of_listed_files(t):
    """After close() returns on node A, an open() on node B sees the bytes, also when B's kernel has the
    name and the old size from a listing, and looked the file up just before."""
    _, a, b = pair(t)
    os.mkdir(a / "d")
    for i in range(10):
        name = f"d/f{i}"
        write(a / name, b"0123456789")
        for e in os.scandir(b / "d"):
            e.stat()
        if i % 2:
            os.stat(b / name)
            os.listdir(b / "d")
        write(a / name, b"x" * (10 + i % 3 * 10))
        equal(read(b / name), b"x" * (10 + i % 3 * 10), name)
        # Again at once: that open may not be answered with what the one before it was told.
        for e in os.scandir(b / "d"):
            e.stat()
        os.close(os.open(b / name, os.O_RDONLY))
        write(a / name, b"y" * (11 + i % 3 * 10))
        equal(read(b / name), b"y" * (11 + i % 3 * 10), f"{name}, opened twice after a listing")
        write(a / name, b"x" * (10 + i % 3 * 10))
        with open(b / name, "ab") as f:
            f.write(b"tail")
        equal(read(a / name), b"x" * (10 + i % 3 * 10) + b"tail", f"{name}, appended to")


@suite.case
def close_to_open_of_another_name(t):
    """The same with hard links: what a lookup of one name brought must not stand for the open of another that
    was listed before, and so is opened without a lookup."""
    _, a, b = pair(t)
    os.mkdir(a / "d")
    for i in range(20):
        write(a / f"d/f{i}", b"")
        os.link(a / f"d/f{i}", a / f"d/g{i}")
        for e in os.scandir(b / "d"):
            e.stat()
        os.link(a / f"d/f{i}", a / f"d/late{i}")
        os.stat(b / f"d/late{i}")
        write(a / f"d/f{i}", b"written since")
        equal(read(b / f"d/g{i}"), b"written since", f"g{i}")


@suite.case
def attributes_do_not_go_back(t):
    """A mount that made a file in a directory knows its attributes for a moment by itself; when it has heard
    of another mount's change to it, that is over."""
    _, a, b = pair(t)
    os.mkdir(a / "p")
    for i in range(20):
        d = f"p/d{i}"
        os.mkdir(a / d)
        os.stat(b / d)
        write(b / f"{d}/mine", b"")
        os.mkdir(a / f"{d}/sub")
        links = [e.stat().st_nlink for e in os.scandir(b / "p") if e.name == f"d{i}"]
        os.listdir(b / d)
        again = os.stat(b / d).st_nlink
        check(again >= links[0], f"{d}: {links[0]} links, then {again}")


@suite.case
def append_to_listed_files(t):
    """O_APPEND goes behind what another mount wrote and closed, also when the kernel has the old size
    from a listing, and through /proc/self/fd."""
    _, a, b = pair(t)
    os.mkdir(a / "d")
    for i in range(10):
        name = f"d/f{i}"
        write(a / name, b"0123456789")
        os.listdir(b / "d")
        for e in os.scandir(b / "d"):
            e.stat()
        write(a / name, b"x" * 20)
        fd = os.open(b / name, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"tail")
        os.close(fd)
        equal(read(a / name), b"x" * 20 + b"tail", name)
        path = os.open(b / name, os.O_PATH)
        for _ in range(2):
            fd = os.open(f"/proc/self/fd/{path}", os.O_WRONLY | os.O_APPEND)
            os.write(fd, b"more")
            os.close(fd)
        os.close(path)
        equal(read(a / name), b"x" * 20 + b"tailmoremore", f"{name}, by descriptor")


@suite.cases_for(**SHARDS)
def close_to_open(t, shards):
    """After close() returns on node A, an open() on node B sees the bytes."""
    _, a, b = pair(t, shards)
    rng = random.Random(7)
    os.mkdir(a / "d")
    rounds = 300 if SHORT else 3000
    for i in range(rounds):
        # The same few files again and again, sizes that differ and sizes that don't, both ways.
        w, r = (a, b) if i % 3 else (b, a)
        name = f"d/f{i % 5}"
        data = payload(i, rng.choice([10, 10, 10, 4096, 4096, 9000, 200_000]))
        write(w / name, data)
        got = read(r / name)
        check(got == data, f"round {i}: {len(got)} bytes read after close() of {len(data)} bytes"
              f" in the other mount; the read begins {got[:24]!r}, want {data[:24]!r}")


@suite.cases_for(**SHARDS)
def close_to_open_of_parts(t, shards):
    """The same for overwrites in the middle, appends and truncates of a file that the other mount
    has read (and so has in its caches)."""
    _, a, b = pair(t, shards)
    rng = random.Random(8)
    model = bytearray(payload("start", 400_000))
    write(a / "f", model)
    for i in range(60 if SHORT else 400):
        w, r = (a, b) if i % 2 else (b, a)
        equal(len(read(r / "f")), len(model), f"round {i}: size before")
        kind = rng.randrange(3)
        fd = os.open(w / "f", os.O_RDWR)
        if kind == 0:
            at, data = rng.randrange(len(model)), payload(i, rng.randrange(1, 3000))
            os.pwrite(fd, data, at)
            model[at:at + len(data)] = data
        elif kind == 1:
            data = payload(i, rng.randrange(1, 3000))
            os.pwrite(fd, data, len(model))
            model += data
        else:
            n = max(1000, len(model) - rng.randrange(3000))
            os.ftruncate(fd, n)
            del model[n:]
        os.close(fd)
        check(read(r / "f") == bytes(model), f"round {i}, {['overwrite', 'append', 'truncate'][kind]}"
              ": the other mount reads something else")


@suite.case
def fsync_is_seen_by_a_later_open(t):
    """After fsync() returns on A, an open() on B sees the bytes, though A's file is still open."""
    _, a, b = pair(t)
    fd = os.open(a / "f", os.O_CREAT | os.O_RDWR)
    for i in range(50 if SHORT else 300):
        data = payload(i, 5000)
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        check(read(b / "f") == data, f"round {i}: bytes after fsync()")
    os.close(fd)


@suite.cases_for(**SHARDS)
def names_are_seen(t, shards):
    """A name that A makes, renames or removes is so for B's next lookup that the kernel does not
    answer from its own cache (here: none)."""
    _, a, b = pair(t, shards, options=NO_KERNEL_CACHE)
    for i in range(8):
        os.mkdir(a / f"d{i}")
    for i in range(40 if SHORT else 300):
        x, y = f"d{i % 8}/n{i % 3}", f"d{(i * 5 + 1) % 8}/m{i % 3}"
        write(a / x, b"%d" % i)
        equal(read(b / x), b"%d" % i, f"round {i}: a new file")
        os.rename(a / x, a / y)
        equal(read(b / y), b"%d" % i, f"round {i}: a renamed file")
        with raises(errno.ENOENT, f"round {i}: the old name"):
            os.open(b / x, os.O_RDONLY)
        os.unlink(b / y)
        with raises(errno.ENOENT, f"round {i}: a removed file"):
            os.open(a / y, os.O_RDONLY)
        fd = os.open(a / x, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.close(fd)
        with raises(errno.EEXIST, f"round {i}: O_EXCL over the other's file"):
            os.open(b / x, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.unlink(a / x)


@suite.case
def names_are_seen_within_the_timeouts(t):
    """With the default timeouts, names and attributes that the other mount changed are seen after a
    second or so at the latest."""
    _, a, b = pair(t)
    os.mkdir(a / "d")
    for i in range(3):
        write(a / "d/x", b"%d" % i)
        equal(read(b / "d/x"), b"%d" % i, "a new file")
        os.chmod(a / "d/x", 0o600 + i)
        silt.wait_until(lambda: os.stat(b / "d/x").st_mode & 0o777 == 0o600 + i, "the new mode", 3)
        os.rename(a / "d/x", a / "d/y")
        silt.wait_until(lambda: not os.path.exists(b / "d/x"), "the old name to go", 3)
        equal(os.listdir(b / "d"), ["y"], "the listing")
        os.unlink(a / "d/y")
        silt.wait_until(lambda: not os.path.exists(b / "d/y"), "the removed name to go", 3)


@suite.cases_for(**SHARDS)
def exclusive_create_has_one_winner(t, shards):
    """Of two O_EXCL creates of one name, one wins."""
    _, a, b = pair(t, shards)
    os.mkdir(a / "d")
    n = 100 if SHORT else 600
    wins = {"a": set(), "b": set()}

    def racer(m, who):
        def go():
            for i in range(n):
                try:
                    os.close(os.open(m / f"d/{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    wins[who].add(i)
                except FileExistsError:
                    pass
        return go
    in_threads(racer(a, "a"), racer(b, "b"))
    equal(wins["a"] & wins["b"], set(), "names that both made")
    equal(len(wins["a"] | wins["b"]), n, "names that one made")


@suite.cases_for(**SHARDS)
def a_replaced_name_is_always_there(t, shards):
    """rename() that replaces is atomic for who looks from elsewhere: the name is there throughout, though
    what it named may be gone by the time its attributes are asked for (the kernel looks again then; ESTALE
    if it was replaced once more meanwhile)."""
    _, a, b = pair(t, shards)
    for i in range(4):
        os.mkdir(a / f"from{i}")
    os.mkdir(a / "to")
    os.mkdir(a / "to/dir")
    write(a / "to/file", b"0")
    ended = threading.Event()

    def replace():
        for i in range(20 if SHORT else 150):
            d = a / f"from{i % 4}"
            os.mkdir(f"{d}/dir")
            os.rename(f"{d}/dir", a / "to/dir")
            write(f"{d}/file", b"%d" % i)
            os.rename(f"{d}/file", a / "to/file")
        ended.set()

    def look():
        while not ended.is_set():
            for name in ("dir", "file"):
                try:
                    os.stat(b / f"to/{name}")
                except OSError as e:
                    equal(e.errno, errno.ESTALE, f"stat of {name}")
    in_threads(replace, look, look)


@suite.cases_for(**SHARDS)
def concurrent_creates_in_one_directory(t, shards):
    """Creates of different names in one directory from two mounts never fail or get lost."""
    _, a, b = pair(t, shards)
    os.mkdir(a / "d")
    n = 300 if SHORT else 2000

    def maker(m, tag):
        def go():
            for i in range(n):
                write(m / f"d/{tag}-{i}", b"%s %d" % (tag.encode(), i))
        return go
    in_threads(maker(a, "a0"), maker(a, "a1"), maker(b, "b0"), maker(b, "b1"))
    want = {f"{tag}-{i}" for tag in ("a0", "a1", "b0", "b1") for i in range(n)}
    for m in (a, b):
        equal(set(os.listdir(m / "d")) ^ want, set(), "names missing or too many")
    for name in random.Random(1).sample(sorted(want), 200):
        tag, i = name.split("-")
        other = b if tag[0] == "a" else a
        equal(read(other / f"d/{name}"), f"{tag} {i}".encode(), f"content of {name}")


@suite.cases_for(**SHARDS)
def readdir_while_the_other_side_changes_it(t, shards):
    """Entries that exist throughout are seen exactly once by every listing, whatever the other mount
    creates, deletes or renames meanwhile."""
    _, a, b = pair(t, shards)
    os.mkdir(a / "d")
    stay = {f"stays-{i:04d}" for i in range(1500)}
    for n in stay:
        os.close(os.open(a / f"d/{n}", os.O_CREAT | os.O_WRONLY))
    stop = threading.Event()
    changes = [0]

    def churn():
        rng, there, i = random.Random(3), [], 0
        while not stop.is_set():
            i += 1
            r = rng.random()
            if r < 0.6 or len(there) < 50:
                n = f"comes-{i}"
                os.close(os.open(a / f"d/{n}", os.O_CREAT | os.O_WRONLY))
                there.append(n)
            elif r < 0.9:
                os.unlink(a / f"d/{there.pop(rng.randrange(len(there)))}")
            else:
                n = there.pop(rng.randrange(len(there)))
                os.rename(a / f"d/{n}", a / f"d/moved-{i}")
                there.append(f"moved-{i}")
            changes[0] += 1

    def list_it():
        try:
            for i in range(20 if SHORT else 100):
                names = os.listdir(b / "d")
                seen = [n for n in names if n.startswith("stays-")]
                equal(len(names), len(set(names)), f"listing {i}: a name came twice")
                equal(set(seen) ^ stay, set(), f"listing {i}: entries that stay")
        finally:
            stop.set()
    in_threads(churn, list_it)
    check(changes[0] > (20 if SHORT else 100), f"only {changes[0]} changes were made during the listings")


@suite.case
def a_mount_that_is_away_does_not_stop_the_other(t):
    """kill -9 of one mount: the other goes on at once, and sees everything that was closed."""
    _, a, b = pair(t)
    for i in range(100):
        write(a / f"f{i}", payload(i, 3000))
    a.kill()
    for i in range(100):
        equal(read(b / f"f{i}"), payload(i, 3000), f"file {i}")
    write(b / "after", b"x")


suite.main()

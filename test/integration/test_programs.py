#!/usr/bin/env python3
"""Real programs on a mount, each beside the same run in an ordinary folder: git, sqlite3 with a writer that
is killed, tar, cp and rsync of a tree with everything in it, a build with four jobs, a Python venv."""
# timeout: 600

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from silt import check, equal, payload  # noqa: E402

suite = silt.Suite()
SHARDS = {"shards": [1, 8]}
GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
       "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": "1700000000 +0000",
       "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org",
       "GIT_COMMITTER_DATE": "1700000000 +0000"}


def git(top, *args):
    return silt.run("git", "-C", top, "-c", "gc.auto=0", "-c", "safe.directory=*", *args, env=GIT,
                    timeout=300).out


def both(t, m, function):
    """function(folder) on the mount and in an ordinary folder; their results must be the same."""
    got = function(os.path.join(m.path, "w"))
    want = function(t.folder("ordinary"))
    equal(got, want, "the mount, and an ordinary folder")


def sources():
    """{path: bytes} of siltfs's own sources: a real tree, also where there is no repository."""
    out = {}
    for top in ("meta", "cache", "fs", "tools", "test"):
        for d, dirs, files in os.walk(os.path.join(silt.ROOT, top)):
            dirs[:] = [x for x in dirs if x not in ("out", "__pycache__")]
            for name in files:
                path = os.path.join(d, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    with open(path, "rb") as f:
                        out[os.path.relpath(path, silt.ROOT)] = f.read()
    return out


def lay_out(top, files):
    for path, data in files.items():
        full = os.path.join(top, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as f:
            f.write(data)


@suite.cases_for(**SHARDS)
def git_repository(t, shards):
    """init, commits, branch, merge, clone, repack, gc, fsck: the same commits come out, nothing is lost."""
    m = t.mount(t.volume(shards=shards))
    os.mkdir(m / "w")
    files = sources()

    def work(top):
        repo = os.path.join(top, "repo")
        os.mkdir(repo)
        lay_out(repo, files)
        git(repo, "init", "-q", "-b", "main")
        git(repo, "add", "-A")
        git(repo, "commit", "-qm", "all of it")
        git(repo, "checkout", "-qb", "side")
        for i, path in enumerate(sorted(files)[:40]):
            with open(os.path.join(repo, path), "ab") as f:
                f.write(b"line %d\n" % i)
        git(repo, "mv", "meta", "renamed")
        git(repo, "commit", "-qam", "changed and moved")
        git(repo, "checkout", "-q", "main")
        git(repo, "rm", "-rq", "tools")
        git(repo, "commit", "-qm", "less")
        git(repo, "merge", "-q", "--no-edit", "-X", "ours", "side")
        git(repo, "clone", "-q", "--no-local", repo, os.path.join(top, "clone"))
        git(repo, "gc", "-q", "--prune=now")
        clone = os.path.join(top, "clone")
        out = [git(r, "rev-parse", "HEAD^{tree}", "HEAD") for r in (repo, clone)]
        for r in (repo, clone):
            git(r, "fsck", "--full", "--strict")
            equal(git(r, "status", "--porcelain"), "", "git status")
        return out, sorted(os.listdir(clone))
    both(t, m, work)


WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode=" + sys.argv[2])
db.execute("pragma cache_size=20")      # so that pages are written before the commit, too
i = db.execute("select coalesce(max(batch), 0) from t").fetchone()[0]
while True:
    i += 1
    db.execute("begin immediate")
    for k in range(30):
        db.execute("insert or replace into t values (?, ?, ?)", ((i * 7 + k) % 500, i, "%d-" % i * 200))
    db.execute("update n set batch = ?", (i,))
    db.execute("commit")
    print(i, flush=True)
"""


@suite.cases_for(mode=["delete", "wal"])
def sqlite_with_a_killed_writer(t, mode):
    """kill -9 of the writer in the middle, over and over: the database is sound, what it acknowledged is
    there, and nothing is there in part."""
    m = t.mount(t.volume())
    path = m / "db"
    with sqlite3.connect(path) as db:
        db.execute("create table t (k integer primary key, batch integer, v text)")
        db.execute("create index b on t (batch)")
        db.execute("create table n (batch integer)")
        db.execute("insert into n values (0)")
    db.close()
    rng = random.Random(5)
    for i in range(4 if silt.QUICK else 10):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, mode], stdout=subprocess.PIPE)
        acknowledged = 0
        for _ in range(rng.randrange(1, 12)):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout.read().split():
            acknowledged = int(line)
        writer.wait()
        db = sqlite3.connect(path)
        equal(db.execute("pragma integrity_check").fetchall(), [("ok",)], f"kill {i}: integrity_check")
        last = db.execute("select batch from n").fetchone()[0]
        check(acknowledged <= last <= acknowledged + 1,
              f"kill {i}: batch {last} is the last, {acknowledged} was acknowledged")
        equal(db.execute("select count(*) from t where batch = ?", (last,)).fetchone()[0], 30,
              f"kill {i}: rows of the last batch")
        db.close()
    # The same statements give the same table as in an ordinary folder.
    os.mkdir(m / "w")

    def table(top):
        db = sqlite3.connect(os.path.join(top, "same"))
        db.execute(f"pragma journal_mode={mode}")
        db.execute("create table t (k integer primary key, v text)")
        for k in range(3000):
            db.execute("insert into t values (?, ?)", (k * 7919 % 10007, "v%d" % k * 20))
            if k % 300 == 299:
                db.commit()
        db.execute("delete from t where k % 3 = 0")
        db.commit()
        db.execute("vacuum")
        rows = db.execute("select * from t order by k").fetchall()
        db.close()
        return hashlib.sha1(repr(rows).encode()).hexdigest()
    both(t, m, table)


def sample(top):
    """A tree with everything that a backup has to carry."""
    rng = random.Random(3)
    os.mkdir(top)
    for i in range(120):
        d = os.path.join(top, *[f"d{rng.randrange(4)}" for _ in range(rng.randrange(4))])
        os.makedirs(d, exist_ok=True)
        p = os.path.join(d, rng.choice(["plain", "with space", "\u00fcber", "x" * 200]) + str(i))
        with open(p, "wb") as f:
            f.write(payload(i, rng.choice([0, 1, 4096, 5000, 100_000])))
        os.chown(p, rng.randrange(3000), rng.randrange(3000))
        os.chmod(p, rng.choice([0o644, 0o600, 0o4755, 0o2755, 0o444]))
        if i % 5 == 0:
            os.setxattr(p, "user.note", payload(i, 50 * (i % 7)))
            os.setxattr(p, "trusted.note", b"t%d" % i)
        if i % 6 == 0:
            silt.run("setfacl", "-m", f"u:{1000 + i}:r,g:55:rw", p)
        if i % 8 == 0:
            os.link(p, p + ".link")
        if i % 9 == 0:
            os.symlink(os.path.basename(p), p + ".sym")
            os.lchown(p + ".sym", 7, 8)
        os.utime(p, ns=(10**18 + i, 10**18 + i * 1_000_000_007))
    with open(os.path.join(top, "sparse"), "wb") as f:
        f.seek(3_000_000)
        f.write(b"end")
    os.mkfifo(os.path.join(top, "fifo"), 0o640)
    silt.run("setfacl", "-d", "-m", "u:1001:rwx", os.path.join(top, "d0"))
    for i, (d, _, _) in enumerate(sorted(os.walk(top))):
        os.chmod(d, rng.choice([0o755, 0o1777, 0o2775]))
        os.utime(d, ns=(10**18, 10**18 + i))


def everything(top):
    """describe_tree, with attributes, ACLs, and which names are one file."""
    out, inodes = silt.describe_tree(top), {}
    for path, entry in sorted(out.items()):
        p = os.path.join(os.fsencode(top), path)
        entry["xattrs"] = {n: os.getxattr(p, n, follow_symlinks=False)
                           for n in os.listxattr(p, follow_symlinks=False)}
        st = os.lstat(p)
        if not stat.S_ISDIR(st.st_mode):
            entry["same as"] = inodes.setdefault(st.st_ino, path)
    return out


@suite.cases_for(**SHARDS)
def trees_there_and_back(t, shards):
    """tar, rsync -aHAX and cp -a carry bytes, modes, owners, times, links, attributes and ACLs in and out
    again; rsync's second run finds nothing to do."""
    m = t.mount(t.volume(shards=shards))
    outside = t.folder("ordinary")
    sample(outside + "/src")
    want = everything(outside + "/src")
    flags = ["--xattrs", "--xattrs-include=*", "--acls", "--sparse"]

    def tar(a, b):
        os.mkdir(b)
        silt.run("tar", *flags, "-C", a, "-cf", outside + "/archive", ".")
        silt.run("tar", *flags, "-C", b, "-xpf", outside + "/archive")
    copies = {"tar": tar, "cp": lambda a, b: silt.run("cp", "-a", a, b),
              "rsync": lambda a, b: silt.run("rsync", "-aHAXS", "--modify-window=-1", a + "/", b + "/")}
    for name, copy in copies.items():
        copy(outside + "/src", m / name)
        got = everything(m / name)
        for path in want:
            equal(got.get(path), want[path], f"{name} in, {path!r}")
        equal(len(got), len(want), f"{name} in: how many")
        copy(m / name, f"{outside}/{name}")
        equal(everything(f"{outside}/{name}"), want, f"{name} out")
    again = silt.run("rsync", "-aHAXSi", outside + "/src/", m / "rsync/").out
    equal(again, "", "a second rsync's changes")


def c_project(top, files):
    """A small C project with generated sources; each unit includes others' headers."""
    os.mkdir(top)
    for i in range(files):
        with open(f"{top}/u{i}.h", "w") as f:
            f.write(f"#pragma once\nint u{i}(int x);\n")
        with open(f"{top}/u{i}.c", "w") as f:
            includes = "".join(f'#include "u{(i + k) % files}.h"\n' for k in range(5))
            f.write(f"{includes}int u{i}(int x) {{ return x * {i + 3} + {i}; }}\n")
    calls = "".join(f"\tx = u{i}(x) % 1000003;\n" for i in range(files))
    headers = "".join(f'#include "u{i}.h"\n' for i in range(files))
    with open(f"{top}/main.c", "w") as f:
        f.write(f"#include <stdio.h>\n{headers}int main(void)\n{{\n\tint x = 1;\n{calls}"
                "\tprintf(\"%d\\n\", x);\n}\n")
    with open(f"{top}/build.ninja", "w") as f:
        f.write("rule cc\n command = gcc -O1 -g0 -MD -MF $out.d -c $in -o $out\n depfile = $out.d\n"
                "rule ar\n command = rm -f $out && ar rcsD $out $in\n"
                "rule ld\n command = gcc $in -o $out\n")
        objects = " ".join(f"o/u{i}.o" for i in range(files))
        for i in range(files):
            f.write(f"build o/u{i}.o: cc u{i}.c\n")
        f.write(f"build o/main.o: cc main.c\nbuild libu.a: ar {objects}\nbuild prog: ld o/main.o libu.a\n")


@suite.case
def building_with_four_jobs(t):
    """ninja -j4: the program runs where it was built, a second run builds nothing, a changed header what
    includes it."""
    m = t.mount(t.volume())
    os.mkdir(m / "w")
    files = 12 if silt.QUICK else 40

    def work(top):
        top += "/project"
        c_project(top, files)
        first = silt.run("ninja", "-j4", "-C", top, timeout=300).out
        check(f"[{files + 3}/{files + 3}]" in first, f"ninja built something else:\n{first}")
        result = silt.run(top + "/prog").out
        check("no work to do" in silt.run("ninja", "-C", top).out, "the second ninja built something")
        with open(top + "/u3.h", "a") as f:
            f.write("int never_called(void);\n")
        some = silt.run("ninja", "-j4", "-n", "-C", top).out.count("] gcc")
        with open(top + "/libu.a", "rb") as f:
            return result, some, hashlib.sha1(f.read()).hexdigest()
    both(t, m, work)


@suite.case
def a_python_venv(t):
    """python3 -m venv, a package in it that is compiled and imported, scripts that are started."""
    m = t.mount(t.volume())
    os.mkdir(m / "w")

    def work(top):
        venv = top + "/venv"
        silt.run("/usr/bin/python3", "-m", "venv", "--without-pip", venv)
        python = venv + "/bin/python"
        site = silt.run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").out.strip()
        check(site.startswith(top), f"the venv installs to {site}")
        shutil.copytree(os.path.dirname(silt.__file__), site + "/package",
                        ignore=shutil.ignore_patterns("__pycache__"))
        with open(site + "/package/__init__.py", "w") as f:
            f.write("answer = 42\n")
        silt.run(python, "-m", "compileall", "-q", "-j2", site)
        out = silt.run(python, "-c", "import package, sys; print(package.answer, package.__cached__, "
                       "sys.prefix)").out
        with open(venv + "/bin/script", "w") as f:
            f.write(f"#!{python}\nimport package\nprint(package.answer)\n")
        os.chmod(venv + "/bin/script", 0o755)
        return (out.replace(top, "TOP"), silt.run(venv + "/bin/script").out,
                sorted(os.path.relpath(os.path.join(d, n), venv)
                       for d, _, names in os.walk(venv) for n in names))
    both(t, m, work)


suite.main()

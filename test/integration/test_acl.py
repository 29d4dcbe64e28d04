#!/usr/bin/env python3
"""POSIX ACLs: what they say, what they inherit and whom they let in is the same as on the machine's own
file system (ext4), step by step, as root and as other users. An ACL that one mount sets counts on
another as soon as the attributes are seen there."""
# timeout: 600
# asan: yes

import os
import stat
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import silt  # noqa: E402
from sidebyside import (ACCESS, DEFAULT, MEMBER, NAMED, OTHER, OWNER, acl, acl_of,  # noqa: E402
                        acl_text, as_user, compare, outcome)
from silt import check, equal, wait_until  # noqa: E402

suite = silt.Suite()
SHARDS = {"shards": [1, 8]}
EVERYBODY = ["allow_other"]
AT_ONCE = EVERYBODY + ["attr-timeout=0", "entry-timeout=0", "dir-entry-timeout=0"]

ACLS = [
    "u::rwx g::r-x o::r-x",
    "u::--- g::--- o::---",
    "u::rw- u:1002:rw- g::r-- m::rw- o::---",
    "u::rw- u:1002:--- g::r-- m::rw- o::rw-",
    "u::rwx u:1002:rwx g::--- m::r-x o::--x",
    "u::rw- g::r-- g:2000:rw- m::rw- o::---",
    "u::rw- g::r-- g:2000:--- g:1003:rwx m::rwx o::r--",
    "u::r-- u:0:rwx u:1002:-w- g::rwx g:1001:--- m::--- o::rwx",
    "u::rwx g::rw- m::r-- o::---",
    "u::rwx u:1001:--- u:1002:r-x g::r-x g:1005:-wx m::rwx o::--x",
]
INVALID = ["", "u::rwx", "u::rwx g::r-x", "g::rwx u::rwx o::rwx", "u::rwx u:5:rwx g::rwx o::rwx",
           "u::rwx g::rwx g:5:r-- o::rwx", "u::rwx g::rwx m::rwx", "u::rwx g::rwx o::rwx o::rwx",
           "u::rwx u::r-- g::rwx o::rwx", "u:5:rwx u::rwx g::rwx m::rwx o::rwx"]


def mode_of(path):
    return oct(os.lstat(path).st_mode)


def seen(path):
    return mode_of(path), acl_of(path), acl_of(path, DEFAULT), sorted(os.listxattr(path))


@suite.cases_for(**SHARDS)
def set_get_chmod(t, shards):
    """Setting an access ACL sets the mode; chmod changes the ACL; one that says no more than the mode
    isn't kept; the set-group-ID bit goes when somebody outside the group sets one."""
    def script(s):
        n = 0
        for text in ACLS:
            for mode in (0o644, 0o2755, 0o6777, 0o40755, 0o42770):
                n += 1
                p = s.make(f"n{n}", mode, (1001, 2000))
                what = f"{text} on {mode:o}"
                by = OWNER if n % 2 else (1001, 1001, [2000])
                s.step(f"{by} sets {what}", lambda: os.setxattr(p, ACCESS, acl(text)), by)
                s.step(f"after {what}", lambda: seen(p))
                for new in (0o600, 0o4751, 0o2020):
                    s.step(f"chmod {new:o} {what}", lambda: os.chmod(p, new))
                    s.step(f"after chmod {new:o} {what}", lambda: seen(p))
                s.step("chown", lambda: os.chown(p, 1001, 1003))
                s.step("after chown", lambda: seen(p))
                for _ in range(2):
                    s.step("remove", lambda: os.removexattr(p, ACCESS), OWNER)
                    s.step("after remove", lambda: seen(p))
        f, d = s.make("f"), s.make("d", 0o40755)
        os.symlink("f", s.path("l"))
        for text in INVALID:
            for p in (f, d):
                for kind in (ACCESS, DEFAULT):
                    s.step(f"invalid {text}", lambda: os.setxattr(p, kind, acl(text)))
                    s.step(f"after invalid {text}", lambda: seen(p))
        for blob in (b"", b"\1\0\0\0", b"\2\0\0\0", acl(ACLS[2])[:-1], b"\2\0\0\0" + b"\3" * 8):
            s.step(f"blob {blob}", lambda: os.setxattr(f, ACCESS, blob))
            s.step(f"after blob {blob}", lambda: seen(f))
        s.step("default of a file", lambda: os.setxattr(f, DEFAULT, acl(ACLS[2])))
        s.step("of a link", lambda: os.setxattr(s.path("l"), ACCESS, acl(ACLS[2]), follow_symlinks=False))
        s.step("somebody else's", lambda: os.setxattr(f, ACCESS, acl(ACLS[2])), OWNER)
        s.step("somebody else's, away", lambda: os.removexattr(f, ACCESS), OWNER)
    m = t.mount(t.volume(shards=shards), options=EVERYBODY)
    check(compare(t, m, script) > 500, "steps")


@suite.cases_for(**SHARDS)
def inheritance(t, shards):
    """What is made in a directory with a default ACL gets its ACL from it and the mode asked for, not
    from the umask; directories hand it on."""
    def script(s):
        for i, text in enumerate(ACLS):
            top = s.make(f"d{i}", 0o42777 if i % 3 == 0 else 0o40777, (1001, 2000))
            s.step("set", lambda: os.setxattr(top, DEFAULT, acl(text)))
            s.step("after", lambda: seen(top))
            for umask in (0, 0o022, 0o077, 0o777):
                def make():
                    os.umask(umask)
                    got = []
                    for mode in (0o777, 0o666, 0o4640, 0o2711, 0):
                        p = os.path.join(top, f"{umask:o}-{mode:o}")
                        got.append(outcome(lambda: os.close(os.open(p, os.O_CREAT | os.O_RDWR, mode))))
                        got.append(outcome(lambda: os.mkdir(p + "d", mode)))
                        got.append(outcome(lambda: os.mkdir(p + "d/sub", mode)))
                        got.append(outcome(lambda: os.mkfifo(p + "p", mode)))
                        got.append(outcome(lambda: os.symlink("x", p + "l")))
                    return got
                s.step(f"make under {text}, umask {umask:o}", make, OWNER)
            for d, dirs, files in os.walk(top):
                dirs.sort()
                for n in sorted(dirs + files):
                    p = os.path.join(d, n)
                    if not os.path.islink(p):
                        s.step(f"{p[len(s.root):]} under {text}", lambda: seen(p))
                    else:
                        s.step(f"{p[len(s.root):]}", lambda: mode_of(p))
            s.step("remove", lambda: os.removexattr(top, DEFAULT))
            s.step("after remove", lambda: seen(top))
            s.step("plain again", lambda: as_user(OWNER, lambda: [
                os.umask(0o027), os.mkdir(top + "/plain"), mode_of(top + "/plain")][1:]))
    m = t.mount(t.volume(shards=shards), options=EVERYBODY)
    check(compare(t, m, script) > 200, "steps")


def uses_of_file(p):
    def rw(flags):
        os.close(os.open(p, flags))
    return {
        "read": outcome(lambda: rw(os.O_RDONLY)), "write": outcome(lambda: rw(os.O_WRONLY)),
        "both": outcome(lambda: rw(os.O_RDWR)), "append": outcome(lambda: rw(os.O_WRONLY | os.O_APPEND)),
        "truncate": outcome(lambda: os.truncate(p, 2)),
        "access": [os.access(p, how) for how in (os.R_OK, os.W_OK, os.X_OK, 7)],
        "touch": outcome(lambda: os.utime(p)), "times": outcome(lambda: os.utime(p, (1, 1))),
        "chmod": outcome(lambda: os.chmod(p, stat.S_IMODE(os.stat(p).st_mode))),
        "get": outcome(lambda: os.getxattr(p, "user.x")),
        "set": outcome(lambda: os.setxattr(p, "user.x", b"new")),
        "acl": outcome(lambda: len(os.getxattr(p, ACCESS))),
    }


def uses_of_dir(p):
    def made(name):
        os.close(os.open(f"{p}/{name}", os.O_CREAT | os.O_WRONLY | os.O_EXCL))
    return {
        "list": outcome(lambda: sorted(os.listdir(p))), "stat": outcome(lambda: os.stat(p + "/in").st_size),
        "read in it": outcome(lambda: open(p + "/in").read()),
        "create": outcome(lambda: made("new")), "rename": outcome(lambda: os.rename(p + "/new", p + "/newer")),
        "unlink": outcome(lambda: os.unlink(p + "/newer")),
        "mkdir": outcome(lambda: os.mkdir(p + "/sub")), "rmdir": outcome(lambda: os.rmdir(p + "/sub")),
        "enter": outcome(lambda: os.chdir(p)),
        "access": [os.access(p, how) for how in (os.R_OK, os.W_OK, os.X_OK, 7)],
    }


@suite.cases_for(**SHARDS)
def enforcement(t, shards):
    """Who may do what: the owner, a named user, members of the group and of a named group, the rest."""
    def script(s):
        for i, text in enumerate(ACLS):
            for group in (2000, 3000):
                f = s.make(f"f{i}-{group}", 0o640, (1001, group), b"bytes")
                os.setxattr(f, "user.x", b"old")
                d = s.make(f"d{i}-{group}", 0o40750, (1001, group))
                with open(d + "/in", "w") as o:
                    o.write("inside")
                for p in (f, d):
                    os.setxattr(p, ACCESS, acl(text))
                for user in (OWNER, NAMED, MEMBER, OTHER, (1005, 1001, [1003]), (0, 0, [])):
                    s.step(f"{user} uses a file of {text}, group {group}", lambda: uses_of_file(f), user)
                    s.step(f"{user} uses a directory of {text}, group {group}", lambda: uses_of_dir(d),
                           user)
    m = t.mount(t.volume(shards=shards), options=EVERYBODY)
    check(compare(t, m, script) == len(ACLS) * 2 * 6 * 2, "steps")


@suite.cases_for(**SHARDS)
def tools(t, shards):
    """setfacl and getfacl work, also on a whole tree."""
    m = t.mount(t.volume(shards=shards), options=EVERYBODY)
    os.makedirs(m / "a/b/c")
    for i in range(20):
        with open(m / f"a/b/f{i}", "w") as f:
            f.write("x")
    silt.run("setfacl", "-R", "-m", "u:1002:rwX,d:u:1002:rwX", m / "a")
    silt.run("setfacl", "-m", "g:2000:r", m / "a/b/f3")
    out = silt.run("getfacl", "-Rnp", m / "a").out
    equal(out.count("user:1002:rw-"), 20, "files that name the user")
    equal(out.count("default:user:1002:rwx"), 3, "directories with a default ACL")
    check("group:2000:r--" in out, "the named group")
    saved = silt.run("getfacl", "-Rn", m / "a/b/f3").out
    check("+ " in silt.run("ls", "-l", m / "a/b").out, "ls shows that there is an ACL")
    silt.run("setfacl", "-R", "-b", m / "a")
    check("1002" not in silt.run("getfacl", "-Rnp", m / "a").out, "setfacl -b takes all away")
    check("1002" in saved, "getfacl of one file")


@suite.cases_for(**SHARDS)
def seen_by_the_other_mount(t, shards):
    """An ACL set on one mount counts on the other at once when the kernel keeps no attributes, else
    within their timeout; so does its end, and a chmod."""
    v = t.volume(shards=shards)
    a, b = t.mount(v, options=AT_ONCE), t.mount(v, options=AT_ONCE)
    c = t.mount(v, options=EVERYBODY)
    for d in ("d", "d/sub", "d/sub/deep"):
        os.mkdir(a / d)
        os.chmod(a / d, 0o755)

    def reads(m, name):
        return as_user(NAMED, lambda: open(m / name).read())
    for i, name in enumerate(["f", "d/f", "d/sub/deep/f"]):
        with open(a / name, "w") as f:
            f.write("text")
        os.chmod(a / name, 0o600)
        for m in (a, b, c):
            equal(reads(m, name), "EACCES", "before")
        os.setxattr(a / name, ACCESS, acl("u::rw- u:1002:r-- g::--- m::r-- o::---"))
        for m in (a, b):
            equal(reads(m, name), "text", "the ACL lets the user in")
            equal(acl_of(m / name), "u::rw- u:1002:r-- g::--- m::r-- o::---", "the ACL")
        start = time.monotonic()
        wait_until(lambda: reads(c, name) == "text", "the ACL on the mount that keeps attributes", 2)
        check(time.monotonic() - start < 1.5, "it took longer than attr-timeout")
        os.chmod(b / name, 0o600)
        for m in (b, a):
            equal(reads(m, name), "EACCES", "chmod takes the mask away")
        wait_until(lambda: reads(c, name) == "EACCES", "the mask on the mount that keeps attributes", 2)
        os.chmod(b / name, 0o640)
        equal(reads(a, name), "text", "and gives it back")
        os.removexattr(b / name, ACCESS)
        equal(reads(a, name), "EACCES", "without the ACL")
    # a default ACL set there counts for what is made here
    os.setxattr(a / "d", DEFAULT, acl("u::rwx u:1002:r-x g::--- m::r-x o::---"))
    os.umask(0o022)
    for m, n in ((a, "a"), (b, "b"), (c, "c")):
        with open(m / f"d/by-{n}", "w") as f:
            f.write("text")
        equal(acl_of(m / f"d/by-{n}"), "u::rw- u:1002:r-x g::--- m::r-- o::---", f"inherited by {n}")
        equal(reads(m, f"d/by-{n}"), "text", "the inherited ACL lets the user in")


@suite.case
def traversal(t):
    """An ACL on a directory decides who gets below it, also when it is set while the kernel knows the
    directory."""
    m = t.mount(t.volume(), options=EVERYBODY)
    os.makedirs(m / "top/mid/low")
    with open(m / "top/mid/low/f", "w") as f:
        f.write("deep")
    os.chmod(m / "top", 0o700)

    def reads():
        return as_user(NAMED, lambda: open(m / "top/mid/low/f").read())
    for _ in range(3):
        equal(reads(), "EACCES", "closed")
        os.setxattr(m / "top", ACCESS, acl("u::rwx u:1002:--x g::--- m::--x o::---"))
        equal(reads(), "deep", "open for the named user")
        equal(as_user(NAMED, lambda: os.listdir(m / "top")), "EACCES", "but not to list")
        equal(as_user(OTHER, lambda: os.stat(m / "top/mid")), "EACCES", "nor for others")
        os.removexattr(m / "top", ACCESS)
        os.chmod(m / "top", 0o700)


@suite.cases_for(**SHARDS)
def kept_over_a_remount(t, shards):
    """ACLs are in Redis, in every bit, and go with their files."""
    v = t.volume(shards=shards)
    m = t.mount(v, options=EVERYBODY)
    want = {}
    for i, text in enumerate(ACLS):
        os.mkdir(m / f"d{i}")
        for p in (f"d{i}/f", f"d{i}"):
            if p.endswith("f"):
                open(m / p, "w").close()
            os.setxattr(m / p, ACCESS, acl(text))
            want[p] = seen(m / p)
    m.umount()
    m = t.mount(v, options=EVERYBODY)
    equal({p: seen(m / p) for p in want}, want, "ACLs after a remount")
    silt.run("rm", "-rf", *[m / f"d{i}" for i in range(len(ACLS))])
    equal(v.redis.cmd("KEYS", "{*}u*"), [], "what is left in Redis")


@suite.case
def damaged_acl(t):
    """An ACL that is damaged in Redis is an error for those who need it, for nobody else."""
    v = t.volume()
    m = t.mount(v, options=AT_ONCE)
    m.expect("DAMAGED", "damaged")
    open(m / "f", "w").close()
    os.chmod(m / "f", 0o660)
    os.setxattr(m / "f", ACCESS, acl(ACLS[2]))
    key = v.redis.cmd("KEYS", "{*}u*")[0]
    v.redis.cmd("HSET", key, ACCESS, "rubbish")
    equal(as_user(NAMED, lambda: open(m / "f").read()), "EIO", "refused")
    equal(outcome(lambda: os.chmod(m / "f", 0o600)), "EIO", "chmod has nothing to go by")
    os.setxattr(m / "f", ACCESS, acl(ACLS[2]))
    equal(acl_text(os.getxattr(m / "f", ACCESS)), ACLS[2], "a new one mends it")


suite.main()

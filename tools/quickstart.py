"""What tools/quickstart does on the mount: copies real files in, reads every byte back with several
processes, and prints the figures.

    quickstart.py copy SILTFS MOUNTPOINT DATA FILES
    quickstart.py verify SILTFS MOUNTPOINT DATA

The list of what was copied is kept in DATA/copied.json between the two."""

import concurrent.futures
import json
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import time

# Small files as every Debian machine has them, and programs and libraries of MiBs.
SMALL_FROM = ["/usr/share/doc", "/usr/include", "/usr/lib/python3", "/usr/lib/python3.11",
              "/usr/share/perl", "/usr/share/zoneinfo", "/usr/share", "/etc", "/usr/lib"]
LARGE_FROM = ["/usr/bin", "/usr/lib/gcc", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
LARGE_BYTES = 128 << 20
SECONDS = 40  # no new file is begun after so long
WRITERS = 16


def regular_files(top):
    for d, dirs, names in os.walk(top):
        dirs.sort()
        for n in sorted(names):
            p = os.path.join(d, n)
            try:
                st = os.lstat(p)
            except OSError:
                continue
            if stat.S_ISREG(st.st_mode) and os.access(p, os.R_OK):
                yield p, st.st_size


def choose(limit):
    """Source paths: up to `limit` files below 64 KiB, then larger ones up to LARGE_BYTES."""
    chosen, seen = [], set()
    for top in SMALL_FROM:
        for p, size in regular_files(top):
            if len(chosen) >= limit:
                break
            if size < 65536 and p not in seen:
                seen.add(p)
                chosen.append((p, size))
    total = 0
    for top in LARGE_FROM:
        for p, size in regular_files(top):
            if 1 << 20 <= size <= 32 << 20 and total + size <= LARGE_BYTES and p not in seen:
                seen.add(p)
                chosen.append((p, size))
                total += size
    return chosen


def status(siltfs, mountpoint):
    return json.loads(subprocess.check_output([siltfs, "status", "--json", mountpoint]))


def counters(siltfs, mountpoint):
    found = status(siltfs, mountpoint)
    return found.get("counters", found)


def redis_memory(data):
    """used_memory of the volume's own server, asked on its socket."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.path.join(data, "volume", "redis.sock"))
        s.sendall(b"INFO memory\r\n")
        reply = b""
        while b"used_memory_peak" not in reply:
            reply += s.recv(65536)
    return int(reply.split(b"used_memory:")[1].split(b"\r\n")[0])


def show(name, value, note=""):
    print(f"  {name:<38} {value:>14} {note}".rstrip())


def copy(siltfs, mountpoint, data, limit):
    sample = os.path.join(mountpoint, "sample")
    sources = choose(limit)
    print(f"\n== copy {len(sources)} files in, {WRITERS} at a time, for at most {SECONDS} s")
    os.mkdir(sample)
    for d in sorted({os.path.dirname(p) for p, _ in sources}):
        os.makedirs(sample + d, exist_ok=True)
    before, memory = counters(siltfs, mountpoint), redis_memory(data)
    start = time.monotonic()

    def one(entry):
        path, _ = entry
        if time.monotonic() - start > SECONDS:
            return None
        with open(path, "rb") as f:
            content = f.read()
        with open(sample + path, "wb") as f:
            f.write(content)
        return path, len(content)

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        done = [x for x in pool.map(one, sources) if x]
    took = time.monotonic() - start
    after, memory = counters(siltfs, mountpoint), redis_memory(data) - memory
    with open(os.path.join(data, "copied.json"), "w") as f:
        json.dump(done, f)
    files, size = len(done), sum(n for _, n in done)

    def moved(name):
        return after[name] - before[name]
    show("files", files)
    show("bytes", size)
    show("seconds", f"{took:.1f}", f"{files / took:.0f} files/s")
    show("packs", moved("pack.written"))
    show("PUTs per 1,000 files", f"{moved('store.puts') * 1000 / files:.1f}")
    show("bytes stored per byte of file", f"{moved('pack.stored_bytes') / max(1, size):.2f}")
    show("Redis calls per file", f"{moved('redis.calls') / files:.2f}")
    show("bytes in Redis per file", f"{memory / files:.0f}", "(used_memory, buffers included)")
    return 0


def differs(job):
    """The path, when what the mount gives is not what the source has."""
    sample, path, size = job
    try:
        with open(path, "rb") as a, open(sample + path, "rb") as b:
            return None if a.read() == b.read() else f"{path}: content differs"
    except OSError as e:
        return f"{path}: {e}"


def verify(siltfs, mountpoint, data):
    with open(os.path.join(data, "copied.json")) as f:
        done = json.load(f)
    sample = os.path.join(mountpoint, "sample")
    print("\n== read every byte back from Python and compare with the source")
    fetched, before = None, counters(siltfs, mountpoint)
    fetched = before["store.gets"]
    start = time.monotonic()
    with multiprocessing.Pool(max(2, os.cpu_count() or 2)) as pool:
        wrong = [x for x in pool.imap_unordered(differs, [(sample, p, n) for p, n in done], 64) if x]
    took = time.monotonic() - start
    after = counters(siltfs, mountpoint)

    def moved(name):
        return after[name] - before[name]
    size = sum(n for _, n in done)
    show("files read and compared", len(done))
    show("bytes", size)
    show("seconds", f"{took:.1f}", f"{len(done) / took:.0f} files/s")
    show("GETs by the warmup before", fetched)
    show("GETs while reading", moved("store.gets"))
    show("frames from memory", moved("cache.hits_memory"))
    show("frames from the SSD", moved("cache.hits_ssd"))
    show("misses", moved("cache.misses"))
    show("files that differ", len(wrong))
    for line in wrong[:20]:
        print(f"  WRONG {line}")
    if moved("store.gets"):
        print("  WRONG the warmup was complete, yet objects were fetched while reading")
        return 1
    return 1 if wrong else 0


def main():
    what, siltfs, mountpoint, data, *rest = sys.argv[1:]
    if what == "copy":
        return copy(siltfs, mountpoint, data, int(rest[0]))
    return verify(siltfs, mountpoint, data)


if __name__ == "__main__":
    sys.exit(main())

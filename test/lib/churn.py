"""Threads that change files and know what these have to hold."""

import os
import random
import threading
import time

from silt import equal, payload


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


class Churn(threading.Thread):
    """Writes, overwrites, copies and removes files, and knows what they have to hold."""

    def __init__(self, folder, seed, until):
        super().__init__(daemon=True)
        self.folder, self.rng, self.until = folder, random.Random(seed), until
        self.files, self.error, self.n = {}, None, 0
        os.mkdir(folder)
        self.start()

    def step(self):
        rng, name = self.rng, f"f{self.rng.randrange(12)}"
        path, what = os.path.join(self.folder, name), self.rng.random()
        if what < 0.45:
            self.files[name] = payload(rng.randrange(1 << 20), rng.choice([100, 4000, 70_000, 600_000]))
            write(path, self.files[name])
        elif what < 0.6 and name in self.files:
            at = rng.randrange(len(self.files[name]))
            piece = payload(rng.randrange(1 << 20), 3000)
            with open(path, "r+b") as f:
                f.seek(at)
                f.write(piece)
            old = self.files[name]
            self.files[name] = old[:at] + piece + old[at + len(piece):]
        elif what < 0.85 and name in self.files:
            to = f"f{rng.randrange(12)}"
            if to != name:
                with open(path, "rb") as a, open(os.path.join(self.folder, to), "wb") as b:
                    left = len(self.files[name])
                    while left:
                        left -= os.copy_file_range(a.fileno(), b.fileno(), left)
                self.files[to] = self.files[name]
        elif name in self.files:
            os.unlink(path)
            del self.files[name]
        self.n += 1

    def run(self):
        try:
            while time.monotonic() < self.until:
                self.step()
        except Exception as e:
            self.error = e

    def verify(self, folder):
        equal(sorted(os.listdir(folder)), sorted(self.files), "the names")
        for name, data in self.files.items():
            equal(read(os.path.join(folder, name)), data, name)

"""What grows with the number of images, and what does not: memory of a fit, seconds to build the cache, time per step.

    python benchmarks/growth.py [--images 10000 100000 1000000] [--budget 64] [--threads 1] [--smoke]

Each size is a fit in a process of its own, on pictures of 8 px and a network of one convolution, so that a million rows
fit into minutes; t is the default preset's. The caches are built one after the other; then the processes train t in
turns, a window of steps each. The budget (MiB of rows in memory) is small, so that the larger sizes go to disk.

Memory is what the process holds above what it held before the fit, at its peak. "anonymous" is what the system cannot
take back (Linux only): the cache within its budget, weights, working memory. "resident" also counts pages of the
cache's files that are mapped: they grow as long as memory is free, and the system drops them when it is not.

A second table shows why small rows are advised to be read at random where a file is larger than half of the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from posthoc_inn.autoencoders import GivenAutoencoder
from posthoc_inn.config import ImageSpec, preset
from posthoc_inn.features import LayerExtractor
from posthoc_inn.fit import Fit, FitRequest, Subject, prepare
from posthoc_inn.fit.plan import resident
from posthoc_inn.images import split
from posthoc_inn.progress import Reporter
from posthoc_inn.rows import cache as cache_module
from posthoc_inn.rows.cache import Cache

SIDE = 8


class Pictures(Dataset[Tensor]):
    """`count` different pictures (3, 8, 8) of noise, made when they are asked for, so that the data take no memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        generator = torch.Generator().manual_seed(0)
        self.bank = torch.randint(0, 256, (4096, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.bank[index % len(self.bank)] + index // len(self.bank)  # uint8: wraps around


class Peak(threading.Thread):
    """Watches the anonymous memory of this process, 50 times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = anonymous()

    def run(self) -> None:
        """Look until the process ends."""
        while True:
            self.bytes = max(self.bytes, anonymous())
            time.sleep(0.02)


def anonymous() -> int:
    """Return the bytes of this process that are no pages of files; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def say(**facts: Any) -> None:
    """Tell the parent process, a line of JSON."""
    print(json.dumps(facts), flush=True)


class TakingTurns(Reporter):
    """Lets a fit go on only when told to on standard input, and tells how long each window of steps took."""

    def __init__(self, window: int) -> None:
        self.window, self.stage_name = window, ""
        self.fit: Fit | None = None

    def stage(self, name: str, total: int | None) -> None:
        """Note the stage; before t, say that the cache is built."""
        self.stage_name = name
        if name == "t" and self.fit is not None:
            say(built=self.fit.seconds)

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        """End a window, and wait for the next."""
        if self.stage_name == "t" and done % self.window == 0:
            if done > self.window:  # the first one warms up
                say(seconds=(time.perf_counter() - self.started) / self.window)
            else:
                say(ready=True)
            sys.stdin.readline()
            self.started = time.perf_counter()


def child(images: int, budget: int, window: int, windows: int) -> None:
    """Run one fit, and tell what it took."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)).eval()
    autoencoder = GivenAutoencoder(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 64)),
        nn.Sequential(nn.Linear(64, 3 * SIDE**2), nn.Sigmoid(), nn.Unflatten(1, (3, SIDE, SIDE))),
        size=SIDE,
    )
    training = preset("default").flow_training.replace(steps=window * (windows + 1), eval_every=0)
    reporter = TakingTurns(window)
    peak = Peak()
    before, before_anonymous = resident(), anonymous()
    peak.start()
    data, held_out = split(Pictures(images), 0.1)
    subject = Subject(
        LayerExtractor(model, "1"),
        preset("default").replace(flow_training=training),
        spec=ImageSpec(size=(SIDE, SIDE)),
        autoencoder=autoencoder,
        device="cpu",
        precision="32",
    )
    reporter.fit = fit = prepare(subject, FitRequest(data=data, held_out=held_out), reporter=reporter, budget=budget)
    result = fit.run()
    # Of few held-out images, those that choose are those that are measured.
    caches = list(dict.fromkeys((result.train, result.selection, result.held_out)))
    say(
        rows=sum(map(len, caches)),
        cached=sum(cached.nbytes for cached in caches),
        on_disk=[name for name in result.train.names() if result.train[name].is_on_disk],
        resident=resident() - before,
        anonymous=peak.bytes - before_anonymous,
    )


def measure(sizes: list[int], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Fit every size in its own process, t in turns; return what each told."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("budget", "window", "windows", "threads")]
    processes, found = [], []
    for size in sizes:
        process = subprocess.Popen(
            [sys.executable, __file__, f"--child={size}", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        found.append(hear(process, "built") | {"times": []})
        hear(process, "ready")
    for _ in range(arguments.windows):
        for process, facts in zip(processes, found, strict=True):
            go(process)
            facts["times"].append(hear(process, "seconds")["seconds"])
    for process, facts in zip(processes, found, strict=True):
        go(process)
        facts |= hear(process, "rows")
        process.communicate()
    return found


def go(process: subprocess.Popen[str]) -> None:
    """Let a process run its next window."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str], what: str) -> dict[str, Any]:
    """Return the next line of a process, which must tell `what`."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"A measuring process ended with exit code {process.wait()} before it told {what!r}.")
    facts: dict[str, Any] = json.loads(line)
    return facts


def gather_cold(rows: int, width: int, repeats: int) -> dict[bool, float]:
    """Return the median seconds to read 256 random rows of a file that is not in memory, without and with advice."""
    times: dict[bool, list[float]] = {False: [], True: []}
    generator = torch.Generator().manual_seed(0)
    own = cache_module._physical_memory
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        built = Cache(directory, 0)
        for part in torch.arange(rows).split(max(1, 2**22 // width)):
            built.append(z=part[:, None].expand(-1, width).float())
        built.save("cold")
        try:
            for repeat in range(2 * repeats):
                is_advised = bool(repeat % 2)
                # Advice is given where a file is larger than half of the memory: pretend that it is, or is not.
                cache_module._physical_memory = lambda is_advised=is_advised: 1 if is_advised else 2**60
                opened = Cache(directory, 0)
                opened.restore("cold")
                with open(directory / "z.raw", "rb") as f:
                    os.fsync(f.fileno())
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                index = torch.randint(0, rows, (256,), generator=generator)
                started = time.perf_counter()
                found = opened["z"].rows(index)
                times[is_advised].append(time.perf_counter() - started)
                assert torch.equal(found[:, 0], index.float())
                del opened
        finally:
            cache_module._physical_memory = own
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--budget", type=int, default=64, help="MiB of rows kept in memory")
    parser.add_argument("--window", type=int, default=20, help="steps of t in a turn")
    parser.add_argument("--windows", type=int, default=9, help="turns of each size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cold-rows", type=int, default=200_000, help="rows of the second table; 0 leaves it out")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child is not None:
        child(arguments.child, arguments.budget * 2**20, arguments.window, arguments.windows)
        return
    if arguments.smoke:
        arguments.images, arguments.window, arguments.windows, arguments.cold_rows = [300, 1200], 2, 2, 300
        arguments.budget = 1
    sizes = arguments.images
    print(
        f"default preset, {arguments.threads} threads, budget {arguments.budget} MiB, medians of {arguments.windows} "
        f"windows of {arguments.window} steps in turns"
    )
    print(
        f"{'images':>10}{'cache MiB':>11}  {'on disk':24}{'build s':>9}{'µs/image':>10}{'ms/step':>9}{'spread':>14}"
        f"{'anonymous MiB':>15}{'resident MiB':>14}"
    )
    for size, facts in zip(sizes, measure(sizes, arguments), strict=True):
        build = sum(facts["built"].values())
        times = sorted(1e3 * t for t in facts["times"])
        spread = f"{times[0]:.1f}-{times[-1]:.1f}"
        print(
            f"{size:10,}{facts['cached'] / 2**20:11.0f}  {', '.join(facts['on_disk']) or 'nothing':24}{build:9.1f}"
            f"{1e6 * build / size:10.1f}{statistics.median(times):9.2f}{spread:>14}"
            f"{facts['anonymous'] / 2**20:15.0f}{facts['resident'] / 2**20:14.0f}"
        )
    if arguments.cold_rows and hasattr(os, "posix_fadvise"):
        print("\n256 random rows of a file that is not in memory, ms")
        print(f"{'bytes a row':>12}{'rows':>10}{'read ahead':>12}{'advised':>10}")
        for width, rows in ((256, arguments.cold_rows), (1024, arguments.cold_rows // 4)):
            seconds = gather_cold(rows, width, 2 if arguments.smoke else 7)
            print(f"{4 * width:12,}{rows:10,}{1e3 * seconds[False]:12.1f}{1e3 * seconds[True]:10.1f}")


if __name__ == "__main__":
    main()

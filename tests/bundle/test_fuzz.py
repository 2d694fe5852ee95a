"""Mutated bundles: only the project's own error comes out, and memory and time stay bounded."""

from __future__ import annotations

import copy
import json
import os
import random
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from bundle_helpers import document, replace_member, write_document

from posthoc_inn.bundle import FORMAT_VERSION, load_bundle
from posthoc_inn.errors import BundleError

STRANGE = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    1 << 20,
    (1 << 20) + 1,
    1 << 31,
    1 << 63,
    10**18,
    10**300,
    -(10**30),
    0.5,
    1e308,
    -1e-320,
    "",
    "a",
    "conv",
    "spline",
    "affine",
    "given",
    "../x",
    "/dev/zero",
    "os.system",
    "\x00",
    "\ud800",
    "a" * 5000,
    [],
    [1],
    [1] * 70,
    [[]],
    [None],
    {},
    {"a": 1},
    {"": {}},
    [1 << 40, 1 << 40],
]


def paths(value, here=()):
    found = [here] if here else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths(inner, (*here, key))
    return found


def mutate_json(value, rng):
    """Return a copy with 1 to 3 values replaced, removed, repeated or swapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(paths(value))
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        kind = rng.randrange(4)
        if kind == 0:
            del inner[path[-1]]
        elif kind == 1 and isinstance(inner[path[-1]], int):
            inner[path[-1]] += rng.choice([-1, 1, 8, 1 << 16])
        elif kind == 2 and isinstance(inner, dict):
            inner[rng.choice(["extra", "dim", "", "shape", str(path[-1]) + "x"])] = copy.deepcopy(rng.choice(STRANGE))
        else:
            inner[path[-1]] = copy.deepcopy(rng.choice(STRANGE))
        if not paths(value):
            break
    return value


def mutate_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        at = rng.randrange(min(len(data), rng.choice([16, 2000, len(data)])))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 100)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 20))
        else:
            del data[at:]
    return bytes(data)


def attempt(run, original, rng):
    """Break one thing, and load; return the error's message, or None when it was harmless."""
    text, weights = original
    (run / "weights.safetensors").write_bytes(weights)
    (run / "bundle.json").write_bytes(text)
    kind = rng.randrange(4)
    if kind == 0:
        (run / "bundle.json").write_bytes(mutate_bytes(text, rng))
    elif kind == 1:
        write_document(run, mutate_json(json.loads(text), rng))
    elif kind == 2:
        replace_member(run, "weights.safetensors", mutate_bytes(weights, rng))
    else:
        end = 8 + int.from_bytes(weights[:8], "little")
        header = json.dumps(mutate_json(json.loads(weights[8:end]), rng)).encode()
        replace_member(run, "weights.safetensors", struct.pack("<Q", len(header)) + header + weights[end:])
    try:
        load_bundle(run)
    except BundleError as error:
        return str(error)
    return None


def fuzz(run, seed, rounds):
    rng = random.Random(seed)
    original = (run / "bundle.json").read_bytes(), (run / "weights.safetensors").read_bytes()
    messages = [attempt(run, original, rng) for _ in range(rounds)]
    refused = [m for m in messages if m is not None]
    assert all(20 < len(m) < 2000 and m.isprintable() for m in refused)
    return len(refused) / rounds


def test_500_broken_bundles_give_nothing_but_bundle_errors(saved):
    assert fuzz(saved, seed=0, rounds=500) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_broken_bundles_give_nothing_but_bundle_errors(saved, seed):
    assert fuzz(saved, seed=seed, rounds=1500) > 0.8


def claims(content):
    """Descriptions that ask for as much as the schema allows."""
    limit = 1 << 20
    yield (
        "flow",
        {"flow": {"dim": 4, "context_dim": 6, "blocks": 1000, "width": 65536, "depth": 100, "separate_nets": True}},
    )
    yield (
        "wide",
        {
            "flow": {"dim": 65536, "context_dim": limit, "blocks": 1000, "width": 65536},
            "conditioner": {"z_shape": [limit], "context_dim": limit, "width": 65536, "depth": 20},
            "z_shape": [limit],
            "autoencoder": content["autoencoder"]
            | {"config": {"size": 128, "channels": 3, "latent_dim": 65536, "width": 4096}},
            "adapter": content["adapter"] | {"image_size": 128},
        },
    )
    for shape in ([limit, 1, 1], [1000, 10**4, 10**4], [limit, 1000]):
        yield "z", {"conditioner": {"z_shape": shape, "context_dim": 6, "width": 65536, "depth": 20}, "z_shape": shape}


SCRIPT = """
import resource, sys, time
sys.path[:0] = {paths!r}
import torch
from pathlib import Path
from bundle_helpers import document, write_document
from test_fuzz import claims, fuzz
from posthoc_inn.bundle import load_bundle
from posthoc_inn.errors import BundleError
run = Path({run!r})
load_bundle(run)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room}, used + {room}))
content = document(run)
for name, changes in claims(content):
    write_document(run, content | changes)
    started = time.perf_counter()
    try:
        load_bundle(run)
        sys.exit(f"{{name}} was loaded")
    except BundleError as error:
        print(name, round(time.perf_counter() - started, 2), error)
        assert "cannot be built" not in str(error), error
    assert time.perf_counter() - started < 20
write_document(run, content)
print(fuzz(run, seed=4, rounds=300))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_bounded_whatever_a_small_bundle_claims(saved):
    """256 MB more than what torch takes is enough: the kernel would refuse any more."""
    here = Path(__file__).parent
    script = textwrap.dedent(SCRIPT).format(
        paths=[str(here), str(here.parent), str(here.parents[1])], run=str(saved), room=256 << 20
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POSTHOC_INN_PLUGINS": "none"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert document(saved)["format_version"] == FORMAT_VERSION

#!/usr/bin/env python3
"""Writes reference.json: digests of rows quantised by the Python package gguf. Usage: reference.py > reference.json

quant_test.go generates the same rows: SplitMix64 from the row's seed, 24 bits of each word as a fraction.
"""
import hashlib
import json

import gguf
import numpy as np

TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
N = 4096


def words(seed):
    mask = (1 << 64) - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def row(kind, seed):
    r = words(seed)
    u = lambda: (next(r) >> 40) / 2.0**23 - 1  # in [-1,1), exact in float32
    out = []
    for i in range(N):
        match kind:
            case "uniform":
                v = u()
            case "tailed":
                v = u() * u() * u() * 3
            case "small":
                v = u() * 2.0**-30
            case "large":
                v = u() * 60000
            case "positive":
                v = u() + 1.5
            case "steps":  # multiples of a half, for ties
                v = (next(r) >> 60) * 0.5 - 4
            case "sparse":
                v = u() if next(r) >> 61 == 0 else -0.0
            case "constant":
                v = 0.1 * (i // 32 % 5 - 2)
        out.append(v)
    return np.array(out, dtype=np.float64).astype(np.float32)


out = []
for seed, kind in enumerate(["uniform", "tailed", "small", "large", "positive", "steps", "sparse", "constant"]):
    x = row(kind, seed)
    digests = {}
    for t in TYPES:
        raw = np.ascontiguousarray(gguf.quants.quantize(x, gguf.GGMLQuantizationType[t])).view(np.uint8).tobytes()
        digests[t] = hashlib.sha256(raw).hexdigest()
    out.append({"kind": kind, "seed": seed, "input": hashlib.sha256(x.tobytes()).hexdigest(), "digests": digests})
print(json.dumps(out, indent=1))

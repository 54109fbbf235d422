"""Times the products of bench/gpu.sh with PyTorch, in bfloat16 by cuBLAS, and copies on the device.

Usage: gpu_torch.py TIMES.json OUT.json, where TIMES.json is what TestTimes_OfTheProductsOfAModel has written.
"""
import json
import sys
import time

import torch


def best(f, rounds=5):
    f()
    torch.cuda.synchronize()
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        least = min(least, time.perf_counter() - start)
    return least


def main():
    ours = json.load(open(sys.argv[1]))
    z = ours["shape"]
    width, kv, ffn, layers = z["Width"], z["KV"], z["FFN"], z["Layers"]
    shapes = [(width, width), (kv, width), (kv, width), (width, width), (ffn, width), (ffn, width), (width, ffn)]
    weights = [[torch.randn(n, i, device="cuda", dtype=torch.bfloat16) / 64 for n, i in shapes] for _ in range(layers)]
    elements = sum(n * i for n, i in shapes) * layers
    out = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "times": []}
    a = torch.empty(256 << 20, device="cuda", dtype=torch.float32)
    b = torch.empty_like(a)
    out["copy_gb_per_s"] = 2 * a.numel() * 4 / best(lambda: b.copy_(a)) / 1e9
    del a, b
    for rows in sorted({t["rows"] for t in ours["times"]}):
        x = {i: torch.randn(rows, i, device="cuda", dtype=torch.bfloat16) for i in {i for _, i in shapes}}

        def run():
            for layer in weights:
                for w in layer:
                    torch.nn.functional.linear(x[w.shape[1]], w)

        seconds = best(run)
        out["times"].append({"rows": rows, "seconds": seconds, "gb_per_s": 2 * elements / seconds / 1e9,
                             "tflop_per_s": 2 * rows * elements / seconds / 1e12})
    json.dump(out, open(sys.argv[2], "w"), indent=1)


main()

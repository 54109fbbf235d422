#!/usr/bin/env python3
"""Exports models with lamina and compares their perplexities with those of llama.cpp.

Usage: check.py LAMINA LLAMA_PERPLEXITY TEXT MODEL...

LLAMA_PERPLEXITY is the llama-perplexity program of llama.cpp, or perplexity.cpp of this folder. Every MODEL, a Hugging
Face folder or a GGUF file, is written in every type. llama.cpp must load each file, and its perplexity on the text must
differ by at most 0.5 % from lamina's.
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

LIMIT = 0.005
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S"]


def context(model):
    """llama.cpp does not apply Mistral's sliding window, so the windows of text must be no longer than that."""
    config = model / "config.json"
    if model.is_dir() and json.loads(config.read_text()).get("model_type") == "mistral":
        return 16
    return 64


def main():
    lamina, theirs, text = sys.argv[1:4]
    failed = False
    for model in map(pathlib.Path, sys.argv[4:]):
        ctx = context(model)
        for kind in TYPES:
            with tempfile.TemporaryDirectory() as out:
                path = pathlib.Path(out) / "model.gguf"
                subprocess.run([lamina, "export", model, path, "--type", kind, "--format", "json"], check=True,
                               stdout=subprocess.DEVNULL)
                ours = json.loads(subprocess.run(
                    [lamina, "perplexity", "-m", path, "-f", text, "--ctx", str(ctx), "--chunks", "16", "--kv-type", "f32",
                     "--format", "json"], check=True, capture_output=True, text=True).stdout)["perplexity"]
                run = subprocess.run([theirs, "-m", path, "-f", text, "-c", str(ctx), "--chunks", "16", "-ctk", "f32", "-ctv",
                                      "f32", "-fa", "off"], capture_output=True, text=True)
                found = re.search(r"PPL = ([0-9.]+)", run.stdout + run.stderr)
            if run.returncode or not found:
                failed = True
                print(f"{model.name:20} {kind:7} llama.cpp does not load it", flush=True)
                continue
            off = float(found[1]) / ours - 1
            failed |= abs(off) > LIMIT
            print(f"{model.name:20} {kind:7} {ours:10.4f} {float(found[1]):10.4f} {100 * off:+.3f} %", flush=True)
    sys.exit(failed)


main()

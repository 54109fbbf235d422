#!/usr/bin/env python3
"""Trains models with lamina and compares their logits with those of transformers.

Usage: check.py LAMINA MODELS_DIR   (needs the packages torch and transformers)

For every Hugging Face folder below MODELS_DIR it makes a run of two steps over two stages, once from the folder's
weights and once from random ones of its config.json. transformers must load the trained model without missing or
unexpected tensors. The largest difference of the logits, divided by the largest logit, must be at most 1e-5. A tied
head must not be in the file.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

LIMIT = 1e-5
IDS = [1, 5, 9, 40, 7, 7, 3, 60, 11, 100, 42, 8, 2, 19, 77, 31]


def train(lamina, folder, form, out):
    text = out / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 60)
    manifest = {
        "name": "check", "data": {"text": str(text)}, "vocabulary": {"type": "model"},
        "model": {"from": str(folder)} if form == "files" else {"config": str(folder / "config.json")},
        "slots": 2, "slot_sequences": 1, "sequence_len": 32, "steps": 2, "clip": 1,
        "learning_rate": {"type": "constant", "max": 1e-3}, "decay": 0.1, "seed": 1,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    subprocess.run([lamina, "train", "--manifest", out / "manifest.json", "--stages", "2", "--out", out / "run",
                    "--format", "json"], check=True, stdout=subprocess.DEVNULL)
    return out / "run" / "model"


def compare(lamina, model):
    theirs, info = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, output_loading_info=True,
                                                        attn_implementation="eager")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    AutoTokenizer.from_pretrained(model)
    with safe_open(model / "model.safetensors", "pt") as f:
        names = list(f.keys())
    tied = theirs.config.tie_word_embeddings
    assert not (tied and "lm_head.weight" in names), names
    with torch.no_grad():
        want = theirs.eval()(torch.tensor([IDS])).logits[0, -1].double()
    printed = subprocess.run([lamina, "logits", "-m", model, "--kernels", "ref", "--ids", ",".join(map(str, IDS)),
                              "--kv-type", "f32", "--format", "json"], check=True, capture_output=True, text=True)
    got = torch.tensor(json.loads(printed.stdout)["logits"], dtype=torch.float64)
    return tied, float((got - want).abs().max() / want.abs().max())


def main():
    lamina, failed = sys.argv[1], False
    for folder in sorted(pathlib.Path(sys.argv[2]).iterdir()):
        for form in ["files", "random"]:
            with tempfile.TemporaryDirectory() as out:
                tied, off = compare(lamina, train(lamina, folder, form, pathlib.Path(out)))
            failed |= not off <= LIMIT
            print(f"{folder.name:20} {form:7} {'tied' if tied else '':5} {off:.2g}", flush=True)
    sys.exit(failed)


main()

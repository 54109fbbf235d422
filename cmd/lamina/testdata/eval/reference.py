#!/usr/bin/env python3
"""Writes golden.json: log-likelihoods of the rows beside it, computed with transformers in float32.

Usage: reference.py TINY_MODELS_DIR > golden.json   (needs the packages torch and transformers)

The pairs, windows and metrics follow lm-evaluation-harness: white space at the end of a context belongs to the
continuation, acc_norm divides by the number of characters, and a text is scored in windows that begin with the last id of
the one before.
"""
import json
import pathlib
import re
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 64
HERE = pathlib.Path(__file__).parent


def rows(name):
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


class Scorer:
    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        self.tokens = AutoTokenizer.from_pretrained(folder)

    def encode(self, text):
        return self.tokens.encode(text, add_special_tokens=False)

    def score(self, ids, start):
        """Returns the log-likelihood of ids[start:], and whether it is the greedy continuation."""
        with torch.no_grad():
            logits = self.model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
        want = torch.tensor(ids[start:])
        got = logits[start - 1:]
        return float(got.gather(1, want[:, None]).sum()), bool((got.argmax(-1) == want).all())

    def pair(self, context, continuation):
        if not context:
            ids = self.encode(continuation)
            return self.score([self.tokens.bos_token_id] + ids, 1)
        kept = context.rstrip()
        continuation = context[len(kept):] + continuation
        return self.score(self.encode(kept + continuation), len(self.encode(kept)))

    def choice(self, name):
        out, acc, norm = [], 0, 0
        data = rows(name)
        for row in data:
            choices = row["choices"] if "choices" in row else [row["sentence_good"], row["sentence_bad"]]
            scores = [self.pair(row.get("context", ""), " " + c) for c in choices]
            out.append([s for s, _ in scores])
            best = max(range(len(choices)), key=lambda i: scores[i][0])
            normal = max(range(len(choices)), key=lambda i: scores[i][0] / len(choices[i]))
            acc += best == row.get("gold", 0)
            norm += normal == row.get("gold", 0)
        return {"scores": out, "acc": acc / len(data), "acc_norm": norm / len(data)}

    def text(self, name):
        sums, size, words = [], 0, 0
        for row in rows(name):
            ids = self.encode(row["text"])
            total, done = 0.0, 0
            while done < len(ids):
                end = min(done + WINDOW, len(ids))
                window = ([self.tokens.bos_token_id] + ids[:end]) if done == 0 else ids[max(0, end - WINDOW - 1):end]
                total += self.score(window, len(window) - (end - done))[0]
                done = end
            sums.append(total)
            size += len(row["text"].encode())
            words += len(re.split(r"\s+", row["text"]))
        nll = -torch.tensor(sums, dtype=torch.float64).sum()
        return {"scores": [[s] for s in sums], "bits_per_byte": float(nll / size / torch.log(torch.tensor(2.0, dtype=torch.float64))),
                "byte_perplexity": float((nll / size).exp()), "word_perplexity": float((nll / words).exp())}


def main():
    golden = {}
    for name in ["llama", "qwen3", "gemma2", "gpt2"]:
        scorer = Scorer(pathlib.Path(sys.argv[1]) / name)
        golden[name] = {"choice": scorer.choice("choice.jsonl"), "blimp": scorer.choice("blimp.jsonl"),
                        "text": scorer.text("text.jsonl")}
    print(json.dumps(golden))


main()

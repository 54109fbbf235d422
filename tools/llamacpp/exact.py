#!/usr/bin/env python3
"""Computes the perplexity of a GGUF file of a llama model in float32, from decoded weights.

Usage: exact.py MODEL.gguf IDS.json [WINDOWS]

It needs PyTorch, transformers and gguf from PyPI. IDS.json has the ids of a text, as `lamina tokenize -m MODEL < TEXT`
prints them. Windows are those of tools/llamacpp/check.py: 64 ids, of which the second half counts. It prints three
perplexities: exact; with the inputs of each product with a quantised matrix rounded as llama.cpp rounds them (bytes
with one scale for 32 values, or for 256 before a K type; the scale is float16, or float32 before a K type); and as
Lamina's cpu kernels do (32 values, float32). Sums are in float32 in all three.
"""
import json
import sys

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from transformers import LlamaConfig, LlamaForCausalLM

WINDOW = 64
NAMES = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
PARTS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def load(path):
    """Returns the model with decoded weights, and the type that each module has in the file."""
    reader = gguf.GGUFReader(path)

    def field(name):
        return reader.fields["llama." + name].contents()

    heads, keys = field("attention.head_count"), field("attention.head_count_kv")
    weights, types = {}, {}
    for t in reader.tensors:
        w = dequantize(t.data, t.tensor_type).astype(np.float32).reshape([int(d) for d in reversed(t.shape)])
        stem = t.name.removesuffix(".weight")
        if stem in NAMES:
            module = NAMES[stem]
        elif stem.startswith("blk."):
            _, layer, part = stem.split(".")
            module = f"model.layers.{layer}.{PARTS[part]}"
            if part in ("attn_q", "attn_k"):  # the file has rotated pairs next to each other
                n = heads if part == "attn_q" else keys
                w = w.reshape(n, w.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        else:
            sys.exit(f"{path}: {t.name} is not supported")
        weights[module + ".weight"] = torch.from_numpy(np.ascontiguousarray(w))
        types[module] = t.tensor_type.name
    if "lm_head" not in types:
        weights["lm_head.weight"], types["lm_head"] = weights["model.embed_tokens.weight"], types["model.embed_tokens"]
    vocab, width = weights["model.embed_tokens.weight"].shape
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"), num_attention_heads=heads, num_key_value_heads=keys,
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"), max_position_embeddings=field("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")}, tie_word_embeddings=False,
        attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights, strict=True)
    return model, types


def rounded(x, block, half):
    """Rounds x to bytes with one scale for each block."""
    b = x.reshape(-1, block)
    scale = b.abs().amax(1, keepdim=True) / 127
    codes = torch.where(scale > 0, torch.round(b / torch.where(scale > 0, scale, 1.0)), 0.0)
    if half:
        scale = scale.half().float()
    return (codes * scale).reshape(x.shape)


def main():
    model, types = load(sys.argv[1])
    with open(sys.argv[2], encoding="utf-8") as f:
        ids = json.load(f)
    windows = int(sys.argv[3]) if len(sys.argv) > 3 else 16
    x = torch.tensor(ids[:windows * WINDOW]).reshape(-1, WINDOW)
    how = "exact"

    def before(module_type):
        def hook(_, args):
            if how == "exact" or not module_type.startswith("Q"):
                return None
            k = module_type.endswith("_K")
            return (rounded(args[0], 32, False) if how == "lamina" else rounded(args[0], 256 if k else 32, not k),)
        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(before(types[name]))
    for how in ("exact", "llama.cpp", "lamina"):
        with torch.no_grad():
            p = torch.log_softmax(model(x).logits.double(), -1)
        scored = p[:, :-1].gather(2, x[:, 1:, None])[:, WINDOW // 2:]
        print(f"{how:10} {(-scored.mean()).exp().item():.4f}", flush=True)


main()

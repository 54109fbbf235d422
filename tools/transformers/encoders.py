"""Writes the tiny encoders in pkg/model/testdata with the hidden states that transformers computes for them.

usage: encoders.py pkg/model/testdata/encoders
"""

import json
import pathlib
import sys

import torch
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30)
TEXTS = [[2, 7, 11, 4, 29, 3], [2, 3], [2, 9, 9, 9, 21, 14, 5, 3]]


def write(folder, model):
    for p in model.parameters():  # the usual initialisation is too small to tell mistakes apart
        torch.nn.init.normal_(p, std=0.3)
    model.eval()
    model.save_pretrained(folder, safe_serialization=True)
    with torch.no_grad():
        hidden = [model(torch.tensor([ids])).last_hidden_state[0].tolist() for ids in TEXTS]
    (folder / "golden.json").write_text(json.dumps({"ids": TEXTS, "hidden": hidden}) + "\n")


def main(out):
    torch.manual_seed(1)
    write(out / "bert", BertModel(BertConfig(max_position_embeddings=12, **SIZES), add_pooling_layer=False))
    write(out / "xlm-roberta", XLMRobertaModel(XLMRobertaConfig(max_position_embeddings=14, type_vocab_size=1,
                                                               pad_token_id=1, **SIZES), add_pooling_layer=False))


main(pathlib.Path(sys.argv[1]))

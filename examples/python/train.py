"""Trains a small character model on a text file and prints the loss.

usage: train.py --text FILE [--trainer ADDRESS] [--name NAME] [--steps N] [--stages N] [--replicas N]

The trainer reads the text from its data folder and writes the model on its own machine. The result is a Hugging Face
folder, which `lamina up --model DIR` serves. Its bytes do not depend on stages and replicas.
"""

import argparse
import json
import sys

import grpc
from lamina.trainer.v1 import trainer_pb2, trainer_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", default="127.0.0.1:7070", help="address of the trainer; with lamina up the router's")
    parser.add_argument("--text", required=True, help="text file in the trainer's data folder (lamina up --data DIR; or --allow-path DIR)")
    parser.add_argument("--name", default="example-python", help="name of the run")
    parser.add_argument("--steps", type=int, default=40, help="number of optimizer steps")
    parser.add_argument("--stages", type=int, default=1, help="stages of each chain")
    parser.add_argument("--replicas", type=int, default=1, help="number of chains")
    args = parser.parse_args()

    manifest = {
        "name": args.name,
        "data": {"text": args.text, "validation_fraction": 0.1},
        "vocabulary": {"type": "char"},
        "model": {
            "architecture": "llama", "layers": 4, "width": 32, "heads": 4, "kv_heads": 2, "ff": 64, "context": 32,
            "tied": True,
        },
        "slots": 4, "slot_sequences": 2, "sequence_len": 32,  # a global batch of 4 x 2 sequences
        "steps": args.steps,
        "learning_rate": {"max": 0.01, "min": 0.001, "warmup": 4},
        "betas": [0.9, 0.99], "decay": 0.1, "clip": 1, "seed": 7,
    }
    with grpc.insecure_channel(args.trainer) as channel:
        trainer = trainer_pb2_grpc.TrainerServiceStub(channel)
        trainer.StartRun(
            trainer_pb2.StartRunRequest(
                manifest_json=json.dumps(manifest).encode(), stages=args.stages, replicas=args.replicas
            ),
            timeout=60,
        )
        # The run continues when this program ends; the stream only watches it.
        for response in trainer.WatchRun(trainer_pb2.WatchRunRequest(run=args.name), timeout=600):
            run = response.run
            if run.state == trainer_pb2.RUN_STATE_RUNNING:
                print(f"step {run.step:3} of {run.steps}  loss {run.loss:.4f}  {run.tokens_per_second:.0f} tokens/s")
            elif run.state == trainer_pb2.RUN_STATE_DONE:
                print(f"done: loss {run.loss:.4f}, model in {run.model_path}, SHA-256 of the weights {run.weights_digest}")
            elif run.state == trainer_pb2.RUN_STATE_FAILED:
                sys.exit(f"the run failed: {run.error}")


if __name__ == "__main__":
    main()

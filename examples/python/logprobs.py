"""Prints each generated token with its log-probability and the most likely alternatives.

usage: logprobs.py [--router ADDRESS] [--prompt TEXT] [--tokens N] [--top N]
"""

import argparse
import math
import sys

import grpc
from lamina.router.v1 import router_pb2, router_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", default="127.0.0.1:7070", help="address of the router")
    parser.add_argument("--prompt", default="It was impossible to", help="text to continue")
    parser.add_argument("--tokens", type=int, default=8, help="maximum number of tokens")
    parser.add_argument("--top", type=int, default=3, help="candidates to print for each token, at most 20")
    args = parser.parse_args()

    request = router_pb2.GenerateRequest(
        text=args.prompt,
        max_tokens=args.tokens,
        top_logprobs=args.top,
        sampling=router_pb2.Sampling(temperature=0.0),
    )
    logprobs = []
    with grpc.insecure_channel(args.router) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        for response in router.Generate(request, timeout=60):
            if response.WhichOneof("event") != "token":
                continue
            token = response.token
            logprobs.append(token.logprob)
            # Log-probabilities are natural logarithms, so exp gives the probability.
            top = "  ".join(f"{c.text!r} {100 * math.exp(c.logprob):.1f} %" for c in token.top)
            print(f"{token.text!r:12} {token.logprob:8.4f}    {top}")
    if not logprobs:
        sys.exit("the model generated no tokens")
    print(f"perplexity of the answer: {math.exp(-sum(logprobs) / len(logprobs)):.2f}")


if __name__ == "__main__":
    main()

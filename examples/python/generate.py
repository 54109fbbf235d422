"""Continues a prompt over gRPC and prints the text while it is generated.

usage: generate.py [--router ADDRESS] [--prompt TEXT] [--tokens N]
"""

import argparse
import sys

import grpc
from lamina.router.v1 import router_pb2, router_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--router", default="127.0.0.1:7070", help="address of the router")
    parser.add_argument("--prompt", default="The prince looked at her and", help="text to continue")
    parser.add_argument("--tokens", type=int, default=48, help="maximum number of tokens")
    args = parser.parse_args()

    request = router_pb2.GenerateRequest(
        text=args.prompt,
        max_tokens=args.tokens,
        # The same seed gives the same text every time.
        sampling=router_pb2.Sampling(temperature=0.8, seed=1),
    )
    finished = None
    with grpc.insecure_channel(args.router) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        print(args.prompt, end="")
        # Every call has a deadline. An incomplete answer raises grpc.RpcError.
        for response in router.Generate(request, timeout=60):
            event = response.WhichOneof("event")
            if event == "token":
                print(response.token.text, end="", flush=True)
            elif event == "finished":
                finished = response.finished
                print(finished.text)
    if finished is None:
        sys.exit("the stream ended without a finish reason")
    print(f"\n{finished.usage.prompt_tokens} prompt tokens, {finished.usage.completion_tokens} completion tokens")


if __name__ == "__main__":
    main()

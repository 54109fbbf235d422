"""Generates text over lamina.router.v1 with grpcio and stubs made from proto/.

usage: generate.py STUBS ADDRESS PROMPT MAX_TOKENS

Prints one JSON object: {"text": ..., "token_ids": [...]}.
"""

import json
import sys


def main() -> None:
    stubs, address, prompt, max_tokens = sys.argv[1:5]
    sys.path.insert(0, stubs)

    import grpc
    from lamina.router.v1 import router_pb2, router_pb2_grpc

    request = router_pb2.GenerateRequest(
        text=prompt,
        max_tokens=int(max_tokens),
        sampling=router_pb2.Sampling(temperature=0.0),
    )
    text, ids, finished = [], [], False
    with grpc.insecure_channel(address) as channel:
        router = router_pb2_grpc.RouterServiceStub(channel)
        for response in router.Generate(request, timeout=120):
            event = response.WhichOneof("event")
            if event == "token":
                text.append(response.token.text)
                ids.append(response.token.id)
            elif event == "finished":
                text.append(response.finished.text)
                finished = True
    if not finished:
        sys.exit("the stream ended without a finish reason")
    print(json.dumps({"text": "".join(text), "token_ids": ids}))


if __name__ == "__main__":
    main()

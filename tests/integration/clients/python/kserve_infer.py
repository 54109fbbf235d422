"""Continues prompts over KServe v2 with the stock tritonclient package, over gRPC and HTTP.

usage: kserve_infer.py GRPC_ADDRESS HTTP_ADDRESS

Checks health and metadata, infers with several prompts, streams, makes errors and cancels. Prints one JSON object of
what it saw.
"""

import json
import queue
import sys

import numpy
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

GREEDY = {"max_tokens": 12, "temperature": 0}


def texts(client_module, *prompts):
    """Returns the input with prompts."""
    out = client_module.InferInput("text_input", [len(prompts)], "BYTES")
    out.set_data_from_numpy(numpy.array([p.encode() for p in prompts], dtype=numpy.object_))
    return [out]


def error(call) -> str:
    try:
        call()
    except InferenceServerException as e:
        return str(e.status())
    sys.exit("a wrong request succeeds")


def stream(client, model, prompt):
    """Returns the pieces of a streamed answer."""
    events = queue.Queue()
    client.start_stream(lambda result, error: events.put((result, error)))
    client.async_stream_infer(model, texts(triton, prompt), parameters=GREEDY)
    pieces, final = [], False
    while not final:
        result, failed = events.get(timeout=120)
        if failed is not None:
            sys.exit(f"the stream failed: {failed}")
        pieces.append(result.as_numpy("text_output")[0].decode())
        final = result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    return pieces


def main() -> None:
    client = triton.InferenceServerClient(sys.argv[1])
    http = triton_http.InferenceServerClient(sys.argv[2].removeprefix("http://"), network_timeout=120)
    model = sys.argv[3]
    ready = all([client.is_server_live(), client.is_server_ready(), client.is_model_ready(model), http.is_server_live(),
                 http.is_server_ready(), http.is_model_ready(model)])
    meta, http_meta = client.get_model_metadata(model), http.get_model_metadata(model)
    described = [meta.inputs[0].name, meta.outputs[0].datatype, http_meta["inputs"][0]["name"],
                 client.get_server_metadata().name]

    prompts = ("Once upon a time", "The capital of France is")
    over_grpc = client.infer(model, texts(triton, *prompts), parameters=GREEDY, request_id="7")
    over_http = http.infer(model, texts(triton_http, *prompts), parameters=GREEDY, request_id="7")
    answers = [t.decode() for t in over_grpc.as_numpy("text_output")]
    same = answers == [t.decode() for t in over_http.as_numpy("text_output")]
    pieces = stream(client, model, prompts[0])

    wrong = triton.InferInput("text_input", [1], "FP32")
    wrong.set_data_from_numpy(numpy.zeros(1, dtype=numpy.float32))
    errors = [
        error(lambda: client.infer("unknown", texts(triton, "x"), parameters=GREEDY)),
        error(lambda: client.infer(model, [wrong])),
        error(lambda: client.infer(model, texts(triton, "x"), parameters={"max_tokens": 0})),
        error(lambda: client.infer(model, texts(triton, "x"), parameters={"max_tokens": 2000}, client_timeout=0.05)),
        error(lambda: http.infer(model, texts(triton_http, "x"), parameters={"unknown": 1})),
    ]
    print(json.dumps({
        "ready": ready, "described": described, "answers": answers, "same": same, "id": over_grpc.get_response().id,
        "pieces": len(pieces), "streamed": "".join(pieces), "errors": errors,
    }))


if __name__ == "__main__":
    main()

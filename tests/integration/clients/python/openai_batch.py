"""A batch of requests over the HTTP face with the stock openai package.

usage: openai_batch.py BASE_URL MESSAGE MAX_TOKENS

Prints one JSON object: {"status": .., "counts": [total, completed, failed], "text": .., "failed": {custom id: HTTP
status}, "embedded": .., "wrong": [status, [line, ..]], "cancelled": .., "files": .., "errors": [HTTP status, ..]}.
"""

import io
import json
import sys
import time

from openai import APIStatusError, OpenAI


def main() -> None:
    base_url, message, max_tokens = sys.argv[1:4]
    client = OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
    model = client.models.list().data[0].id
    chat = "/v1/chat/completions"

    def line(custom_id: str, url: str, **body) -> str:
        return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model, **body}})

    def ask(custom_id: str, **more) -> str:
        return line(custom_id, chat, messages=[{"role": "user", "content": message}], max_tokens=int(max_tokens),
                    temperature=0, **more)

    def make(endpoint: str, *lines: str):
        text = io.BytesIO("\n".join(lines).encode())
        file = client.files.create(file=("in.jsonl", text), purpose="batch")
        return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h",
                                     metadata={"run": "test"})

    def wait(batch):
        deadline = time.monotonic() + 100
        while batch.status not in ("completed", "failed", "cancelled", "expired"):
            if time.monotonic() > deadline:
                sys.exit(f"the batch is still {batch.status}: {batch.request_counts}")
            time.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
        return batch

    def results(file_id: str) -> dict:
        lines = client.files.content(file_id).text.splitlines()
        return {r["custom_id"]: r["response"] for r in map(json.loads, lines)}

    whole = client.chat.completions.create(model=model, messages=[{"role": "user", "content": message}],
                                           max_tokens=int(max_tokens), temperature=0)
    done = wait(make(chat, ask("a"), ask("b"), ask("c", top_p=7)))
    good, bad = results(done.output_file_id), results(done.error_file_id)
    texts = {r["body"]["choices"][0]["message"]["content"] for r in good.values()}
    if texts != {whole.choices[0].message.content} or sorted(good) != ["a", "b"] or done.metadata != {"run": "test"}:
        sys.exit(f"the batch has {texts} for {sorted(good)}, a single request {whole.choices[0].message.content!r}")
    embedded = wait(make("/v1/embeddings", line("e", "/v1/embeddings", input="The prince")))
    wrong = wait(make(chat, ask("a"), ask("a"), "no JSON"))
    cancelled = wait(client.batches.cancel(make(chat, *(ask(str(i)) for i in range(200))).id))
    errors = []
    for call in (lambda: client.batches.retrieve("batch_none"), lambda: client.files.content("file-none"),
                 lambda: client.batches.create(input_file_id=done.input_file_id, endpoint="/v1/moderations",
                                               completion_window="24h")):
        try:
            call()
            errors.append(0)
        except APIStatusError as e:
            errors.append(e.status_code)
    for file in client.files.list(purpose="batch"):
        client.files.delete(file.id)
    counts = done.request_counts
    print(json.dumps({
        "status": done.status, "counts": [counts.total, counts.completed, counts.failed],
        "text": whole.choices[0].message.content, "failed": {k: r["status_code"] for k, r in bad.items()},
        "embedded": len(results(embedded.output_file_id)["e"]["body"]["data"]),
        "wrong": [wrong.status, [e.line for e in wrong.errors.data]], "cancelled": cancelled.status,
        "batches": len(list(client.batches.list(limit=2))), "files": len(list(client.files.list(purpose="batch"))),
        "errors": errors,
    }))


if __name__ == "__main__":
    main()

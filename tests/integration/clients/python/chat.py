"""Chats, streamed, over the HTTP face with the stock openai package.

usage: chat.py BASE_URL MESSAGE MAX_TOKENS

Prints one JSON object: {"text": ..., "finish_reason": ..., "model": ...}.
"""

import json
import sys

from openai import OpenAI


def main() -> None:
    base_url, message, max_tokens = sys.argv[1:4]
    client = OpenAI(base_url=base_url, api_key="none", timeout=120, max_retries=0)
    model = client.models.list().data[0].id

    def ask(stream: bool):
        return client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": message}],
            max_tokens=int(max_tokens),
            temperature=0,
            stream=stream,
        )

    text, reason = [], None
    for chunk in ask(stream=True):
        for choice in chunk.choices:
            text.append(choice.delta.content or "")
            reason = choice.finish_reason or reason
    whole = ask(stream=False).choices[0]
    if whole.message.content != "".join(text):
        sys.exit(f"streamed {''.join(text)!r}, whole {whole.message.content!r}")
    print(json.dumps({"text": "".join(text), "finish_reason": reason, "model": model}))


if __name__ == "__main__":
    main()

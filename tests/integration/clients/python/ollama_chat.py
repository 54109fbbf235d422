"""Chats over Ollama's API with the stock ollama package.

usage: ollama_chat.py BASE_URL

Streams, calls a tool and answers with its result, asks for JSON by a schema, embeds, makes errors and cancels.
Prints one JSON object of what it saw.
"""

import json
import sys

from ollama import Client, ResponseError

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def get_weather(city: str) -> str:
    """Tells the weather in a city.

    Args:
      city: The name of the city.
    """
    return f"Sunny in {city}."


def error(call) -> int:
    try:
        call()
    except ResponseError as e:
        return e.status_code
    sys.exit("a wrong request succeeds")


def main() -> None:
    client = Client(host=sys.argv[1], timeout=120)
    model = client.list().models[0].model
    greedy = {"temperature": 0, "num_predict": 24}
    hello = [{"role": "user", "content": "Say hello."}]

    parts = list(client.chat(model, messages=hello, options=greedy, stream=True))
    text = "".join(p.message.content for p in parts)
    whole = client.chat(model, messages=hello, options=greedy)
    if not text or whole.message.content != text or not parts[-1].done or parts[-1].eval_count != whole.eval_count:
        sys.exit(f"streamed {text!r}, whole {whole}")
    generated = client.generate(model, prompt="Say hello.", options=greedy)
    if generated.response != text:
        sys.exit(f"generate gives {generated.response!r}, chat {text!r}")

    # No option of Ollama's forces a call, so the model may call the tool or not.
    ask = [{"role": "user", "content": "How is the weather in Rome?"}]
    answered = client.chat(model, messages=ask, tools=[get_weather], options=greedy)
    calls = answered.message.tool_calls or []
    turns = ask + [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": get_weather("Rome")},
    ]
    final = client.chat(model, messages=turns, options=greedy).message.content

    describe = [{"role": "user", "content": "Describe a person."}]
    shaped = client.chat(model, messages=describe, format=PERSON, options=greedy | {"num_predict": 60})
    person = json.loads(shaped.message.content)
    embedded = client.embed(model, input=["one", "two"]).embeddings

    for _ in client.chat(model, messages=hello, options={"num_predict": 500}, stream=True):
        break
    print(json.dumps({
        "text": text,
        "calls": [c.function.name for c in calls],
        "final": bool(final),
        "person": sorted(person),
        "embeddings": len(embedded),
        "family": client.show(model).details.family,
        "loaded": [m.model for m in client.ps().models] == [model],
        "pulled": client.pull(model).status,
        "errors": [
            error(lambda: client.chat("unknown", messages=hello)),
            error(lambda: client.chat(model, messages=hello, options={"top_k": "many"})),
            error(lambda: client.pull("unknown")),
        ],
    }))


if __name__ == "__main__":
    main()

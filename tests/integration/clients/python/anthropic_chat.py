"""Chats over /v1/messages with the stock anthropic package.

usage: anthropic_chat.py BASE_URL

Streams, calls a tool and answers with its result, asks for JSON by a schema, counts tokens, makes errors and cancels.
Prints one JSON object of what it saw.
"""

import json
import sys

import anthropic

WEATHER = {
    "name": "get_weather",
    "description": "Tells the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]},
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def error(call) -> tuple[int, str]:
    try:
        call()
    except anthropic.APIStatusError as e:
        return e.status_code, e.body["error"]["type"]
    sys.exit("a wrong request succeeds")


def main() -> None:
    client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", timeout=120, max_retries=0)
    model = client.models.list().data[0].id
    base = {"model": model, "max_tokens": 24, "extra_body": {"temperature": 0}}
    hello = [{"role": "user", "content": "Say hello."}]

    with client.messages.stream(messages=hello, **base) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    whole = client.messages.create(messages=hello, **base)
    if not text or [b.to_dict() for b in streamed.content] != [b.to_dict() for b in whole.content]:
        sys.exit(f"streamed {streamed.content}, whole {whole.content}")
    count = client.messages.count_tokens(model=model, messages=hello).input_tokens
    usage = whole.usage
    if count != usage.input_tokens + usage.cache_read_input_tokens or usage.output_tokens != streamed.usage.output_tokens:
        sys.exit(f"{count} tokens are counted, used {usage}, streamed {streamed.usage}")

    ask = [{"role": "user", "content": "How is the weather in Rome?"}]
    tools = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    base["max_tokens"] = 60
    with client.messages.stream(messages=ask, **tools, **base) as stream:
        called = stream.get_final_message()
    call = called.content[-1]
    if called.stop_reason != "tool_use" or call.type != "tool_use" or not isinstance(call.input["city"], str):
        sys.exit(f"the tool is not called: {called}")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 21 degrees."}
    turns = ask + [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(messages=turns, tools=[WEATHER], tool_choice={"type": "none"}, **base)
    if answer.stop_reason not in ("end_turn", "max_tokens") or answer.content[0].type != "text":
        sys.exit(f"the result is not answered: {answer}")

    shaped = client.messages.create(
        messages=[{"role": "user", "content": "Describe a person."}],
        output_config={"format": {"type": "json_schema", "schema": PERSON}},
        **base,
    )
    person = json.loads(shaped.content[0].text)

    with client.messages.stream(messages=hello, model=model, max_tokens=500) as stream:
        for _ in stream.text_stream:
            break  # leaving the block closes the connection
    stopped = client.messages.create(messages=hello, stop_sequences=[text.split()[1]], **base)

    print(json.dumps({
        "text": text,
        "stop": [stopped.stop_reason, stopped.stop_sequence == text.split()[1]],
        "call": call.name,
        "person": sorted(person),
        "errors": [
            error(lambda: client.messages.create(model="unknown", max_tokens=5, messages=hello)),
            error(lambda: client.messages.create(model=model, max_tokens=-1, messages=hello)),
            error(lambda: client.messages.create(model=model, max_tokens=5, messages=[])),
        ],
    }))


if __name__ == "__main__":
    main()

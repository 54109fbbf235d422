"""Lets a model call a function of this program and answers with the result, with the openai package.

usage: chat_tools.py [--base URL] [--prompt TEXT]

The first request offers a tool and requires a call; the second one sends the tool's result. The
call's name and arguments are constrained to what was offered, so they always decode.
"""

import argparse
import json

from openai import OpenAI

NUMBER = {"type": "integer", "minimum": 0, "maximum": 9999}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "Multiplies two integers.",
            "parameters": {
                "type": "object",
                "properties": {"a": NUMBER, "b": NUMBER},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="http://127.0.0.1:8080/v1", help="base URL of the HTTP API")
    parser.add_argument("--prompt", default="What is 12 times 34?", help="the user's message")
    args = parser.parse_args()

    client = OpenAI(base_url=args.base, api_key="none", timeout=60)
    model = client.models.list().data[0].id

    def ask(messages, tool_choice):
        return client.chat.completions.create(
            model=model,
            messages=messages,
            tools=TOOLS,
            tool_choice=tool_choice,
            parallel_tool_calls=False,
            max_tokens=256,
            temperature=0.8,
            seed=1,
            frequency_penalty=1,  # keeps small models from repeating white space, which JSON allows
        ).choices[0].message

    messages = [{"role": "user", "content": args.prompt}]
    # "required" makes even a model that never saw a tool write a call. With "auto" the model decides.
    answer = ask(messages, "required")
    messages.append(answer.model_dump(exclude_none=True))
    for call in answer.tool_calls:
        arguments = json.loads(call.function.arguments)
        result = round(arguments["a"] * arguments["b"])
        print(f"{call.function.name}({arguments['a']:.0f}, {arguments['b']:.0f}) = {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    print(ask(messages, "none").content)


if __name__ == "__main__":
    main()

"""Asks for an answer that matches a JSON Schema, with the openai package.

usage: structured.py [--base URL] [--prompt TEXT]

Tokens that would leave the schema are masked while the answer is generated, so every complete
answer matches the schema, whichever model writes it.
"""

import argparse
import json
import sys

from openai import OpenAI

# Lengths are limited so that small models come to an end.
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 24},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "traits": {
            "type": "array",
            "items": {"enum": ["brave", "kind", "proud", "clever"]},
            "minItems": 1,
            "maxItems": 3,
        },
    },
    "required": ["name", "age", "traits"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="http://127.0.0.1:8080/v1", help="base URL of the HTTP API")
    parser.add_argument("--prompt", default="Describe a person in the novel as JSON.", help="the user's message")
    args = parser.parse_args()

    client = OpenAI(base_url=args.base, api_key="none", timeout=60)
    choice = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": args.prompt}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}},
        max_tokens=256,
        temperature=0.8,
        seed=1,
        frequency_penalty=1,  # keeps small models from repeating white space, which JSON allows
    ).choices[0]
    if choice.finish_reason != "stop":
        sys.exit(f"the answer is not complete: {choice.message.content!r}")  # max_tokens was too small
    person = json.loads(choice.message.content)
    print(f"{person['name']!r} is {person['age']:.0f} years old and {', '.join(person['traits'])}")


if __name__ == "__main__":
    main()

"""Uses Lamina's MCP server with the stock mcp package.

usage: mcp_client.py LAMINA GRPC_ADDRESS

Lists the tools of `lamina mcp --router GRPC_ADDRESS`, calls each, and makes an error. Prints one JSON object of what it
saw.
"""

import asyncio
import json
import sys

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def main() -> None:
    server = StdioServerParameters(command=sys.argv[1], args=["mcp", "--router", sys.argv[2]])
    async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = sorted(t.name for t in (await session.list_tools()).tools)
        asked = {"prompt": "Say hello.", "max_tokens": 8, "temperature": 0}
        said = await session.call_tool("generate", asked)
        again = await session.call_tool("generate", asked)
        embedded = await session.call_tool("embed", {"texts": ["a", "b"]})
        status = await session.call_tool("mesh_status", {})
        failed = await session.call_tool("generate", {"prompt": "x", "model": "unknown"})
    first, second = json.loads(embedded.content[0].text), json.loads(status.content[0].text)
    print(json.dumps({
        "tools": tools, "text": said.content[0].text, "same": said.content[0].text == again.content[0].text,
        "embeddings": len(first["embeddings"]), "pipelines": len(second["pipelines"]),
        "failed": any([failed.isError if hasattr(failed, "isError") else failed.is_error]),
    }))


if __name__ == "__main__":
    asyncio.run(main())

// Package anthropic is the router's API in the form of Anthropic's Messages: POST /v1/messages, with and without
// streaming, and POST /v1/messages/count_tokens. It translates requests to router.v1's ChatRequest and parsed text to
// content blocks.
//
// A request has a model (empty for the only one), messages, max_tokens, and optionally system, stop_sequences,
// temperature, top_p, top_k, tools, tool_choice, thinking, output_config and stream. Content is a string or a list of
// blocks: text, document with a text source, tool_use, tool_result, thinking and redacted_thinking (whose contents
// the model does not see). A last message of the assistant is continued.
//
// tools may have tools that the server runs (package agent): web_search_20250305 and web_fetch_20250910 with max_uses,
// or the entries that OpenAI's chats have. Their calls and results are blocks (server_tool_use, web_search_tool_result,
// web_fetch_tool_result, mcp_tool_use, mcp_tool_result), which are accepted in messages and skipped. Citations are
// those of the last block of text, if no call follows it.
//
// tool_choice is auto, any, tool or none; disable_parallel_tool_use allows one call at most. The input of a call
// follows the tool's schema as far as the schema is supported, and always for a tool with strict.
// output_config.format with a json_schema constrains the answer.
//
// Thinking blocks are part of the answer if thinking is enabled or adaptive. The chat template gets enable_thinking
// accordingly. budget_tokens is checked and is a hint: the reasoning and the answer together have at most max_tokens.
// The signature of a thinking block is a hash of its text; signatures that come in are not checked.
//
// A stream has message_start, ping, for each block content_block_start, its deltas and content_block_stop, then
// message_delta with stop_reason and usage, and message_stop. A stream that fails ends with an error event instead.
// The blocks of a stream add up to those of the whole response.
//
// Errors have Anthropic's shape. A full router is overloaded_error with status 529, and a tenant that is over its
// quota gets rate_limit_error with status 429; both have Retry-After. metadata, service_tier and cache_control are
// hints and are ignored; any other field that is not supported is refused by name.
package anthropic

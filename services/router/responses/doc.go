// Package responses is the router's API in the form of OpenAI's Responses: POST /v1/responses, with and without
// streaming, and GET and DELETE /v1/responses/{id} and GET /v1/responses/{id}/input_items for stored responses.
//
// A request becomes one chat. instructions and the items of input become its messages: message (roles user,
// assistant, system and developer, with text), reasoning, function_call and function_call_output. Items of the
// assistant that follow each other are one turn. With previous_response_id, the items of the stored response and of
// those before it come first; their instructions do not.
//
// Tools are functions, and those that the server runs (package agent): web_search, read_page and mcp, whose calls are
// items of type web_search_call and mcp_call; citations are annotations of the message. The items of such calls are
// accepted in the input and skipped; a stored response remembers what the tools returned. tool_choice
// is none, auto, required, a function, a tool of the server or allowed_tools. text.format constrains the answer by a
// JSON schema. reasoning.effort goes to the chat template, and "none" turns reasoning off there. truncation "auto"
// drops the oldest turns of a chat that is too long.
//
// The answer has reasoning, message and function_call items in the order in which the model wrote them. The events of
// a stream are numbered by sequence_number and add up to the whole response, which the last event has. A stream ends
// with response.completed or response.incomplete and [DONE], or else with response.failed.
//
// Responses are stored in the memory of the router unless store is false, for an hour and as long as there is room:
// the least recently used ones are dropped first. A tenant sees its own only. A router that restarts, and other
// routers, do not have them; clients that need more send the items again.
//
// With include "message.output_text.logprobs" a message has the log-probabilities of its tokens, and top_logprobs the
// likeliest tokens at each place.
//
// Hints (user, metadata, other values of include, service_tier, prompt_cache_key, safety_identifier, text.verbosity) do
// not change the answer. background, conversation, prompt and other built-in tools are refused by name.
package responses

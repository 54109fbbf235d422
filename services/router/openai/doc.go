// Package openai is the router's OpenAI-compatible HTTP API: /v1/models, /v1/completions and
// /v1/chat/completions, with and without streaming, and /v1/embeddings. It only translates: the backend makes
// the decisions and most checks, and this package bounds what it has to count or convert
// itself (n, prompts, integers).
//
// A request becomes one job for each choice. The jobs run concurrently; they share the seed and
// draw independently. They share a context that ends when the client disconnects, when a write
// fails, or when one of them fails. With best_of, more choices are generated than returned. The
// choices with the highest mean log-probability per token are returned.
//
// A streamed response is a sequence of server-sent events, each flushed at once. It ends with
// a finish reason for every choice and [DONE], or else with an error event, so that a
// truncated response never looks complete. A client that does not read an event for 30
// seconds is disconnected.
//
// pkg/toolcall parses the text of a chat in the format that the backend names: tool calls become
// tool_calls and reasoning becomes reasoning_content, in streams incrementally. Messages may
// contain both in the form in which responses have them. documents, chat_template_kwargs,
// reasoning_effort, add_generation_prompt and continue_final_message go to the chat template;
// reasoning_format "none" leaves the reasoning in the content.
//
// tool_choice is "none" (the tools are hidden from the model), "auto", "required" (only calls,
// after the optional reasoning) or {"type": "function", "function": {"name": ..}}; with
// parallel_tool_calls false there is at most one call. A call always names one of the tools. Its
// arguments follow the tool's schema. If the schema cannot be enforced, the arguments are any
// object, and a tool with strict is refused. response_format and its alternatives constrain the
// content, and have no effect if calls are required. If calls are required and the chat template
// does not support tools, the tools are described in the last user message. If max_tokens truncates
// a call, the finish reason is "length".
//
// Tools that the server runs are named in tools by a type other than function (package agent), or by
// web_search_options. The answer then has the text of all turns, executed_tools with the calls that the server has run,
// and annotations with citations; in a stream they come as deltas, the citations with the finish reason. max_tokens
// bounds all turns together and usage adds them up. n, logprobs, resumable and prompts that continue the last message
// are refused with them.
//
// # Context and choices
//
// A prompt that fills the model's context is refused with code context_length_exceeded, naming its
// tokens and the context length. A prompt that fits is served whatever max_tokens says: the
// generation ends at the context length with finish reason "length". So a max_tokens beyond the
// rest of the context is no error, as in llama.cpp's server. Without max_tokens a completion has 16
// tokens, as in OpenAI's API, and a chat has the model's default number or as many as the context
// holds.
//
// context_policy changes what happens at the context length. It is "stop", the default; "slide"; or
// "truncate_middle"; or an object {"type": "slide", "length": 4096, "sinks": 4, "window": 2000} whose
// numbers are optional. length is the context length, by default the model's; if the KV cache holds
// less than the request needs of it, the request is refused, so that the answer depends on the request
// alone. "slide" keeps the first tokens (sinks: 4, or a chat's system messages) and the latest ones
// (window: half of the rest) whenever the context is full. Their keys and values are recomputed at
// their new positions. Sampling, stop strings and max_tokens go on as if nothing had been dropped.
// "truncate_middle" drops a chat's oldest turns after the system messages, and tokens in the middle of
// other prompts, so that the prompt and a quarter of the context, or max_tokens, fit. Each choice then
// has a field context: the policy, its numbers, dropped_tokens, dropped (runs of positions: of the
// whole text for "slide", of the prompt for "truncate_middle"), dropped_messages and recomputed. In a
// stream the first and the last event of a choice have it, and each event before whose token the
// window slid has dropped_tokens and dropped.
//
// priority, as in vLLM, is -100 to 100; a lower value is served earlier. wait_for_capacity is how many
// seconds, at most 3600, a request waits while no pipeline can run it; by default it is refused within
// 5 s, and with 0 at once. Refusals have a Retry-After header and the field retry_after: status 429
// with code rate_limit_exceeded if the tenant has used up its quota of waiting requests, and status
// 503 with code queue_full or no_capacity.
//
// n and best_of go up to 128, if the KV cache holds that many sequences at once. Otherwise the
// error says how many it holds. echo reports the prompt before the answer, with logprobs the
// log-probability of every prompt token after the first; with echo, max_tokens 0 reports the prompt
// alone. suffix makes a fill-in-the-middle prompt, for models that have the tokens for it. Sampling
// parameters that a request leaves out come from the model's generation_config.json, which
// /v1/models shows as default_sampling_params.
//
// Every response has the header x-request-id: the request's own, if it is 1 to 128
// letters, digits and -_.:/+=@, or a new one. Log lines about the request carry it as
// request_id, and it is part of the answer's id.
//
// # Streams that resume
//
// With "resumable": true a request with one choice goes on when its connection or its router is lost. Its
// id is that of the header x-request-id, which then has at least 32 characters and must be hard to
// guess. GET /v1/requests/{id}/stream?from=N sends its events again from number N on, from any router
// of the mesh, in the same bytes. The events of such a stream have their numbers as SSE ids: a token its
// index, then the end, the usage and [DONE]. So a browser's EventSource, which sends Last-Event-ID,
// resumes by itself; when it has everything it gets 204, after which it does not connect again. An error
// event after which the stream can be resumed has a resume_id. DELETE /v1/requests/{id} ends the
// request, which otherwise runs on for a minute without a reader. The header Lamina-Tenant names
// the tenant, and other tenants get 404.
//
// A field that is not supported is refused by name and never ignored. An example is
// dry_sequence_breakers with strings. Fields that are only hints (user, store, metadata) are
// ignored.
//
// # Fields beyond OpenAI's
//
// They are spelled as in llama.cpp's and vLLM's servers, and off by default:
//
//   - top_k, min_p, typical_p, top_n_sigma, epsilon_cutoff, eta_cutoff;
//   - xtc_probability, xtc_threshold; dynatemp_range, dynatemp_exponent;
//   - repetition_penalty or repeat_penalty, repeat_last_n (how far it looks back; -1,
//     the default, is all), no_repeat_ngram_size;
//   - dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n (-1, the default,
//     is all), dry_sequence_breakers (lists of ids);
//   - mirostat (1 or 2), mirostat_tau, mirostat_eta;
//   - bad_words (texts, or lists of ids), bad_words_ids; min_tokens; for completions
//     ignore_end;
//   - samplers, the names of the samplers in their order, ours or llama.cpp's. A sampler that
//     is on but not listed is refused; min_tokens, logit_bias, bad_words and no_repeat_ngram
//     need not be listed and come first, mirostat comes last.
//   - response_format (json_object, json_schema, or structural_tag with the input of
//     grammar.Structure), grammar, json_schema, guided_json, guided_regex, guided_choice or
//     guided_grammar constrain the text;
//   - resumable.
//
// The package holds no state between requests and knows nothing of shards. The program that mounts the
// handler owns the listener, its header timeouts and access control.
package openai

// Package openai is the router's OpenAI-style HTTP face: /v1/models,
// /v1/completions and /v1/chat/completions, streamed and not, with the shapes that
// stock OpenAI clients expect. It translates; the backend decides and checks: this
// package bounds only what it must count or convert itself (n, prompts, integers).
//
// A request becomes one job for each choice; the jobs run at once, the seed of
// choice i is the request's plus i. The jobs share a context that ends when the
// client goes away, when a write fails, or when one of them fails.
//
// A streamed answer is a row of server-sent events, each flushed by itself. It ends
// with a finish reason for every choice and [DONE], or with an error event and
// neither: a cut answer never looks whole. A reader that leaves an event untaken for
// 30 seconds is cut.
//
// A chat's text is read by pkg/toolcall in the format that the backend names: tool
// calls become tool_calls, reasoning becomes reasoning_content, in streams as they
// come. Back in messages they are taken as they were given. documents,
// chat_template_kwargs, reasoning_effort, add_generation_prompt and
// continue_final_message go to the chat template; reasoning_format "none" leaves
// reasoning in the content.
//
// What the mesh cannot do is refused by name, never dropped: answers of a given
// shape (response_format), forced tools, text after the answer (suffix), the
// log-probabilities of a prompt (echo with logprobs). Fields that are hints (user,
// store, metadata) are passed over. Beyond OpenAI's it reads top_k, min_p,
// repetition_penalty and, for completions, ignore_end.
//
// It is not the router: it holds no state between requests and knows no shard. Who
// mounts it owns the listener, its header timeouts and who may ask.
package openai

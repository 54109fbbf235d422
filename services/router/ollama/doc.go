// Package ollama is the router's API in the form of Ollama's: /api/chat, /api/generate, /api/embed, /api/embeddings,
// /api/tags, /api/show, /api/ps, /api/version and /api/pull. Streams are lines of JSON and are the default, as in
// Ollama.
//
// A model is named as the mesh names it; ":latest" behind a name is dropped. Models are loaded by shards and not on
// request: /api/pull and an empty prompt answer at once for a model that is served, and otherwise with an error.
// keep_alive has no effect.
//
// /api/generate wraps the prompt, after system, in the model's chat template, unless raw is set or the model has
// none. suffix makes a fill-in-the-middle prompt. format is "json" or a JSON schema and constrains the answer. think
// false turns reasoning off in the chat template and drops it; otherwise reasoning is in the field thinking. A call
// of a tool is sent whole, once its arguments are complete. Results of tools find their call by tool_call_id,
// tool_name or else their order.
//
// tools may name tools that the server runs (package agent) by a type other than function. The answer then has the text
// of all turns. The calls are in executed_tools of the message, in a stream as they end, and citations in annotations
// of the last line's message, both in the form that they have in OpenAI's chats. num_predict bounds all turns together.
//
// options has Ollama's names. num_predict, temperature, top_k, top_p, min_p, typical_p, seed, stop, repeat_penalty,
// repeat_last_n, presence_penalty, frequency_penalty, mirostat, mirostat_tau and mirostat_eta are applied; an option
// that is left out has the model's default. Options about loading (num_ctx, num_gpu, num_thread and others) have no
// effect. Any other option, images, template and context are refused by name.
//
// With logprobs each line has the log-probabilities of the tokens since the line before, those of reasoning and of tool
// calls too, and top_logprobs (0 to 20) the likeliest tokens at each place.
//
// An error is {"error": text}: as the whole response with a status, or as the last line of a stream, which then has
// no line with done.
package ollama

// Package openai is the router's OpenAI-style HTTP face: /v1/models,
// /v1/completions and /v1/chat/completions, streamed and not, with the shapes that
// stock OpenAI clients expect. It translates; the backend decides and checks: this
// package bounds only what it must count or convert itself (n, prompts, integers).
//
// A request becomes one job for each choice; the jobs run at once, with one seed,
// each drawing on its own. The jobs share a context that ends when the client goes
// away, when a write fails, or when one of them fails. With best_of more choices run
// than are shown: those whose tokens are likeliest on average, under the model.
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
// tool_choice is "none" (the model is not told of tools), "auto", "required" (calls and
// nothing else, after the reasoning) or {"type": "function", "function": {"name": ..}};
// parallel_tool_calls false takes one call at most. Once a call is opened its name is
// one of the tools' and its arguments fit their schema: always where the tool says
// strict, else as far as the schema can be honoured, and any object where it cannot. A
// strict schema that cannot be honoured is refused. response_format and its like hold
// the content, and say nothing where calls are required. A model whose chat template
// knows no tools is told of those that it must call in the user's turn. A call that
// max_tokens cuts off is cut off: its choice ends with "length".
//
// # Context and choices
//
// A prompt that fills the model's context is refused with code context_length_exceeded,
// naming its tokens and the context length. A prompt that fits is served whatever
// max_tokens says: the generation ends at the context length with finish reason
// "length". max_tokens beyond the rest of the context is thus no error, as in
// llama.cpp's server. Without max_tokens a completion has 16 tokens, as OpenAI's, and a
// chat as many as the model's default says or the context holds.
//
// n and best_of go up to 128, as far as the KV cache holds so many sequences at once;
// the refusal names how many it holds. echo reports the prompt before the answer, with
// logprobs the log-probability of every prompt token after the first; with echo,
// max_tokens 0 reports the prompt alone. suffix makes a fill-in-the-middle prompt, for
// models with the tokens of one. Sampling parameters that a request leaves out are the
// model's own, from its generation_config.json, which /v1/models shows as
// default_sampling_params; values in the request win.
//
// Every response has the header x-request-id: the request's own, if it is 1 to 128
// letters, digits and -_.:/+=@, or a new one. Log lines about the request carry it as
// request_id, and it is part of the answer's id.
//
// What the mesh cannot do is refused by name, never dropped: DRY's breakers as texts.
// Fields that are hints (user, store, metadata) are ignored.
//
// # Fields beyond OpenAI's
//
// As llama.cpp's and vLLM's servers spell them, and by default off:
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
//   - samplers, the names of the rules in their order, ours or llama.cpp's. A rule that
//     is on and not in the list is refused; min_tokens, logit_bias, bad_words and
//     no_repeat_ngram need not be in it and come first, mirostat comes last.
//   - response_format (json_object, json_schema, or structural_tag with what
//     grammar.Structure takes), grammar, json_schema, guided_json, guided_regex, guided_choice or
//     guided_grammar hold the text to a shape.
//
// It is not the router: it holds no state between requests and knows no shard. Who
// mounts it owns the listener, its header timeouts and who may ask.
package openai

// completion.js asks for an answer and collects it as it comes. It hides that models without a chat template continue
// plain text by another route of the API.

import { stream } from "./api.js";
import { path, prompt } from "./conversation.js";

const numbers = { temperature: "temperature", top_p: "top_p", top_k: "top_k", min_p: "min_p", seed: "seed",
  max_tokens: "max_tokens", repetition_penalty: "repetition_penalty" };

// candidates is how many likely tokens are asked for at each place.
const candidates = 5;

function request(c, model, leaf) {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const [name, field] of Object.entries(numbers)) {
    const value = c.parameters[name];
    if (value !== undefined && value !== "") body[field] = Number(value);
  }
  if (c.parameters.stop) body.stop = c.parameters.stop.split("\n").filter(Boolean);
  const probabilities = c.parameters.probabilities !== false;
  if (!model.chat) {
    body.prompt = [c.system, ...path(c, leaf).map((m) => m.content)].filter(Boolean).join("");
    if (probabilities) body.logprobs = candidates;
    return ["/v1/completions", body];
  }
  body.messages = prompt(c, leaf);
  if (probabilities) {
    body.logprobs = true;
    body.top_logprobs = candidates;
  }
  if (c.tools.trim()) {
    try {
      body.tools = JSON.parse(c.tools);
    } catch (error) {
      throw new Error(`The tools are no JSON: ${error.message}`);
    }
  }
  return ["/v1/chat/completions", body];
}

// complete adds the answer that follows a message to the given message as it comes, and calls changed after each event.
// It returns when the answer is whole, and throws if it was cut off. The stats are there in any case.
export async function complete(c, model, leaf, answer, changed, signal) {
  const [route, body] = request(c, model, leaf);
  const began = performance.now();
  const stats = answer.stats = { model: model.id };
  if (body.seed !== undefined) stats.seed = body.seed;
  let first = 0;
  let pieces = 0;
  let whole = false;
  for await (const data of stream("POST", route, body, signal)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const event = JSON.parse(data);
    if (event.error) throw new Error(event.error.message);
    for (const choice of event.choices) {
      if (take(answer, choice)) {
        const now = performance.now();
        first ||= now;
        pieces++;
        stats.first = (first - began) / 1000;
        stats.seconds = (now - first) / 1000;
        stats.tokens = pieces;
      }
      if (choice.finish_reason) stats.finish = choice.finish_reason;
    }
    if (event.system_fingerprint) stats.fingerprint = event.system_fingerprint;
    if (event.usage) {
      stats.prompt = event.usage.prompt_tokens;
      stats.tokens = event.usage.completion_tokens; // tokens without text have no event
      stats.cached = event.usage.prompt_tokens_details?.cached_tokens || 0;
    }
    if (stats.tokens > 1 && stats.seconds > 0) stats.rate = (stats.tokens - 1) / stats.seconds;
    changed();
  }
  if (!whole) throw new Error("The answer was cut off.");
}

// take adds one event of a choice to an answer. It reports whether there was anything in it.
function take(answer, choice) {
  const delta = choice.delta || { content: choice.text };
  const before = answer.content.length + (answer.reasoning || "").length;
  answer.content += delta.content || "";
  const reasoning = delta.reasoning_content || delta.reasoning;
  if (reasoning) answer.reasoning = (answer.reasoning || "") + reasoning;
  for (const part of delta.tool_calls || []) {
    answer.calls ||= [];
    const call = answer.calls[part.index] ||= { id: "", name: "", arguments: "" };
    call.id ||= part.id || "";
    call.name += part.function?.name || "";
    call.arguments += part.function?.arguments || "";
  }
  const tokens = probabilities(choice.logprobs);
  if (tokens.length) (answer.tokens ||= []).push(...tokens);
  return tokens.length > 0 || answer.content.length + (answer.reasoning || "").length > before ||
    Boolean(delta.tool_calls?.length);
}

// probabilities returns [text, log-probability, [[text, log-probability], ..]] for each token of an event.
function probabilities(of) {
  if (of?.content) {
    return of.content.map((t) => [t.token, t.logprob, (t.top_logprobs || []).map((o) => [o.token, o.logprob])]);
  }
  if (of?.tokens) {
    return of.tokens.map((text, i) => [text, of.token_logprobs[i], Object.entries(of.top_logprobs?.[i] || {})]);
  }
  return [];
}

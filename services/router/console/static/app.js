// The chat: sends requests to the OpenAI-compatible API and shows the answer as it streams.

import { element, watch } from "./mesh.js";

const $ = (id) => document.getElementById(id);
let models = [];
let turns = []; // the messages of the chat so far
let running = null; // aborts the answer that is being generated

async function json(response) {
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error?.message || `the router answers ${response.status}`);
  return body;
}

async function loadModels() {
  models = (await json(await fetch("/v1/models"))).data;
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((m) => {
    const option = element("option", "", m.id);
    option.value = m.id;
    option.selected = m.id === chosen;
    return option;
  }));
}

function show(role, text) {
  const body = element("div", "text", text);
  $("turns").append(element("div", `turn ${role}`, element("b", "who", role), body));
  $("turns").scrollTop = $("turns").scrollHeight;
  return body;
}

// events yields the objects of a stream until [DONE]. A stream that ends without [DONE] is
// an error.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer was cut off");
    rest += value;
    for (let at; (at = rest.indexOf("\n\n")) >= 0;) {
      const data = rest.slice(0, at).replace(/^data: /, "");
      rest = rest.slice(at + 2);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// meter counts tokens and their rate, from the first token to the last.
function meter() {
  let first = 0;
  let last = 0;
  let pieces = 0;
  const say = (count) => {
    const seconds = (last - first) / 1000;
    const rate = count > 1 && seconds > 0 ? `, ${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
    $("speed").textContent = `${count} ${count === 1 ? "token" : "tokens"}${rate}`;
  };
  return {
    piece() {
      last = performance.now();
      first ||= last;
      say(++pieces);
    },
    total: say, // tokens without text have no event
  };
}

function request(model, text) {
  const body = {
    model: model.id, stream: true, stream_options: { include_usage: true },
    temperature: Number($("temperature").value), max_tokens: Number($("tokens").value),
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  if (model.chat) body.messages = [...turns, { role: "user", content: text }];
  else body.prompt = text;
  return body;
}

async function ask(text, signal) {
  await loadModels();
  const model = models.find((m) => m.id === $("model").value);
  if (!model) throw new Error("no model is served yet");
  show("user", text);
  const answer = show("assistant", model.chat ? "" : text);
  const speed = meter();
  let reply = "";
  let ended = "";
  try {
    const response = await fetch(model.chat ? "/v1/chat/completions" : "/v1/completions", {
      method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(request(model, text)),
    });
    if (!response.ok) await json(response);
    for await (const event of events(response)) {
      for (const choice of event.choices) {
        const piece = (model.chat ? choice.delta.content : choice.text) || "";
        ended = choice.finish_reason || ended;
        if (!piece) continue;
        reply += piece;
        answer.append(piece);
        speed.piece();
        $("turns").scrollTop = $("turns").scrollHeight;
      }
      if (event.usage) speed.total(event.usage.completion_tokens);
    }
    if (ended === "length") answer.append(element("small", "note", "ended at the token limit"));
  } finally {
    // A turn without its answer would leave the next chat with two questions in a row.
    if (model.chat && reply) turns.push({ role: "user", content: text }, { role: "assistant", content: reply });
  }
}

function busy(on) {
  $("turns").setAttribute("aria-busy", String(on));
  $("send").disabled = on;
  $("stop").disabled = !on;
  $("fresh").disabled = on;
}

$("ask").addEventListener("submit", async (e) => {
  e.preventDefault();
  const text = $("text").value;
  if (running || !text.trim()) return;
  running = new AbortController();
  busy(true);
  $("text").value = "";
  try {
    await ask(text, running.signal);
  } catch (error) {
    if (error.name === "AbortError") show("note", "stopped");
    else show("error", error.message);
  } finally {
    running = null;
    busy(false);
    $("text").focus();
  }
});

$("stop").addEventListener("click", () => running?.abort());

$("fresh").addEventListener("click", () => {
  turns = [];
  $("turns").replaceChildren();
  $("speed").textContent = "";
  $("text").focus();
});

document.addEventListener("keydown", (e) => {
  if (e.key === "Escape") running?.abort();
});

$("text").addEventListener("keydown", (e) => {
  if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
  e.preventDefault();
  if (!running) $("ask").requestSubmit();
});

const refresh = () => loadModels().catch((error) => show("error", error.message));
refresh();
watch({ link: $("link"), pipelines: $("pipelines"), members: $("members") }, refresh);

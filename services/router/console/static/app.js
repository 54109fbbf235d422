"use strict";

const $ = (id) => document.getElementById(id);
const turns = [];
let models = [];
let running = null;

function element(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

async function loadModels() {
  const response = await fetch("/v1/models");
  models = (await response.json()).data || [];
  const chosen = $("model").value;
  $("model").replaceChildren(...models.map((m) => {
    const option = element("option", "", m.id);
    option.value = m.id;
    return option;
  }));
  if (models.some((m) => m.id === chosen)) $("model").value = chosen;
}

function show(role, text) {
  const turn = element("div", "turn " + role, text);
  $("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

// events yields the data of server-sent events until [DONE].
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer was cut off");
    rest += value;
    for (let at; (at = rest.indexOf("\n\n")) >= 0; rest = rest.slice(at + 2)) {
      const data = rest.slice(0, at).replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function ask(text) {
  const model = models.find((m) => m.id === $("model").value);
  if (!model) throw new Error("no model is served yet");
  const body = {
    model: model.id, stream: true, stream_options: { include_usage: true },
    temperature: Number($("temperature").value), max_tokens: Number($("tokens").value),
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  show("user", text);
  if (model.chat) {
    turns.push({ role: "user", content: text });
    body.messages = turns;
  } else {
    body.prompt = text;
  }
  const answer = show("assistant", model.chat ? "" : text);
  running = new AbortController();
  $("send").textContent = "Stop";
  const started = performance.now();
  const response = await fetch(model.chat ? "/v1/chat/completions" : "/v1/completions", {
    method: "POST", signal: running.signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error((await response.json()).error.message);
  let reply = "";
  for await (const event of events(response)) {
    for (const choice of event.choices) {
      const piece = model.chat ? choice.delta.content || "" : choice.text;
      reply += piece;
      answer.append(piece);
      answer.scrollIntoView({ block: "end" });
    }
    if (event.usage) {
      const seconds = (performance.now() - started) / 1000;
      $("speed").textContent = `${event.usage.completion_tokens} tokens, ${(event.usage.completion_tokens / seconds).toFixed(1)} a second`;
    }
  }
  if (model.chat) turns.push({ role: "assistant", content: reply });
}

$("ask").addEventListener("submit", async (e) => {
  e.preventDefault();
  if (running) return running.abort();
  const text = $("text").value;
  if (!text.trim()) return;
  $("text").value = "";
  try {
    await ask(text);
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  } finally {
    running = null;
    $("send").textContent = "Send";
  }
});

document.addEventListener("keydown", (e) => {
  if (e.key === "Escape" && running) running.abort();
  if (e.key === "Enter" && !e.shiftKey && e.target === $("text") && !running) {
    e.preventDefault();
    $("ask").requestSubmit();
  }
});

function showPipelines(mesh) {
  $("pipelines").replaceChildren(...(mesh.pipelines || []).map((p) => {
    const chain = element("div", "chain");
    for (const hop of p.stages) {
      if (chain.childNodes.length) chain.append(element("span", "arrow", "→"));
      const box = element("div", "hop", `layers ${hop.lo || 0}–${hop.hi}`);
      box.append(element("small", "", hop.address));
      chain.append(box);
    }
    chain.append(element("span", "arrow", "→"));
    const sampler = element("div", "hop", "sampler");
    sampler.append(element("small", "", p.sampler));
    chain.append(sampler);
    const load = element("div", "hop", `${(p.tokens_per_second || 0).toFixed(1)} tokens/s`);
    load.append(element("small", "", `${p.running || 0} running, ${p.waiting || 0} waiting`));
    chain.append(load);
    return chain;
  }));
}

function showMembers(mesh) {
  $("members").replaceChildren(...(mesh.members || []).flatMap((m) => {
    const held = m.held && m.held.length ? m.held : [null];
    return held.map((h) => {
      const row = element("tr");
      row.append(element("td", "", m.service), element("td", "", m.address));
      row.append(element("td", "", h ? `${h.model} ${h.lo || 0}–${h.hi} of ${h.layers}` : ""));
      const pages = element("td");
      if (h) {
        const meter = element("meter");
        meter.max = h.kv_pages;
        meter.value = h.kv_pages_used || 0;
        meter.title = `${h.kv_pages_used || 0} of ${h.kv_pages}`;
        pages.append(meter);
      }
      row.append(pages, element("td", "", h ? String(h.sessions || 0) : ""));
      return row;
    });
  }));
}

new EventSource("/api/topology").onmessage = (e) => {
  const mesh = JSON.parse(e.data);
  showPipelines(mesh);
  showMembers(mesh);
  loadModels();
};
loadModels();

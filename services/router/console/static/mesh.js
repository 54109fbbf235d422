// The live mesh: each pipeline's chain of stages, and the live services.

export function element(tag, className, ...children) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  e.append(...children); // strings become text, never markup
  return e;
}

const layers = (span) => `layers ${span.lo || 0}–${span.hi - 1}`;

// card is one box of a chain.
function card(title, lines, ...rest) {
  return element("li", "card", element("b", "", title), ...lines.map((l) => element("small", "", l)), ...rest);
}

function stage(hop, pipeline, members) {
  const member = members.find((m) => m.service === "shard" && m.address === hop.address);
  const held = (member?.held || []).find((h) => h.digest === pipeline.digest);
  if (!held) return card(layers(hop), [hop.address]);
  const used = held.kv_pages_used || 0;
  const meter = element("meter");
  meter.max = held.kv_pages || 1;
  meter.value = used;
  const label = `KV pages ${used} of ${held.kv_pages || 0}`;
  meter.setAttribute("aria-label", label);
  const sessions = held.sessions || 0;
  return card(layers(hop), [member.id, hop.address], meter, element("small", "", label),
    element("small", "", `${sessions} ${sessions === 1 ? "session" : "sessions"}`));
}

function pipeline(p, members) {
  const rate = `${(p.tokens_per_second || 0).toFixed(1)} tokens/s`;
  const load = `${p.running || 0} running, ${p.waiting || 0} waiting, ${(p.step_ms || 0).toFixed(1)} ms a step`;
  const kv = `KV pages ${p.kv_pages_held || 0} of ${p.kv_pages || 0}, ${p.kv_pages_cached || 0} of them cached`;
  const hits = p.prefix_queries ? `, ${(100 * (p.prefix_hits || 0) / p.prefix_queries).toFixed(0)} % of prompts from the cache` : "";
  const chain = element("ol", "chain", ...p.stages.map((hop) => stage(hop, p, members)), card("sampler", [p.sampler]));
  chain.setAttribute("aria-label", "Stages in order");
  return element("article", "pipeline", element("h3", "", p.model, " ", element("small", "", `${rate}, ${load}`)),
    element("small", "", kv + hits), chain);
}

function row(m) {
  const holds = (m.held || []).map((h) => `${h.model}, ${layers(h)} of ${h.layers}`).join("; ");
  return element("tr", "", ...[m.service, m.id, m.address, holds].map((text) => element("td", "", text || "")));
}

// watch shows each topology as it arrives and calls changed when the set of pipelines changes.
export function watch(at, changed) {
  let known = "";
  const source = new EventSource("/api/topology");
  source.onopen = () => { at.link.textContent = "live"; };
  source.onerror = () => { at.link.textContent = "lost, trying again"; };
  source.onmessage = (e) => {
    const mesh = JSON.parse(e.data);
    const members = mesh.members || [];
    const pipelines = mesh.pipelines || [];
    at.pipelines.replaceChildren(...pipelines.map((p) => pipeline(p, members)));
    if (!pipelines.length) at.pipelines.append(element("p", "", "No pipeline is open: the shards that were found cover no model."));
    at.members.replaceChildren(...members.map(row));
    const now = pipelines.map((p) => p.id).join();
    if (now !== known) changed();
    known = now;
  };
}

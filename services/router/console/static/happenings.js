// happenings.js compares two states of the mesh and says what has happened in between. It is pure.

import { layers } from "./format.js";

const byKey = (list, key) => new Map((list || []).map((o) => [key(o), o]));
const memberKey = (m) => `${m.service} ${m.id}`;
const short = (id) => id.slice(0, 8);

// happenings returns [{kind, text}], in an order in which a reader understands them: hosts, pipelines, work. kind is
// "good", "bad", "lost" or "note". Before the first state nothing has happened.
export function happenings(before, after) {
  if (!before) return [];
  const out = [];
  members(before, after, out);
  pipelines(before, after, out);
  placement(before, after, out);
  return out;
}

function members(before, after, out) {
  const old = byKey(before.members, memberKey);
  const now = byKey(after.members, memberKey);
  for (const [key, m] of old) {
    if (!now.has(key)) out.push({ kind: "bad", text: `${title(m.service)} ${m.id} is gone${holding(m)}.` });
  }
  for (const [key, m] of now) {
    if (!old.has(key)) out.push({ kind: "good", text: `${title(m.service)} ${m.id} has joined${holding(m)}.` });
    else changedSpans(old.get(key), m, out);
  }
}

const title = (service) => service[0].toUpperCase() + service.slice(1);
const holding = (m) => ((m.held || []).length ? ` with ${m.held.map((h) => `${layers(h)} of ${h.model}`).join(", ")}` : "");

function changedSpans(old, now, out) {
  if (!old.held || !now.held) return; // a shard that did not answer in time is not one without layers
  const key = (h) => `${h.digest} ${h.lo || 0} ${h.hi}`;
  const had = byKey(old.held, key);
  const has = byKey(now.held, key);
  for (const [k, h] of has) if (!had.has(k)) out.push({ kind: "note", text: `${now.id} has loaded ${layers(h)} of ${h.model}.` });
  for (const [k, h] of had) if (!has.has(k)) out.push({ kind: "note", text: `${now.id} has released ${layers(h)} of ${h.model}.` });
}

function pipelines(before, after, out) {
  const old = byKey(before.pipelines, (p) => p.id);
  const now = byKey(after.pipelines, (p) => p.id);
  const addresses = new Set((after.members || []).map((m) => m.address));
  for (const [id, p] of old) {
    if (now.has(id)) continue;
    const missing = p.stages.filter((s) => !addresses.has(s.address)).map(layers);
    const others = (after.pipelines || []).filter((o) => o.digest === p.digest);
    const why = missing.length ? `: ${missing.join(" and ")} went with a host` : "";
    const requests = (p.running || 0) + (p.waiting || 0);
    const where = !requests ? "" : others.length
      ? ` Its ${requests === 1 ? "request goes" : `${requests} requests go`} on over ${others.map((o) => short(o.id)).join(", ")}.`
      : ` Its ${requests === 1 ? "request waits" : `${requests} requests wait`} for another pipeline.`;
    out.push({ kind: "bad", text: `Pipeline ${short(id)} of ${p.model} is closed${why}.${where}` });
  }
  for (const [id, p] of now) {
    const was = old.get(id);
    if (!was) {
      out.push({ kind: "good", text: `Pipeline ${short(id)} of ${p.model} is open over ${p.stages.map(layers).join(" → ")}.` });
      continue;
    }
    const replayed = Number(p.replayed || 0) - Number(was.replayed || 0);
    if (replayed > 0) out.push({ kind: "note", text: `Pipeline ${short(id)} has computed ${replayed} positions again for requests that came from a lost one.` });
    const preempted = Number(p.preemptions || 0) - Number(was.preemptions || 0);
    if (preempted > 0) out.push({ kind: "note", text: `Pipeline ${short(id)} has preempted ${preempted === 1 ? "a sequence" : `${preempted} sequences`}: its KV cache is full.` });
  }
}

function placement(before, after, out) {
  const old = before.placement?.version || "0";
  const now = after.placement;
  if (now?.version && now.version !== old) out.push({ kind: "note", text: `Plan ${now.version}: ${now.reason || "changed"}.` });
}

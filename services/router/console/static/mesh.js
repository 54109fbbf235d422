// mesh.js is the page of the mesh as a picture: which host holds which layers, the way of a token through each pipeline
// with the predicted and the measured times, and what has just happened.

import { empty, h, replace, svg, table } from "./dom.js";
import { spanKey } from "./feed.js";
import { bytes, clock, count, layers, millis, percent, whole } from "./format.js";

export const title = "Mesh";

export function mount(root, { feed }) {
  const figures = h("div", { class: "figures" });
  const lanes = h("div", { class: "lanes" });
  const spans = h("div", { class: "spans" });
  const events = h("ol", { class: "events" });
  const left = h("div");
  const members = h("div");
  replace(root,
    h("section", { "aria-label": "Mesh" }, h("h2", { class: "unseen" }, "The mesh"), figures),
    h("section", { "aria-labelledby": "lanes" }, h("h2", { id: "lanes" }, "The way of a token"), lanes),
    h("div", { class: "columns" },
      h("section", { "aria-labelledby": "spans" }, h("h2", { id: "spans" }, "Who holds which layers"), spans, left),
      h("section", { "aria-labelledby": "events" }, h("h2", { id: "events" }, "What has happened"),
        h("div", { class: "log", role: "log", "aria-label": "Happenings", tabindex: "0" }, events))),
    h("section", { "aria-labelledby": "members" }, h("h2", { id: "members" }, "Services"), members));
  let seen = "";
  let drawn = null;
  const draw = () => {
    const mesh = feed.mesh;
    if (!mesh) {
      replace(lanes, empty("Waiting for the mesh", feed.refused || "The router has not answered yet."));
      return;
    }
    replace(figures, summary(mesh));
    drawLanes(lanes, mesh, feed);
    if (mesh !== drawn) { // a place that is read or has the focus stays
      drawn = mesh;
      replace(spans, holdings(mesh));
      replace(left, leftOut(mesh.placement));
      replace(members, services(mesh));
    }
    const last = `${feed.happened.length} ${feed.happened[0]?.at}`;
    if (last !== seen) { // only then, since readers of screens hear what is new
      seen = last;
      replace(events, feed.happened.map((e) =>
        h("li", { class: e.kind }, h("time", { datetime: new Date(e.at).toISOString() }, clock(e.at)), " ", e.text)));
    }
    if (!feed.happened.length) {
      replace(events, h("li", { class: "note" }, "Nothing since you opened this page. Hosts that come and go, and requests that move, are told here."));
    }
  };
  draw();
  return feed.on(draw);
}

const sum = (list, value) => (list || []).reduce((n, o) => n + Number(value(o) || 0), 0);

// summary is a row of figures of the whole mesh.
function summary(mesh) {
  const shards = (mesh.members || []).filter((m) => m.service === "shard");
  const p = mesh.pipelines || [];
  const kv = sum(p, (o) => o.kv_pages);
  const queries = sum(p, (o) => o.prefix_queries);
  const figure = (value, name) => h("div", { class: "figure" }, h("b", {}, value), h("span", {}, name));
  return [
    figure(whole(shards.length), shards.length === 1 ? "host" : "hosts"),
    figure(whole(p.length), p.length === 1 ? "pipeline" : "pipelines"),
    figure(sum(p, (o) => o.tokens_per_second).toFixed(1), "tokens/s"),
    figure(whole(sum(p, (o) => o.running)), "running"),
    figure(whole(sum(p, (o) => o.waiting)), "waiting"),
    figure(kv ? percent(sum(p, (o) => o.kv_pages_held) / kv) : "–", "of KV pages"),
    figure(queries ? percent(sum(p, (o) => o.prefix_hits) / queries) : "–", "of prompts cached"),
  ];
}

// drawLanes draws one lane for each pipeline. A lane whose stages are the same stays in place, so that its animation
// goes on.
function drawLanes(at, mesh, feed) {
  const list = mesh.pipelines || [];
  if (!list.length) {
    replace(at, empty("No pipeline is open", "The shards that were found cover no model.", ...why(mesh)));
    return;
  }
  const old = new Map([...at.children].filter((n) => n.lane).map((n) => [n.lane.key, n]));
  const nodes = list.map((p) => {
    const key = `${p.id} ${p.stages.map((s) => `${s.address} ${s.lo} ${s.hi}`).join()}`;
    const node = old.get(key) || lane(p, key);
    node.lane.update(p, mesh, feed);
    return node;
  });
  if (nodes.length !== at.children.length || nodes.some((n, i) => n !== at.children[i])) replace(at, nodes);
}

function why(mesh) {
  const reasons = (mesh.placement?.uncovered || []).map((u) => `${u.id}: ${u.reason}`);
  return reasons.length ? reasons : [["Start shards that hold the missing layers: ", h("code", {}, "lamina shard --model FILE --layers 0-15"), ", or ", h("code", {}, "lamina shard --auto"), "."]];
}

function lane(p, key) {
  const name = h("h3", {}, p.model, " ", h("small", {}, p.id.slice(0, 8)));
  const facts = h("p", { class: "facts" });
  const line = svg("polyline", { class: "spark-line", points: "" });
  const spark = svg("svg", { class: "spark", viewBox: "0 0 90 24", preserveAspectRatio: "none", role: "img" }, line);
  const stages = p.stages.map(() => stageCard());
  const hops = p.stages.map(() => hop()).concat(hop());
  const chain = h("ol", { class: "chain" },
    h("li", { class: "end card" }, h("b", {}, "Router"), h("small", {}, "queue, batches, text")), hops[0].node,
    stages.flatMap((s, i) => [s.node, hops[i + 1].node]),
    h("li", { class: "end card" }, h("b", {}, "Sampler"), h("small", {}, p.sampler)));
  const node = h("article", { class: "lane" }, h("header", {}, name, spark, facts), chain);
  const update = (now, mesh, feed) => {
    const rates = feed.rates.get(now.id) || [];
    const top = Math.max(1, ...rates);
    line.setAttribute("points", rates.map((r, i) => `${i + 90 - rates.length},${23 - 21 * r / top}`).join(" "));
    spark.setAttribute("aria-label", `${(now.tokens_per_second || 0).toFixed(1)} tokens a second now, at most ${top.toFixed(1)}`);
    spark.classList.toggle("brief", rates.length < 2); // a point is no line
    replace(facts, factsOf(now));
    node.classList.toggle("flowing", (now.running || 0) > 0);
    // A dot takes the time of a step to pass a hop, slowed down so that an eye can follow it.
    node.style.setProperty("--step", `${Math.min(3, Math.max(0.5, (now.step_ms || 100) / 40)).toFixed(2)}s`);
    now.stages.forEach((s, i) => {
      const times = (now.times || [])[i] || {};
      stages[i].update(s, now, mesh, feed, times);
      hops[i].update(times.measured_hop_ms, times.predicted_hop_ms);
    });
  };
  node.lane = { key, update };
  return node;
}

function factsOf(p) {
  const out = [
    `${(p.tokens_per_second || 0).toFixed(1)} tokens/s`,
    `${whole(p.running)} running, ${whole(p.waiting)} waiting`,
    `step ${millis(p.step_ms)}${p.slow_step_ms ? `, slow ones ${millis(p.slow_step_ms)}` : ""}`,
  ];
  if (p.predicted_token_ms) out.push(`predicted ${millis(p.predicted_token_ms)} a token`);
  if (p.kv_pages) out.push(`KV ${whole(p.kv_pages_held)} of ${whole(p.kv_pages)} pages, ${whole(p.kv_pages_cached)} cached`);
  if (Number(p.prefix_queries)) out.push(`${percent(p.prefix_hits / p.prefix_queries)} of prompts from the cache`);
  if (p.bubble) out.push(`${percent(p.bubble)} of stages idle`);
  const nodes = out.map((text) => h("span", {}, text));
  if (p.worst) nodes.push(h("span", { class: "warn" }, `slowest against the plan: ${p.worst}`));
  return nodes;
}

// hop is the way to the next card, with the time that it takes.
function hop() {
  const time = h("small");
  const node = h("li", { class: "hop", "aria-hidden": "true" }, h("span", { class: "wire" }, h("span", { class: "dot" })), time);
  return { node, update: (measured, predicted) => {
    time.textContent = measured ? millis(measured) : "";
    time.title = predicted ? `predicted ${millis(predicted)}` : "";
  } };
}

function stageCard() {
  const name = h("b");
  const host = h("small", { class: "host" });
  const busy = meter("busy");
  const kv = meter("KV");
  const times = h("small", { class: "times" });
  const node = h("li", { class: "card stage" }, name, host, busy.node, kv.node, times);
  const update = (s, p, mesh, feed, t) => {
    const member = (mesh.members || []).find((m) => m.service === "shard" && m.address === s.address);
    const held = (member?.held || []).find((o) => o.digest === p.digest && (o.lo || 0) === (s.lo || 0));
    name.textContent = layers(s)[0].toUpperCase() + layers(s).slice(1);
    host.textContent = member?.id || s.address;
    host.title = s.address;
    const share = held ? feed.busy.get(spanKey(s.address, held)) || 0 : 0;
    busy.set(share, percent(share));
    const used = held?.kv_pages_used || 0;
    kv.set(used / (held?.kv_pages || 1), `${whole(used)}/${whole(held?.kv_pages || 0)}`);
    const measured = t.measured_ms || (held?.row_us || 0) / 1000;
    const late = t.predicted_ms && measured > 1.5 * t.predicted_ms;
    times.textContent = measured || t.predicted_ms
      ? `${millis(measured)} a row${t.predicted_ms ? `, predicted ${millis(t.predicted_ms)}` : ""}` : "no row yet";
    times.classList.toggle("warn", Boolean(late));
    node.classList.toggle("gone", !member);
  };
  return { node, update };
}

// meter is a bar with a name and a value.
function meter(name) {
  const bar = h("meter", { min: "0", max: "1", value: 0, "aria-label": name });
  const text = h("span", { class: "value" });
  return {
    node: h("div", { class: "meter" }, h("span", {}, name), bar, text),
    set(share, label) {
      bar.value = share;
      bar.setAttribute("aria-valuetext", label);
      text.textContent = label;
    },
  };
}

// holdings draws for each model a strip of its layers, with one row for each host that has some of them.
function holdings(mesh) {
  const models = new Map();
  const idle = [];
  for (const m of mesh.members || []) {
    if (m.service !== "shard") continue;
    if (!(m.held || []).length) idle.push(m.id);
    for (const held of m.held || []) {
      const model = models.get(held.digest) || { name: held.model, layers: held.layers, rows: [] };
      model.rows.push({ host: m.id, held });
      models.set(held.digest, model);
    }
  }
  const out = [...models.values()].map((model) => {
    model.rows.sort((a, b) => (a.held.lo || 0) - (b.held.lo || 0) || a.host.localeCompare(b.host));
    return h("figure", { class: "strip" }, h("figcaption", {}, h("b", {}, model.name), ` ${count(model.layers, "layer")}`),
      h("ul", {}, model.rows.map(({ host, held }) => {
        const bar = h("span", { class: "span" });
        bar.style.setProperty("--from", String((held.lo || 0) / model.layers));
        bar.style.setProperty("--width", String((held.hi - (held.lo || 0)) / model.layers));
        const weight = held.weight_bytes ? `, ${bytes(held.weight_bytes)}` : "";
        return h("li", {}, h("span", { class: "host" }, host), h("span", { class: "track" }, bar),
          h("span", { class: "what" }, `${layers(held)}${weight}`));
      })));
  });
  if (idle.length) out.push(h("p", { class: "note" }, `Without layers: ${idle.join(", ")}.`));
  return out.length ? out : h("p", { class: "note" }, "No shard holds any layers.");
}

function leftOut(placement) {
  const list = [...(placement?.left_out || []), ...(placement?.uncovered || [])];
  if (!list.length) return null;
  return h("details", { class: "fold", open: true }, h("summary", {}, "What the plan does without"),
    h("ul", {}, list.map((o) => h("li", {}, h("b", {}, o.id), ` ${o.reason}`))));
}

function services(mesh) {
  return table("Services", ["Service", "Id", "Address", "Holds"], (mesh.members || []).map((m) => [
    m.service, m.id, m.address || "–",
    (m.held || []).map((o) => `${o.model}, ${layers(o)} of ${o.layers}, ${count(o.sessions || 0, "session")}`).join("; ") || "–",
  ]));
}

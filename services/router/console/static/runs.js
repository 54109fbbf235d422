// runs.js is the page of training runs: a list, the curves of those that are chosen, their samples and files, and forms
// to start, stop, pause, resume and delete them.

import { get, post, remove } from "./api.js";
import { chart } from "./chart.js";
import { ask, button, empty, field, h, replace, table } from "./dom.js";
import { bytes, count, duration, percent, short, time, whole } from "./format.js";
import { manifests } from "./manifests.js";
import { Metrics } from "./metrics.js";

export const title = "Runs";

const states = { RUN_STATE_STARTING: "starting", RUN_STATE_RUNNING: "running", RUN_STATE_DONE: "done",
  RUN_STATE_FAILED: "failed", RUN_STATE_STOPPED: "stopped", RUN_STATE_PAUSED: "paused", RUN_STATE_INTERRUPTED: "interrupted" };
const stateOf = (run) => states[run.state] || "unknown";
const active = (run) => ["starting", "running"].includes(stateOf(run));

// The curves: a title, the field of metrics.jsonl, and a second one that is dashed.
const curves = [
  ["Loss (nats per token)", "loss", "validation_loss"],
  ["Gradient norm", "gradient_norm"],
  ["Learning rate", "learning_rate"],
  ["Tokens per second", "tokens_per_second"],
  ["Step (ms)", "step_ms"],
  ["Stages waiting (share)", "bubble", "simulated_bubble"],
  ["Accuracy of preferences", "accuracy"],
  ["Mean reward", "reward"],
];

const refresh = 1500; // milliseconds between two looks
const colours = 6;

export function mount(root, context, [chosen]) {
  const page = new Runs(root, context);
  if (chosen) page.chosen.add(chosen);
  page.start();
  return () => page.end();
}

class Runs {
  constructor(root, context) {
    Object.assign(this, { root, context, runs: null, chosen: new Set(), metrics: new Map(), colour: new Map(), log: false });
    this.problem = h("p", { class: "problem", role: "alert", hidden: true });
    this.list = h("section", { "aria-label": "List of runs" });
    this.charts = curves.map(([name, ...fields]) => ({ ...chart(name), fields }));
    const log = h("input", { type: "checkbox", onchange: (e) => { this.log = e.target.checked; this.draw(); } });
    this.curves = h("section", { "aria-labelledby": "curves", hidden: true },
      h("div", { class: "head" }, h("h2", { id: "curves" }, "Curves"), h("label", { class: "check" }, log, " Logarithmic")),
      h("div", { class: "charts" }, this.charts.map((c) => c.node)));
    this.compared = h("section", { "aria-labelledby": "compared" });
    this.details = h("section", { "aria-label": "Details" });
    replace(root, h("div", { class: "head" }, h("h2", {}, "Training runs"), button("Start a run", () => this.startRun(), { class: "main" })),
      this.problem, this.list, this.curves, this.compared, this.details);
  }

  start() {
    this.stopped = false;
    this.loop();
  }

  end() {
    this.stopped = true;
    clearTimeout(this.timer);
    this.wake?.();
  }

  // loop looks at the runs as long as the page is shown.
  async loop() {
    while (!this.stopped) {
      await this.look();
      await new Promise((resolve) => {
        this.wake = resolve;
        this.timer = setTimeout(resolve, refresh);
      });
    }
  }

  // now looks again at once.
  now() {
    clearTimeout(this.timer);
    this.wake?.();
  }

  async look() {
    try {
      this.runs = (await get("/api/runs")).runs.sort((a, b) => Number(b.started_ms || 0) - Number(a.started_ms || 0));
      this.problem.hidden = true;
    } catch (error) {
      this.complain(error.message);
      if (!this.runs) replace(this.list, empty("No runs to show", error.message));
      return;
    }
    const names = new Set(this.runs.map((r) => r.name));
    for (const name of this.chosen) if (!names.has(name)) this.chosen.delete(name);
    if (!this.chosen.size && this.runs.length && !this.touched) this.chosen.add(this.runs[0].name);
    await Promise.all([...this.chosen].map(async (name) => {
      const m = this.metrics.get(name) || new Metrics(name);
      this.metrics.set(name, m);
      await m.update().catch((error) => this.complain(error.message));
    }));
    if (!this.stopped) this.draw();
  }

  complain(message) {
    this.problem.textContent = message;
    this.problem.hidden = false;
  }

  // colourOf gives a run a colour that it keeps while it is chosen.
  colourOf(name) {
    if (!this.colour.has(name)) {
      const used = new Set([...this.colour].filter(([n]) => this.chosen.has(n)).map(([, c]) => c));
      let c = 0;
      while (used.has(c) && c < colours - 1) c++;
      this.colour.set(name, c);
    }
    return this.colour.get(name);
  }

  toggle(name, on) {
    this.touched = true;
    if (on) this.chosen.add(name);
    else {
      this.chosen.delete(name);
      this.colour.delete(name);
    }
    this.now();
  }

  draw() {
    this.drawList();
    const chosen = this.runs.filter((r) => this.chosen.has(r.name));
    this.curves.hidden = !chosen.length;
    for (const c of this.charts) {
      const series = chosen.flatMap((r) => c.fields.map((name, i) => ({
        name: i ? `${r.name} ${name.startsWith("sim") ? "simulated" : "validation"}` : r.name, color: this.colourOf(r.name), dashed: i > 0,
        points: (this.metrics.get(r.name)?.lines || []).filter((l) => Number.isFinite(l[name])).map((l) => [l.step, l[name]]),
      })));
      c.node.hidden = !series.some((s) => s.points.length) && c.fields[0] !== "loss";
      c.draw(series.filter((s) => s.points.length), this.log && c.fields[0] !== "bubble");
    }
    replace(this.compared, chosen.length > 1 ? compared(chosen) : null);
    this.drawDetails(chosen);
  }

  // drawList keeps the row that has the focus where it is.
  drawList() {
    if (this.list.matches(":active")) return; // a click that has begun would be lost
    if (!this.runs.length) {
      replace(this.list, empty("No run yet", "A manifest fixes a training run: the model, its data, a seed and the number of steps.",
        ["Start one here, or by ", h("code", {}, "lamina train --manifest FILE --trainer ADDRESS"), "."]));
      return;
    }
    const focus = document.activeElement?.dataset?.run;
    replace(this.list, table("Training runs", ["Run", "State", ["Step", "right"], ["Loss", "right"], ["Validation", "right"], ["Tokens/s", "right"], "Left", "Actions"],
      this.runs.map((r) => [
        h("label", { class: "check" }, h("input", { type: "checkbox", "data-run": r.name, checked: this.chosen.has(r.name),
          onchange: (e) => this.toggle(r.name, e.target.checked) }),
        this.chosen.has(r.name) ? h("span", { class: `key series-${this.colourOf(r.name)}` }) : null, ` ${r.name}`),
        h("span", { class: `state ${stateOf(r)}` }, stateOf(r)),
        `${whole(r.step)} of ${whole(r.steps)}`, r.loss ? short(r.loss) : "–", r.validation_loss ? short(r.validation_loss) : "–",
        active(r) && r.tokens_per_second ? short(r.tokens_per_second) : "–", active(r) && r.seconds_left ? duration(r.seconds_left) : "–",
        this.buttons(r),
      ])));
    if (focus) this.list.querySelector(`[data-run="${CSS.escape(focus)}"]`)?.focus();
  }

  buttons(r) {
    const act = (action, label) => button(label, () => this.change(r, action), { class: "small", "data-run": `${r.name} ${action}`, "aria-label": `${label} ${r.name}` });
    if (active(r)) return h("span", { class: "buttons" }, act("pause", "Pause"), act("stop", "Stop"));
    return h("span", { class: "buttons" }, stateOf(r) !== "done" && act("resume", "Resume"),
      button("Delete", () => this.delete(r), { class: "small", "data-run": `${r.name} delete`, "aria-label": `Delete ${r.name}` }));
  }

  async change(r, action) {
    try {
      await post(`/api/runs/${encodeURIComponent(r.name)}/${action}`);
    } catch (error) {
      this.complain(error.message);
    }
    this.now();
  }

  async delete(r) {
    await ask(`Delete ${r.name}?`, "Delete", h("p", {}, "Its checkpoints, its curves and its trained model are removed for good."),
      () => remove(`/api/runs/${encodeURIComponent(r.name)}`));
    this.metrics.delete(r.name);
    this.now();
  }

  async startRun() {
    const manifest = h("textarea", { name: "manifest", rows: 16, class: "mono", spellcheck: "false", required: true });
    const known = manifests(this.context.access.base);
    const kinds = h("select", { onchange: (e) => { manifest.value = pretty(e.target.value); } },
      Object.entries(known).map(([name, { title: text }]) => h("option", { value: name }, text)));
    const pretty = (name) => JSON.stringify(known[name].manifest, null, 2);
    manifest.value = pretty(kinds.value);
    const number = (name) => h("input", { type: "number", name, min: 1, max: 1024, step: 1, value: 1, required: true });
    const started = await ask("Start a training run", "Start", [
      field("Begin with", kinds),
      field("Manifest", manifest, "Files are named relative to the trainer's data folder (--data). docs/training.md explains the fields."),
      h("div", { class: "pairs" }, field("Stages", number("stages")), field("Replicas", number("replicas"))),
    ], (form) => {
      let parsed;
      try {
        parsed = JSON.parse(form.get("manifest"));
      } catch (error) {
        throw new Error(`The manifest is no JSON: ${error.message}`);
      }
      return post("/api/runs", { manifest: parsed, stages: Number(form.get("stages")), replicas: Number(form.get("replicas")) });
    });
    if (!started) return;
    this.touched = true;
    this.chosen = new Set([started.run]);
    this.metrics.delete(started.run);
    this.now();
  }

  drawDetails(chosen) {
    const key = JSON.stringify(chosen.map((r) => [r.name, r.state, r.error, r.checkpoint_error, r.checkpoint_step, r.data,
      (r.events || []).length, (r.published || []).length, this.metrics.get(r.name)?.samples.length]));
    if (key === this.drawnDetails) return; // what a user has folded stays as it is
    this.drawnDetails = key;
    const open = new Set([...this.details.querySelectorAll("details[open]")].map((d) => d.dataset.key));
    replace(this.details, chosen.map((r) => detail(r, this.metrics.get(r.name)?.samples || [], open)));
  }
}

// compared puts the figures of runs side by side.
function compared(runs) {
  const best = (values, better) => {
    const known = values.filter((v) => Number.isFinite(v) && v > 0);
    return known.length > 1 ? better(...known) : NaN;
  };
  const row = (name, value, write, better) => {
    const values = runs.map(value);
    const top = better ? best(values, better) : NaN;
    return [name, ...values.map((v) => (v ? (v === top ? h("b", {}, write(v)) : write(v)) : "–"))];
  };
  return [h("h2", { id: "compared" }, "Comparison"), table("Comparison", ["Figure", ...runs.map((r) => [r.name, "right"])], [
    row("State", stateOf, (v) => v),
    row("Steps", (r) => Number(r.step), whole),
    row("Training loss", (r) => r.loss, short, Math.min),
    row("Validation loss", (r) => r.validation_loss, short, Math.min),
    row("Bits per byte, validation", (r) => r.validation_bits_per_byte, short, Math.min),
    row("Tokens per second", (r) => r.tokens_per_second, short, Math.max),
    row("Step", (r) => r.step_ms, (v) => `${short(v)} ms`, Math.min),
    row("Parameters", (r) => Number(r.parameters), whole),
    row("Stages × replicas", (r) => `${r.stages} × ${r.replicas}`, (v) => v),
    row("Replicas lost", (r) => Number(r.lost), whole),
  ])];
}

function detail(r, samples, open) {
  const fact = (name, value) => value && h("div", {}, h("dt", {}, name), h("dd", {}, value));
  const fold = (key, title, ...content) => h("details", { class: "fold", "data-key": `${r.name} ${key}`, open: open.has(`${r.name} ${key}`) },
    h("summary", {}, title), content);
  const texts = samples.length ? samples : r.samples || [];
  return h("article", { class: "run" }, h("h3", {}, r.name, " ", h("span", { class: `state ${stateOf(r)}` }, stateOf(r))),
    r.error && h("p", { class: "problem" }, r.error),
    r.checkpoint_error && h("p", { class: "problem" }, `The last checkpoint was not written: ${r.checkpoint_error}`),
    h("dl", { class: "facts" },
      fact("Parameters", r.parameters && whole(r.parameters)), fact("Layout", `${count(r.stages || 1, "stage")} × ${count(r.replicas || 1, "replica")}`),
      fact("Data", r.data), fact("Objective", r.objective), fact("Checkpoint", r.checkpoint_step && `step ${whole(r.checkpoint_step)}`),
      fact("Peak share", r.peak_flops > 0 && percent(r.flops / r.peak_flops)), fact("Gradients sent", Number(r.gradient_bytes) > 0 && bytes(r.gradient_bytes)),
      fact("Started", r.started_ms && time(Number(r.started_ms))), fact("Model", r.model_path), fact("Weights", r.weights_digest)),
    (r.published || []).map((p) => h("p", { class: p.error ? "problem" : "note" }, p.error ? `Not published at ${p.router}: ${p.error}` : `Published as ${p.model}:${p.name} at ${p.router}.`)),
    texts.length > 0 && fold("samples", `Samples (${texts.length})`, texts.slice(-8).reverse().map((s) =>
      h("figure", { class: "sample" }, h("figcaption", {}, `step ${whole(s.step)}`), h("blockquote", {}, h("b", {}, s.prompt), s.text)))),
    (r.events || []).length > 0 && fold("events", `Events (${r.events.length})`, h("ul", {}, r.events.slice(-20).reverse().map((e) =>
      h("li", {}, `step ${whole(e.step)}: ${e.kind}${e.replica === undefined ? "" : ` replica ${e.replica}`}${e.message ? `, ${e.message}` : ""}`)))),
    files(r, open));
}

// files lists the files of a run when it is opened.
function files(r, open) {
  const inside = h("div");
  const base = `/api/runs/${encodeURIComponent(r.name)}/files`;
  const load = async (e) => {
    if (!e.target.open) return;
    try {
      const list = (await get(base)).files;
      replace(inside, list.length ? table(`Files of ${r.name}`, ["File", ["Size", "right"], "Changed"], list.map((f) => [
        h("a", { href: `${base}/${f.name.split("/").map(encodeURIComponent).join("/")}`, download: "" }, f.name), bytes(f.size), time(f.changed_ms)])) : "None yet.");
    } catch (error) {
      replace(inside, h("p", { class: "problem" }, error.message));
    }
  };
  return h("details", { class: "fold", ontoggle: load, "data-key": `${r.name} files`, open: open.has(`${r.name} files`) }, h("summary", {}, "Files"), inside);
}

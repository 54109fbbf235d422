// models.js is the page of models: those that are served, with their adapters, and for operators those of the router's
// machine, which it can load, and pulls with their progress.

import { follow, get, post, remove, upload } from "./api.js";
import { ask, button, choices, empty, field, h, replace, table } from "./dom.js";
import { brief, bytes, count, percent, time, whole } from "./format.js";

export const title = "Models";

export function mount(root, context) {
  const page = new Models(root, context);
  page.start();
  return () => page.end();
}

class Models {
  constructor(root, context) {
    Object.assign(this, { root, context, served: [], pulls: [], ends: [] });
    this.problem = h("p", { class: "problem", role: "alert", hidden: true });
    this.servedAt = h("div");
    this.adaptersAt = h("div");
    this.pullsAt = h("div", { "aria-live": "polite" });
    this.storeAt = h("div");
    const operates = context.may("operate");
    replace(root, this.problem,
      h("section", { "aria-labelledby": "served" }, h("h2", { id: "served" }, "Served"), this.servedAt),
      h("section", { "aria-labelledby": "adapters" }, h("div", { class: "head" }, h("h2", { id: "adapters" }, "Adapters"),
        operates && button("Load an adapter", () => this.loadAdapter(), { class: "main" })), this.adaptersAt),
      operates && context.access.store && h("section", { "aria-labelledby": "store" },
        h("div", { class: "head" }, h("h2", { id: "store" }, "On the router's machine"), button("Pull a model", () => this.pull(), { class: "main" })),
        this.pullsAt, this.storeAt));
  }

  start() {
    this.ends.push(this.context.feed.onPipelines(() => this.loadServed()));
    this.loadServed();
    if (!this.context.may("operate") || !this.context.access.store) return;
    this.loadStore();
    const done = () => this.pulls.filter((p) => p.state === "done").length;
    this.ends.push(follow("/api/pulls", ({ pulls }) => {
      const before = done();
      this.pulls = pulls;
      this.drawPulls();
      if (done() !== before) this.loadStore();
    }));
  }

  end() {
    this.ends.forEach((end) => end());
  }

  complain(message) {
    this.problem.textContent = message;
    this.problem.hidden = !message;
  }

  // attempt does what may fail, and says why it has.
  async attempt(what) {
    try {
      await what();
      this.complain("");
    } catch (error) {
      this.complain(error.message);
    }
  }

  loadServed() {
    return this.attempt(async () => {
      this.served = (await get("/v1/models")).data;
      this.drawServed();
    });
  }

  drawServed() {
    const bases = this.served.filter((m) => !m.parent);
    const pipelines = (m) => (this.context.feed.mesh?.pipelines || []).filter((p) => p.digest === m.digest).length;
    replace(this.servedAt, bases.length ? table("Models that are served",
      ["Model", "Use", ["Context", "right"], ["Pipelines", "right"], "Digest"], bases.map((m) => [
        m.id, m.encoder ? "embeddings" : m.chat ? "chat and text" : "text", whole(m.max_model_len),
        this.context.may("observe") ? whole(pipelines(m)) : "–", h("code", {}, brief(m.digest)),
      ])) : empty("No model is served", ["Start one with ", h("code", {}, "lamina up --model FILE"), ", or shards that hold its layers."]));
    this.drawAdapters();
  }

  drawAdapters() {
    const known = this.context.feed.mesh?.adapters;
    if (!known) { // without the right to see the mesh
      const own = this.served.filter((m) => m.parent);
      replace(this.adaptersAt, own.length ? table("Adapters", ["Adapter", "Base"], own.map((m) => [m.id, m.parent])) : h("p", { class: "note" }, "None."));
      return;
    }
    replace(this.adaptersAt, known.length ? table("Adapters",
      ["Adapter", "Base", ["Rank", "right"], ["Size", "right"], ["Requests", "right"], "Since", "State", "Actions"], known.map((a) => [
        a.name, a.model, whole(a.rank), bytes(a.bytes), whole(a.requests), time(Number(a.loaded_ms)),
        a.error ? h("span", { class: "warn" }, a.error) : `on ${count(a.pipelines || 0, "pipeline")}`,
        this.context.may("operate") ? h("span", { class: "buttons" },
          (a.earlier || []).length > 0 && button("Go back", () => this.goBack(a), { class: "small", title: `To ${brief(a.earlier[0])}` }),
          button("Unload", () => this.unload(a), { class: "small", "aria-label": `Unload ${a.name}` })) : "–",
      ])) : h("p", { class: "note" }, ["None. An adapter is a small set of weights on top of a model: ", h("code", {}, "lamina tune"), " trains one."]));
  }

  async loadAdapter() {
    const bases = this.served.filter((m) => !m.parent && !m.encoder).map((m) => m.id);
    const file = (name, accept) => h("input", { type: "file", name, accept, required: true });
    const done = await ask("Load an adapter", "Load", [
      field("Base", h("select", { name: "model" }, choices(bases, bases[0]))),
      field("Name", h("input", { name: "name", required: true, pattern: "[A-Za-z0-9_.\\-]{1,64}", autocomplete: "off" }), "Letters, digits, and any of - _ . A name in use gets the new adapter; requests that run keep theirs."),
      field("adapter_config.json", file("config", ".json")),
      field("adapter_model.safetensors", file("weights", ".safetensors")),
      h("label", { class: "check" }, h("input", { type: "checkbox", name: "any_base" }), " Accept another base than it was trained on"),
    ], (form) => {
      const [config, weights] = [form.get("config"), form.get("weights")];
      const query = new URLSearchParams({ model: form.get("model"), name: form.get("name"), config: config.size, weights: weights.size });
      if (form.get("any_base")) query.set("any_base", "true");
      return upload(`/api/adapters?${query}`, new Blob([config, weights]));
    });
    if (done) this.loadServed();
  }

  goBack(a) {
    return this.attempt(async () => {
      await post(`/api/adapters?${new URLSearchParams({ model: a.model, name: a.name, digest: "previous" })}`);
      await this.loadServed();
    });
  }

  async unload(a) {
    await ask(`Unload ${a.name}?`, "Unload", h("p", {}, "Requests that run keep it until they end. Others that name it are refused."),
      () => remove(`/api/adapters/${encodeURIComponent(a.name)}?${new URLSearchParams({ model: a.model })}`));
    this.loadServed();
  }

  loadStore() {
    return this.attempt(async () => {
      const { models } = await get("/api/store");
      replace(this.storeAt, models.length ? table("Models of the router's machine", ["Model", ["Size", "right"], "Source", "Last used", "Actions"],
        models.map((m) => [m.name, bytes(m.bytes), h("span", { class: "breaks" }, m.source || "–"), m.in_use ? "in use" : time(m.last_used), h("span", { class: "buttons" },
          m.loadable && button("Load", () => this.load(m), { class: "small", "aria-label": `Load ${m.name}` }),
          !m.in_use && button("Remove", () => this.removeModel(m), { class: "small", "aria-label": `Remove ${m.name}` }))]))
        : empty("No model here yet", "Pull one from a repository or an address."));
    });
  }

  load(m) {
    return this.attempt(async () => {
      await post(`/api/store/${encodeURIComponent(m.name)}/load`);
      await this.loadStore();
    });
  }

  async removeModel(m) {
    await ask(`Remove ${m.name}?`, "Remove", h("p", {}, `Its ${bytes(m.bytes)} are deleted from the router's machine.`), () => remove(`/api/store/${encodeURIComponent(m.name)}`));
    this.loadStore();
  }

  pull() {
    return ask("Pull a model", "Pull", [
      field("Source", h("input", { name: "source", required: true, placeholder: "OWNER/NAME or https://…/model.gguf", autocomplete: "off" })),
      field("Weight files", h("input", { name: "include", placeholder: "*Q4_K_M*", autocomplete: "off" }), "A pattern, where a repository has several models."),
      field("Revision", h("input", { name: "revision", placeholder: "main", autocomplete: "off" })),
      field("Name", h("input", { name: "name", placeholder: "that of the source", autocomplete: "off" })),
    ], (form) => post("/api/pulls", { source: form.get("source").trim(), name: form.get("name").trim(), revision: form.get("revision").trim(),
      include: form.get("include").split(/\s+/).filter(Boolean) }));
  }

  drawPulls() {
    replace(this.pullsAt, this.pulls.length > 0 && h("ul", { class: "pulls" }, this.pulls.toReversed().map((p) => {
      const share = p.total ? p.done / p.total : 0;
      const running = p.state === "running";
      return h("li", {}, h("b", {}, p.name || p.source), h("span", { class: `state ${p.state}` }, p.state),
        running && h("progress", { max: "1", "aria-label": `Pull of ${p.name || p.source}`, ...(p.total ? { value: share } : {}) }),
        h("span", { class: "note" }, p.total ? `${bytes(p.done)} of ${bytes(p.total)}, ${percent(share)}` : running ? "looking" : ""),
        button(running ? "Cancel" : "Forget", () => this.attempt(() => remove(`/api/pulls/${p.id}`)), { class: "small", "aria-label": `${running ? "Cancel" : "Forget"} the pull of ${p.source}` }),
        p.error && h("p", { class: "problem" }, p.error));
    })));
  }
}

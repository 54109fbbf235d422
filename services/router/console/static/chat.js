// chat.js is the page of conversations: a list of them, the branch that is shown, and the settings of the next answer.

import * as archive from "./archive.js";
import { get } from "./api.js";
import { complete } from "./completion.js";
import * as tree from "./conversation.js";
import { button, choices, empty, field, h, replace, save } from "./dom.js";
import { Message } from "./message.js";

export const title = "Chat";

// The parameters that a user can set: name, label, bounds and what an empty field means.
const parameters = [
  ["temperature", "Temperature", { min: 0, max: 100, step: "any" }, "model's"],
  ["max_tokens", "Max tokens", { min: 1, max: 16777216, step: 1 }, "no limit"],
  ["seed", "Seed", { min: 0, max: 9007199254740991, step: 1 }, "drawn"],
  ["top_p", "Top p", { min: 0, max: 1, step: "any" }, "model's"],
  ["top_k", "Top k", { min: 0, max: 16777216, step: 1 }, "model's"],
  ["min_p", "Min p", { min: 0, max: 1, step: "any" }, "model's"],
  ["repetition_penalty", "Repetition penalty", { min: 0.01, max: 100, step: "any" }, "model's"],
];

export function mount(root, context) {
  const page = new Chat(root, context);
  page.start();
  return () => page.end();
}

class Chat {
  constructor(root, context) {
    Object.assign(this, { root, context, models: [], list: [], running: null });
    this.conversation = tree.create("", { parameters: { max_tokens: 512 } });
    this.asides();
    this.turns = h("div", { class: "turns", role: "log", "aria-live": "polite", "aria-label": "Conversation", tabindex: "0" });
    this.text = h("textarea", { id: "text", rows: 3, placeholder: "Ask something", "aria-describedby": "keys" });
    this.sendButton = h("button", { type: "submit", class: "main" }, "Send");
    this.stopButton = button("Stop", () => this.stop(), { hidden: true });
    this.form = h("form", { class: "ask", onsubmit: (e) => this.submit(e) },
      h("label", { class: "unseen", for: "text" }, "Your text"), this.text,
      h("div", { class: "buttons" }, h("small", { id: "keys" }, "Enter sends, Shift+Enter breaks the line, Esc stops."),
        this.stopButton, this.sendButton));
    this.text.addEventListener("keydown", (e) => this.key(e));
    this.escape = (e) => {
      if (e.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    };
    document.addEventListener("keydown", this.escape);
    replace(root, h("aside", { class: "side list", "aria-label": "Conversations" }, this.listPanel),
      h("section", { class: "talk", "aria-label": "Chat" }, this.turns, this.form),
      h("aside", { class: "side options", "aria-label": "Settings" }, this.settingsPanel));
  }

  // asides makes the panels at the sides, which are folded on a narrow page.
  asides() {
    const wide = matchMedia("(min-width: 64rem)").matches;
    this.items = h("ul", { class: "conversations" });
    const file = h("input", { type: "file", accept: ".json,application/json", class: "unseen", tabindex: "-1", "aria-hidden": "true",
      onchange: () => this.importFile(file) });
    this.problem = h("p", { class: "problem", role: "alert", hidden: true });
    this.listPanel = h("details", { class: "panel", open: wide }, h("summary", {}, "Conversations"),
      h("div", { class: "buttons" }, button("New chat", () => this.fresh(), { class: "main", accesskey: "n" }),
        button("Import", () => file.click(), { class: "small" }), button("Export all", () => this.exportAll(), { class: "small" }), file),
      this.problem, this.items);
    this.settings = h("div", { class: "settings" });
    this.settingsPanel = h("details", { class: "panel", open: wide }, h("summary", {}, "Settings"), this.settings);
  }

  async start() {
    this.unsubscribe = this.context.feed.onPipelines(() => this.loadModels());
    await this.loadModels();
    try {
      const stored = await archive.all();
      // The user may have asked meanwhile: what is new stays in the list, and a running answer keeps its view.
      this.list = [...this.list, ...stored.filter((c) => !this.list.some((o) => o.id === c.id))];
    } catch (error) {
      this.complain(`This browser keeps no conversations: ${error.message}`);
    }
    this.drawList();
    if (!this.conversation.leaf && !this.running) this.draw();
    this.text.focus({ preventScroll: true });
  }

  end() {
    this.stop();
    this.unsubscribe?.();
    document.removeEventListener("keydown", this.escape);
  }

  complain(message) {
    this.problem.textContent = message;
    this.problem.hidden = !message;
  }

  async loadModels() {
    const offer = () => JSON.stringify([this.conversation.model, this.models.map((m) => [m.id, m.chat])]);
    const before = offer();
    try {
      this.models = (await get("/v1/models")).data.filter((m) => !m.encoder);
      this.complain("");
    } catch (error) {
      this.complain(error.message);
    }
    if (!this.models.some((m) => m.id === this.conversation.model)) this.conversation.model = this.models[0]?.id || "";
    // The mesh changes often; a field in which the user is typing stays as it is.
    if (offer() !== before || !this.settings.hasChildNodes()) this.drawSettings();
    if (!this.conversation.leaf && !this.running) this.draw();
  }

  drawSettings() {
    const c = this.conversation;
    const changed = () => this.store();
    const model = h("select", { onchange: (e) => { c.model = e.target.value; changed(); this.drawSettings(); } },
      choices(this.models.map((m) => m.id), c.model));
    const chats = this.models.find((m) => m.id === c.model)?.chat;
    const area = (name, rows, hint) => h("textarea", { rows, value: c[name], placeholder: hint,
      onchange: (e) => { c[name] = e.target.value; changed(); } });
    const number = ([name, label, bounds, hint]) => field(label, h("input", { type: "number", ...bounds, placeholder: hint,
      value: c.parameters[name] ?? "", onchange: (e) => {
        if (!e.target.reportValidity()) return;
        if (e.target.value === "") delete c.parameters[name];
        else c.parameters[name] = Number(e.target.value);
        changed();
      } }));
    const stop = h("textarea", { rows: 2, value: c.parameters.stop || "", onchange: (e) => { c.parameters.stop = e.target.value; changed(); } });
    const probabilities = h("input", { type: "checkbox", checked: c.parameters.probabilities !== false,
      onchange: (e) => { c.parameters.probabilities = e.target.checked; changed(); } });
    replace(this.settings, field("Model", model, chats === false ? "It has no chat template: it continues your text." : ""),
      field(chats === false ? "Text before yours" : "System prompt", area("system", 3, "none")),
      h("div", { class: "pairs" }, parameters.slice(0, 4).map(number)),
      h("details", { class: "fold" }, h("summary", {}, "More"), h("div", { class: "pairs" }, parameters.slice(4).map(number)),
        field("Stop strings", stop, "One a line."),
        chats !== false && field("Tools", area("tools", 4, "none"), "A JSON array, as OpenAI's API has it."),
        h("label", { class: "check" }, probabilities, " Token probabilities")));
  }

  drawList() {
    replace(this.items, this.list.map((c) => h("li", { class: c.id === this.conversation.id ? "chosen" : "" },
      h("button", { type: "button", class: "open", "aria-current": c.id === this.conversation.id ? "true" : null,
        onclick: () => this.open(c) }, c.title || "New chat"),
      button("Save", () => save(`${fileName(c.title)}.json`, tree.pack([c]), "application/json"),
        { class: "small quiet", "aria-label": `Save ${c.title || "this chat"}` }),
      button("×", () => this.remove(c), { class: "small quiet", "aria-label": `Delete ${c.title || "this chat"}` }))));
    if (!this.list.length) replace(this.items, h("li", { class: "note" }, "Conversations are kept in this browser alone."));
  }

  draw() {
    const c = this.conversation;
    const branch = tree.path(c);
    this.shown = branch.map((m) => new Message(m, tree.siblings(c, m.id), this.actions()));
    replace(this.turns, this.shown.map((m) => m.node));
    if (!branch.length) replace(this.turns, this.welcome());
    this.turns.scrollTop = this.turns.scrollHeight;
    const busy = Boolean(this.running);
    this.turns.setAttribute("aria-busy", String(busy));
    this.sendButton.hidden = busy;
    this.stopButton.hidden = !busy;
  }

  welcome() {
    if (!this.models.length) {
      return empty("No model is served yet", "Shards that cover all layers of a model are missing.",
        ["The ", h("a", { href: "#/mesh" }, "mesh"), " shows which hosts are there. ", h("code", {}, "lamina up --model FILE"), " serves a model on this machine."]);
    }
    const model = this.models.find((m) => m.id === this.conversation.model);
    return empty(model?.chat ? "What do you want to know?" : "How shall the text begin?", `${this.conversation.model} will answer. `
      + "Its settings stand beside the conversation; conversations stay in this browser.");
  }

  actions() {
    return {
      choose: (m) => {
        if (this.running) return;
        tree.choose(this.conversation, m.id);
        this.store();
        this.draw();
      },
      edit: (m, text) => this.send(text, m.parent),
      regenerate: (m) => this.answer(m.parent),
      answer: (m, results) => {
        let leaf = m.id;
        m.calls.forEach((call, i) => {
          leaf = tree.add(this.conversation, leaf, "tool", results[i], { call: call.id }).id;
        });
        this.answer(leaf);
      },
      open: (m) => !this.running && m.calls?.length && this.conversation.leaf === m.id,
    };
  }

  key(e) {
    if (e.isComposing) return;
    if (e.key === "Enter" && !e.shiftKey) {
      e.preventDefault();
      this.form.requestSubmit();
    } else if (e.key === "ArrowUp" && !this.text.value) {
      const last = this.shown.findLast((m) => m.message.role === "user");
      if (last && !this.running) {
        e.preventDefault();
        last.edit();
      }
    }
  }

  submit(e) {
    e.preventDefault();
    const text = this.text.value;
    if (this.running || !text.trim()) return;
    this.text.value = "";
    this.send(text, this.conversation.leaf);
  }

  async send(text, parent) {
    if (this.running) return;
    await this.answer(tree.add(this.conversation, parent, "user", text).id);
  }

  // answer asks for the message that follows another one.
  async answer(parent) {
    if (this.running) return;
    const c = this.conversation;
    const model = this.models.find((m) => m.id === c.model);
    const message = tree.add(c, parent, "assistant", "", { stats: { model: c.model } });
    const control = this.running = new AbortController();
    this.draw();
    const view = this.shown.at(-1);
    view.draw(true);
    const below = () => this.turns.scrollHeight - this.turns.scrollTop - this.turns.clientHeight < 80;
    try {
      if (!model) throw new Error("No model is served yet.");
      await complete(c, model, parent, message, () => {
        const follow = below();
        view.soon();
        if (follow) requestAnimationFrame(() => { this.turns.scrollTop = this.turns.scrollHeight; });
      }, control.signal);
    } catch (error) {
      message.note = error.name === "AbortError" ? "Stopped." : error.message;
      message.failed = error.name !== "AbortError";
    } finally {
      if (this.running === control) this.running = null;
      view.end();
    }
    this.store();
    if (this.conversation === c) this.draw();
    this.text.focus({ preventScroll: true });
  }

  stop() {
    this.running?.abort();
  }

  // store keeps the conversation, once it has a message.
  async store() {
    const c = this.conversation;
    if (!c.leaf) return;
    if (!this.list.includes(c)) this.list.unshift(c);
    this.list.sort((a, b) => b.updated - a.updated);
    this.drawList();
    try {
      await archive.put(c);
    } catch (error) {
      this.complain(`The conversation is not kept: ${error.message}`);
    }
  }

  open(c) {
    this.stop();
    this.running = null;
    this.conversation = c;
    if (!this.models.some((m) => m.id === c.model)) c.model = this.models[0]?.id || "";
    this.drawList();
    this.drawSettings();
    this.draw();
    if (!matchMedia("(min-width: 64rem)").matches) this.listPanel.open = false;
  }

  fresh() {
    this.open(tree.create(this.conversation.model, this.conversation));
    this.text.focus();
  }

  async remove(c) {
    if (!confirm(`Delete “${c.title || "this chat"}”?`)) return;
    this.list = this.list.filter((o) => o !== c);
    await archive.drop(c.id).catch((error) => this.complain(error.message));
    if (this.conversation === c) this.fresh();
    this.drawList();
  }

  exportAll() {
    save("lamina-conversations.json", tree.pack(this.list), "application/json");
  }

  async importFile(input) {
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    try {
      const imported = tree.unpack(await file.text());
      for (const c of imported) await archive.put(c);
      this.list = [...imported, ...this.list].sort((a, b) => b.updated - a.updated);
      this.complain("");
      if (imported.length) this.open(imported[0]);
      this.drawList();
    } catch (error) {
      this.complain(error.message);
    }
  }
}

const fileName = (text) => text.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40) || "chat";

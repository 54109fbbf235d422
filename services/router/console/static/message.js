// message.js shows one message of a conversation: its text as Markdown or token by token, with reasoning and tool calls
// folded, and what a user can do with it.

import { button, copy, h, replace } from "./dom.js";
import { count, percent } from "./format.js";
import { render } from "./markdown.js";

const names = { user: "You", assistant: "Model", tool: "Tool result" };

// Message shows a message and can draw it again. actions has what the chat does: regenerate, edit, choose and answer,
// which take the message.
export class Message {
  constructor(message, siblings, actions) {
    Object.assign(this, { message, siblings, actions, byToken: false, drawn: 0 });
    this.body = h("div", { class: "text" });
    this.folds = h("div", { class: "folds" });
    this.calls = h("div", { class: "calls" });
    this.foot = h("div", { class: "foot" });
    const who = message.role === "assistant" ? message.stats?.model || names.assistant : names[message.role];
    this.node = h("article", { class: `message ${message.role}`, "aria-label": who },
      h("div", { class: "who" }, who), this.folds, this.body, this.calls, this.foot);
    this.draw(false);
  }

  // draw shows the message as it is now. While it is being written it has no foot.
  draw(writing) {
    const m = this.message;
    this.node.classList.toggle("writing", writing);
    this.reasoning(writing);
    if (this.byToken && m.tokens?.length) replace(this.body, tokens(m.tokens));
    else if (m.role === "assistant") replace(this.body, render(m.content));
    else replace(this.body, m.content);
    this.body.classList.toggle("plain", m.role !== "assistant" || this.byToken);
    replace(this.calls, (m.calls || []).map((c) => call(c)), writing ? null : this.results());
    replace(this.foot, m.note ? h("p", { class: "note" }, m.note) : null, writing ? null : this.tools(), writing ? null : stats(m));
  }

  // soon draws the message before the next frame, however often it is called.
  soon() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw(true);
    });
  }

  end() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.draw(false);
  }

  reasoning(writing) {
    const m = this.message;
    if (!m.reasoning) return replace(this.folds);
    if (!this.fold) {
      this.thought = h("div", { class: "text plain" });
      this.fold = h("details", { class: "fold" }, h("summary", {}, "Reasoning"), this.thought);
      this.fold.open = writing;
    }
    if (writing && m.content && !this.folded) { // the answer has begun
      this.folded = true;
      this.fold.open = false;
    }
    replace(this.thought, m.reasoning);
    if (!this.fold.isConnected) replace(this.folds, this.fold);
    return undefined;
  }

  tools() {
    const m = this.message;
    const at = this.siblings.findIndex((s) => s.id === m.id);
    const step = (by) => () => this.actions.choose(this.siblings[at + by]);
    return h("div", { class: "tools" },
      this.siblings.length > 1 && h("span", { class: "branches" },
        button("‹", step(-1), { class: "small quiet", disabled: at === 0, "aria-label": "Earlier version" }),
        h("span", {}, `${at + 1} of ${this.siblings.length}`),
        button("›", step(1), { class: "small quiet", disabled: at === this.siblings.length - 1, "aria-label": "Later version" })),
      m.content && button("Copy", (e) => copy(m.content, e.currentTarget), { class: "small quiet" }),
      m.role === "user" && button("Edit", () => this.edit(), { class: "small quiet" }),
      m.role === "assistant" && button("Regenerate", () => this.actions.regenerate(m), { class: "small quiet" }),
      m.tokens?.length && button("Tokens", (e) => {
        this.byToken = !this.byToken;
        e.currentTarget.setAttribute("aria-pressed", String(this.byToken));
        this.draw(false);
      }, { class: "small quiet", "aria-pressed": String(this.byToken), title: "Show each token with its probability" }));
  }

  // edit replaces the text by a field. The edited question is a new branch.
  edit() {
    const area = h("textarea", { rows: Math.min(12, this.message.content.split("\n").length + 1),
      value: this.message.content, "aria-label": "Edited text" });
    const done = () => {
      if (area.value.trim()) this.actions.edit(this.message, area.value);
    };
    area.addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
        e.preventDefault();
        done();
      }
      if (e.key === "Escape") this.draw(false);
    });
    replace(this.body, area, h("div", { class: "buttons" }, button("Cancel", () => this.draw(false)),
      button("Send as a new branch", done, { class: "main" })));
    replace(this.foot);
    area.focus();
  }

  // results asks for the results of the tools that the model has called last.
  results() {
    if (!this.actions.open(this.message)) return null;
    const areas = this.message.calls.map((c) => h("textarea", { rows: 2, "aria-label": `Result of ${c.name}`,
      placeholder: `Result of ${c.name}` }));
    return h("div", { class: "results" }, areas, button("Send the results", () =>
      this.actions.answer(this.message, areas.map((a) => a.value)), { class: "main" }));
  }
}

function call(c) {
  let text = c.arguments;
  try {
    text = JSON.stringify(JSON.parse(c.arguments), null, 2);
  } catch {
    // it is still being written, or no JSON
  }
  return h("details", { class: "fold" }, h("summary", {}, "Calls ", h("code", {}, c.name)),
    h("pre", { tabindex: "0" }, h("code", {}, text)));
}

// tokens shows each token on a ground that says how likely it was, and on hover or focus what else was likely.
function tokens(list) {
  return list.map(([text, logprob, others], i) => {
    const p = Math.exp(logprob);
    const level = p >= 0.9 ? 0 : p >= 0.6 ? 1 : p >= 0.3 ? 2 : p >= 0.1 ? 3 : 4;
    const node = h("span", { class: `token p${level}`, tabindex: i ? "-1" : "0", "aria-label": `${text}, ${percent(p)}` }, text);
    const show = () => tip(node, text, p, others);
    node.addEventListener("mouseenter", show);
    node.addEventListener("focus", show);
    node.addEventListener("mouseleave", hide);
    node.addEventListener("blur", hide);
    node.addEventListener("keydown", (e) => {
      const next = e.key === "ArrowRight" ? node.nextElementSibling : e.key === "ArrowLeft" ? node.previousElementSibling : null;
      if (next?.classList.contains("token")) next.focus();
    });
    return node;
  });
}

let shown;

function hide() {
  shown?.remove();
  shown = undefined;
}

const visible = (text) => (text ? text.replace(/\n/g, "⏎").replace(/ /g, "·") : "(no text)");

function tip(node, text, p, others) {
  hide();
  const rows = others.length ? others : [[text, Math.log(p)]];
  const best = Math.max(...rows.map(([, l]) => Math.exp(l)), p);
  shown = h("div", { class: "tip", role: "tooltip" },
    h("p", {}, h("code", {}, visible(text)), ` had ${exact(p)}`),
    rows.map(([other, l]) => {
      const bar = h("span", { class: "share" });
      bar.style.setProperty("--share", String(Math.exp(l) / best));
      return h("div", { class: `row${other === text ? " chosen" : ""}` }, h("code", {}, visible(other)), bar, h("span", {}, exact(Math.exp(l))));
    }));
  document.body.append(shown);
  const at = node.getBoundingClientRect();
  const box = shown.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - box.width - 8));
  const above = at.top - box.height - 6;
  shown.style.setProperty("left", `${left}px`);
  shown.style.setProperty("top", `${above > 8 ? above : at.bottom + 6}px`);
}

const exact = (p) => `${(100 * p).toFixed(p > 0.0995 ? 0 : 1)} %`;

addEventListener("scroll", hide, true);

const endings = { length: "ended at the token limit", tool_calls: "called tools", content_filter: "was filtered" };

function stats(m) {
  const s = m.stats;
  if (m.role !== "assistant" || !s) return null;
  const cached = s.cached ? `, ${s.cached} from the cache` : "";
  return h("p", { class: "stats" }, [
    s.prompt !== undefined && `${count(s.prompt, "prompt token")}${cached}`,
    s.tokens !== undefined && count(s.tokens, "token"),
    s.rate && `${s.rate.toFixed(1)} tokens/s`,
    s.first !== undefined && `first after ${s.first.toFixed(2)} s`,
    s.seed !== undefined && `seed ${s.seed}`,
    endings[s.finish],
  ].filter(Boolean).join(" · "));
}

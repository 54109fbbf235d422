// keys.js is the page of API keys. A secret is shown once, when it is made; the router keeps only its digest.

import { get, post } from "./api.js";
import { ask, button, choices, copy, empty, field, h, replace, table } from "./dom.js";
import { time, whole } from "./format.js";

export const title = "Keys";

// What a key may be for, as pkg/auth has it.
const roles = [["user", "uses models"], ["trainer", "runs trainings"], ["operator", "watches and changes the mesh, and makes keys"],
  ["service", "acts for others, and may name their tenants"]];
const verbs = ["generate", "embed", "tokenize", "models", "batch", "train", "observe", "operate", "keys", "probe", "page"];
const lives = [["never", 0], ["in a day", 86400], ["in 30 days", 30 * 86400], ["in a year", 365 * 86400]];

export function mount(root, { access }) {
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const secret = h("div", { "aria-live": "polite" });
  const list = h("div");
  const add = button("Make a key", () => make(), { class: "main", hidden: !access.keys });
  replace(root, h("div", { class: "head" }, h("h2", {}, "API keys"), add), problem, secret, list);

  if (!access.keys) {
    replace(list, empty("This router runs without keys", "Everyone who reaches it may do everything, so it listens on this machine alone.",
      ["Make the first key with ", h("code", {}, "lamina keys create admin --role operator --role user --keys keys.json"),
        ", which prints its secret once, and start the router again with ", h("code", {}, "--auth-keys keys.json"), "."],
      "The browser then asks for a user, which may be anything, and a password, which is the secret."));
    return undefined;
  }

  const attempt = async (what) => {
    try {
      await what();
      problem.hidden = true;
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
  };

  const load = () => attempt(async () => {
    const { keys } = await get("/api/keys");
    const order = { active: 0, expired: 1, revoked: 2 };
    keys.sort((a, b) => order[a.state] - order[b.state] || new Date(b.created) - new Date(a.created));
    replace(list, table("API keys", ["Name", "State", "Roles", "Models", "Budget a minute", "Tenant", "Created", "Expires", "Actions"], keys.map((k) => [
      h("span", {}, k.name || "(no name)", " ", h("small", { class: "note" }, k.id)), h("span", { class: `state ${k.state}` }, k.state),
      k.roles.join(", ") + (k.verbs?.length ? ` (only ${k.verbs.join(", ")})` : ""), k.models?.join(", ") || "all", budget(k), k.tenant || "–",
      time(k.created), k.expires ? time(k.expires) : "never",
      k.state === "active" ? h("span", { class: "buttons" }, button("Rotate", () => rotate(k), { class: "small", "aria-label": `Rotate ${k.name || k.id}` }),
        button("Revoke", () => revoke(k), { class: "small", "aria-label": `Revoke ${k.name || k.id}` })) : "–",
    ])));
  });

  // show shows a secret until the user has put it away or leaves the page, above those that were not put away.
  const show = (answer, what) => {
    if (!answer) return;
    const text = h("code", { class: "secret" }, answer.secret);
    const box = h("div", { class: "once" }, h("p", {}, h("b", {}, what), " Copy the secret now: it is not stored, and never shown again."), text,
      h("div", { class: "buttons" }, button("Copy", (e) => copy(answer.secret, e.currentTarget), { class: "main" }), button("Put away", () => box.remove())));
    [...secret.children].find((b) => b.dataset.key === answer.key.id)?.remove(); // the secret before a rotation
    box.dataset.key = answer.key.id;
    secret.prepend(box);
    load();
  };

  async function make() {
    const check = (name, value, text, checked) => h("label", { class: "check" }, h("input", { type: "checkbox", name, value, checked }), ` ${value}`, text && h("small", {}, ` ${text}`));
    const number = (name) => h("input", { type: "number", name, min: 0, max: 100000000, step: 1, placeholder: "no limit" });
    show(await ask("Make an API key", "Make", [
      field("Name", h("input", { name: "name", required: true, maxlength: 64, autocomplete: "off" })),
      h("fieldset", {}, h("legend", {}, "Roles"), roles.map(([name, text]) => check("role", name, text, name === "user"))),
      h("div", { class: "pairs" }, field("Requests a minute", number("requests")), field("Tokens a minute", number("tokens"))),
      field("Expires", h("select", { name: "life" }, choices(lives.map(([name]) => name), "never"))),
      h("details", { class: "fold" }, h("summary", {}, "Restrict it further"),
        field("Models", h("input", { name: "models", autocomplete: "off" }), "Names or digests, with spaces between. Empty for all."),
        field("Tenant", h("input", { name: "tenant", maxlength: 64, autocomplete: "off", placeholder: "the name" }), "Keys of one tenant share caches and queues."),
        h("fieldset", {}, h("legend", {}, "Only these actions"), verbs.map((v) => check("verb", v)))),
    ], (form) => post("/api/keys", {
      name: form.get("name").trim(), tenant: form.get("tenant").trim(), roles: form.getAll("role"), verbs: form.getAll("verb"),
      models: form.get("models").split(/\s+/).filter(Boolean), requests_per_minute: Number(form.get("requests")), tokens_per_minute: Number(form.get("tokens")),
      expires_in: lives.find(([name]) => name === form.get("life"))[1],
    })), "The key is made.");
  }

  async function rotate(k) {
    show(await ask(`Rotate ${k.name || k.id}?`, "Rotate", [h("p", {}, "It gets another secret."),
      field("The old secret is valid for", h("select", { name: "grace" }, h("option", { value: 0 }, "no longer"), h("option", { value: 3600, selected: true }, "another hour"), h("option", { value: 86400 }, "another day")))],
    (form) => post(`/api/keys/${k.id}/rotate`, { grace: Number(form.get("grace")) })), "The key has another secret.");
  }

  async function revoke(k) {
    const done = await ask(`Revoke ${k.name || k.id}?`, "Revoke", h("p", {}, "It is refused from now on, and cannot be made valid again."), () => post(`/api/keys/${k.id}/revoke`));
    if (done) load();
  }

  load();
  return () => replace(secret);
}

function budget(k) {
  const parts = [k.requests_per_minute && `${whole(k.requests_per_minute)} requests`, k.tokens_per_minute && `${whole(k.tokens_per_minute)} tokens`].filter(Boolean);
  return parts.join(", ") || "no limit";
}

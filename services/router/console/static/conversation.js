// conversation.js keeps a conversation as a tree: an edited question or another answer is a new branch beside the old
// one. It is pure; archive.js stores conversations, and chat.js shows them.
//
// A conversation is {id, title, model, system, parameters, tools, messages, leaf, created, updated}. messages are by id;
// one is {id, parent, role, content} and, of an answer, perhaps {reasoning, calls, tokens, stats, note}. leaf is the last
// message of the branch that is shown; an empty leaf is a conversation without messages.

const newID = () => crypto.randomUUID();

export function create(model, from = {}) {
  const now = Date.now();
  return { id: newID(), title: "", model, system: from.system || "", parameters: { ...from.parameters },
    tools: from.tools || "", messages: {}, leaf: "", created: now, updated: now };
}

// add appends a message to another one and shows its branch. It returns the message.
export function add(c, parent, role, content, more = {}) {
  const message = { id: newID(), parent, role, content, at: Date.now(), ...more };
  c.messages[message.id] = message;
  c.leaf = message.id;
  c.updated = message.at;
  if (!c.title && role === "user") c.title = content.trim().replace(/\s+/g, " ").slice(0, 60);
  return message;
}

// path returns the messages of the branch that is shown, or of the one that ends with an id.
export function path(c, leaf = c.leaf) {
  const out = [];
  for (let m = c.messages[leaf]; m; m = c.messages[m.parent]) out.unshift(m);
  return out;
}

const children = (c, parent) =>
  Object.values(c.messages).filter((m) => m.parent === parent).sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));

// siblings returns the messages in whose place a message stands, in the order of their making.
export const siblings = (c, id) => children(c, c.messages[id].parent).filter((m) => m.role === c.messages[id].role);

// choose shows the branch of a message, down to its latest end.
export function choose(c, id) {
  c.leaf = id;
  for (let next; (next = children(c, c.leaf).at(-1));) c.leaf = next.id;
}

// drop removes a message and everything behind it.
export function drop(c, id) {
  const gone = c.messages[id];
  for (const m of children(c, id)) drop(c, m.id);
  delete c.messages[id];
  if (!c.messages[c.leaf]) {
    if (c.messages[gone.parent]) choose(c, gone.parent);
    else c.leaf = "";
  }
}

// prompt returns the messages of a request whose answer follows a message.
export function prompt(c, leaf) {
  const out = c.system.trim() ? [{ role: "system", content: c.system }] : [];
  for (const m of path(c, leaf)) {
    const message = { role: m.role, content: m.content };
    if (m.role === "tool") message.tool_call_id = m.call;
    if (m.calls?.length) {
      message.tool_calls = m.calls.map((t) =>
        ({ id: t.id, type: "function", function: { name: t.name, arguments: t.arguments } }));
    }
    out.push(message);
  }
  return out;
}

const format = "lamina-conversations";

// pack writes conversations as the text of a file.
export const pack = (list) => JSON.stringify({ format, version: 1, conversations: list }, null, 1);

const limits = { conversations: 10000, messages: 100000, roles: ["user", "assistant", "tool"] };

// unpack reads such a file. Whatever else it contains is left out. It throws an Error that names what is wrong.
export function unpack(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is no JSON: ${error.message}`);
  }
  if (file?.format !== format || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error(`The file has no conversations of Lamina: want {"format": "${format}", "version": 1}.`);
  }
  if (file.conversations.length > limits.conversations) throw new Error("The file has too many conversations.");
  return file.conversations.map((c, i) => read(c, `conversations[${i}]`));
}

function read(c, where) {
  const want = (ok, what) => {
    if (!ok) throw new Error(`${where}${what}`);
  };
  const texts = (o, names) => names.forEach((n) => want(o[n] === undefined || typeof o[n] === "string", `.${n}: want a string`));
  want(c && typeof c === "object", ": want an object");
  texts(c, ["title", "model", "system", "tools", "leaf"]);
  want(c.messages && typeof c.messages === "object" && !Array.isArray(c.messages), ".messages: want an object");
  const entries = Object.entries(c.messages);
  want(entries.length <= limits.messages, ".messages: too many");
  const out = create(c.model || "", { system: c.system, tools: c.tools, parameters: plain(c.parameters) });
  out.title = (c.title || "").slice(0, 200);
  if (Number.isFinite(c.updated)) out.updated = c.updated;
  for (const [id, m] of entries) {
    want(m && m.id === id && limits.roles.includes(m.role) && typeof m.content === "string" && Number.isFinite(m.at),
      `.messages[${JSON.stringify(id)}]: want id, role, content and at`);
    texts(m, ["parent", "reasoning", "note", "call"]);
    out.messages[id] = { id, parent: m.parent || "", role: m.role, content: m.content, at: m.at };
    for (const name of ["reasoning", "note", "call"]) if (m[name]) out.messages[id][name] = m[name];
    if (Array.isArray(m.calls)) out.messages[id].calls = m.calls.map((t) => call(t, want));
    if (Array.isArray(m.tokens)) out.messages[id].tokens = m.tokens.filter(isToken);
    if (m.stats && typeof m.stats === "object") out.messages[id].stats = plain(m.stats);
  }
  for (const m of Object.values(out.messages)) {
    want(m.parent === "" || out.messages[m.parent], `.messages: ${m.id} has no parent ${m.parent}`);
  }
  loops(out, want);
  want(!c.leaf || out.messages[c.leaf], ".leaf: it is no message");
  out.leaf = c.leaf || "";
  return out;
}

// loops refuses messages that are their own ancestors.
function loops(c, want) {
  const fine = new Set([""]);
  for (const id of Object.keys(c.messages)) {
    const seen = [];
    for (let at = id; !fine.has(at); at = c.messages[at].parent) {
      want(!seen.includes(at), ".messages: they form a loop");
      seen.push(at);
    }
    seen.forEach((s) => fine.add(s));
  }
}

function call(t, want) {
  want(t && [t.id, t.name, t.arguments].every((s) => typeof s === "string"), ": a tool call wants id, name and arguments");
  return { id: t.id, name: t.name, arguments: t.arguments };
}

const isToken = (t) => Array.isArray(t) && typeof t[0] === "string" && Number.isFinite(t[1]) && Array.isArray(t[2]) &&
  t[2].every((o) => Array.isArray(o) && typeof o[0] === "string" && Number.isFinite(o[1]));

// plain keeps the members of an object that are texts, numbers or booleans.
const plain = (o) => Object.fromEntries(Object.entries(o && typeof o === "object" ? o : {})
  .filter(([, v]) => ["string", "number", "boolean"].includes(typeof v)));

// app.js starts the console: it asks what the caller may do, shows the pages for that, and changes between them by the
// part of the address behind "#". A page is a module with a title and mount(root, context), which returns a function
// that ends it. Further modules, from the bottom up: dom.js, format.js and api.js; markdown.js, conversation.js,
// archive.js and completion.js for chats; feed.js and happenings.js for the mesh; chart.js for curves.

import * as chat from "./chat.js";
import * as mesh from "./mesh.js";
import * as runs from "./runs.js";
import * as models from "./models.js";
import * as keys from "./keys.js";
import { get } from "./api.js";
import { empty, h, replace } from "./dom.js";
import { Feed } from "./feed.js";

// What each page needs. An operator without a key for text sees no chat.
const pages = { chat, mesh, runs, models, keys };
const needs = { chat: "generate", mesh: "observe", runs: "train", models: "models", keys: "keys" };

const root = document.getElementById("page");
const nav = document.getElementById("nav");
const context = { access: { may: [] }, feed: new Feed(), may: (verb) => context.access.may.includes(verb) };
let unmount = () => {};

const allowed = () => Object.keys(pages).filter((name) => context.may(needs[name]));

function show() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const shown = allowed();
  const page = shown.includes(name) ? name : shown[0];
  unmount();
  unmount = () => {};
  replace(nav, shown.map((n) =>
    h("a", { href: `#/${n}`, "aria-current": n === page ? "page" : null }, pages[n].title)));
  replace(root);
  root.className = `page ${page || ""}`;
  if (!page) {
    replace(root, empty("Nothing to see", "This key may not use any part of the console."));
    return;
  }
  document.title = `${pages[page].title} · Lamina`;
  unmount = pages[page].mount(root, context, rest.map(decodeURIComponent)) || unmount;
}

// The theme is the system's until the user has chosen another one.
function theme(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
}

function startTheme() {
  const at = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  theme(localStorage.getItem("theme"));
  at.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    const system = dark.matches ? "dark" : "light";
    if (next === system) localStorage.removeItem("theme");
    else localStorage.setItem("theme", next);
    theme(next === system ? "" : next);
  });
}

function showLink(state, reason) {
  const link = document.getElementById("link");
  link.textContent = { live: "live", lost: "connection lost, trying again" }[state] || "";
  link.className = `link ${state}`;
  link.title = reason;
}

async function start() {
  startTheme();
  try {
    context.access = await get("/api/access");
  } catch (error) {
    replace(root, empty("The console cannot start", error.message));
    return;
  }
  if (context.may("observe")) context.feed.start(showLink);
  addEventListener("hashchange", () => {
    show();
    root.focus({ preventScroll: true });
  });
  show();
}

start();

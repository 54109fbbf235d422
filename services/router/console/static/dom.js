// dom.js makes elements. Text only ever becomes text nodes, so nothing that a model or a member says can become markup.

const svgSpace = "http://www.w3.org/2000/svg";

// Names that are properties of elements rather than attributes.
const properties = new Set(["value", "checked", "disabled", "selected", "open", "hidden", "htmlFor", "readOnly"]);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false && !properties.has(name)) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (properties.has(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false) node.append(child);
  }
  return node;
}

// h makes an HTML element: h("button", {class: "small", onclick: stop}, "Stop").
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

// svg makes an SVG element.
export const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(svgSpace, tag), attributes, children);

// replace gives a node new children.
export function replace(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false));
  return node;
}

let ids = 0;

// field makes a labelled form control. Further attributes of the label's text explain it.
export function field(text, control, hint) {
  const id = control.id || (control.id = `f${++ids}`);
  const note = hint ? h("small", { id: `${id}-hint`, class: "hint" }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: "field" }, h("label", { for: id }, text), control, note);
}

// button makes a button that does nothing but call back.
export const button = (text, onclick, attributes) => h("button", { type: "button", onclick, ...attributes }, text);

// choices makes the options of a select.
export const choices = (values, chosen) =>
  values.map((v) => h("option", { value: v, selected: v === chosen }, v));

// table makes a table in a frame that scrolls by itself, so that words are not broken on a narrow page. A column is
// [title, class], or a title.
export function table(caption, columns, rows) {
  const heads = columns.map((c) => (Array.isArray(c) ? c : [c, ""]));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table: ${caption}` },
    h("table", {}, h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, heads.map(([title, kind]) => h("th", { scope: "col", class: kind }, title)))),
      h("tbody", {}, rows.map((cells) =>
        h("tr", {}, cells.map((cell, i) => h(i ? "td" : "th", i ? { class: heads[i][1] } : { scope: "row" }, cell)))))));
}

// empty says what to do where there is nothing to see. Each line is text, or a list of text and elements.
export const empty = (title, ...lines) =>
  h("div", { class: "empty" }, h("h2", {}, title), lines.map((line) => h("p", {}, line)));

// ask shows a dialog with a form. submit gets the form's data; an error that it throws is shown, and the dialog stays.
// The result is what submit has returned, or undefined if the user has gone back. Whoever goes back while submit runs
// still gets its result, since what it does may be done already: the secret of a new key must not be lost.
export function ask(title, action, content, submit) {
  return new Promise((resolve) => {
    const problem = h("p", { class: "problem", role: "alert", hidden: true });
    const go = h("button", { class: "main", type: "submit" }, action);
    let result, running = false, closed = false;
    // The close event comes with the next frame, and a page in the background has none: without it, a dialog that was
    // closed would stay in the document, with fields of the same names as the next one's.
    const end = () => {
      closed = true;
      dialog.close();
      dialog.remove();
      if (!running) resolve(result);
    };
    const form = h("form", { method: "dialog" },
      h("h2", { id: "ask-title" }, title), content, problem,
      h("div", { class: "buttons" }, button("Cancel", end), go));
    const dialog = h("dialog", { "aria-labelledby": "ask-title" }, form);
    form.addEventListener("submit", async (e) => {
      e.preventDefault();
      go.disabled = running = true;
      let failed = false;
      try {
        result = (await submit(new FormData(form))) ?? true;
      } catch (error) {
        problem.textContent = error.message;
        problem.hidden = !(failed = true);
      }
      go.disabled = running = false;
      if (!failed || closed) end();
    });
    dialog.addEventListener("close", end); // by Esc
    document.body.append(dialog);
    dialog.showModal();
  });
}

// copy puts text on the clipboard and says so on the button for a moment.
export async function copy(text, at) {
  const before = at.textContent;
  try {
    await navigator.clipboard.writeText(text);
    at.textContent = "Copied";
  } catch {
    at.textContent = "Not allowed";
  }
  setTimeout(() => { at.textContent = before; }, 1500);
}

// save has the browser save text as a file.
export function save(name, text, kind) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

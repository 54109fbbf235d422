// markdown.js turns the Markdown that models write into elements: headings, lists, quotes, tables, code blocks with a
// copy button, and inline marks. HTML stays text, images become links, and maths stays as it was written. Every pass is
// linear in the length of the text, and nesting has a limit.

import { button, copy, h } from "./dom.js";

const maxDepth = 12;

// render returns the nodes of a text.
export const render = (text) => blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);

// The patterns of lines have no two parts that can take the same characters, so a line that fails is read once.
const fence = /^( {0,3})(`{3,}|~{3,}(?!~))([^`]*)$/;
const heading = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const rule = /^ {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const quote = /^ {0,3}> ?(.*)$/;
const item = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|$)/;
const delimiter = /^ *(?:\| *)?(?::?-+:? *\| *)+(?::?-+:? *)?$/;

function blocks(lines, depth) {
  const out = [];
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    let m;
    if (!line.trim()) {
      i++;
    } else if ((m = fence.exec(line))) {
      i = fenced(lines, i, m, out);
    } else if (/^ {0,3}(\$\$|\\\[)/.test(line)) {
      i = maths(lines, i, out);
    } else if ((m = heading.exec(line))) {
      // The page has its own headings above those of a message.
      out.push(h(`h${Math.min(6, m[1].length + 2)}`, {}, inline(m[2].trimEnd().replace(/(^|[ \t])#+$/, ""))));
      i++;
    } else if (rule.test(line)) {
      out.push(h("hr"));
      i++;
    } else if (quote.test(line) && depth < maxDepth) {
      const inner = [];
      for (; i < lines.length && (m = quote.exec(lines[i])); i++) inner.push(m[1]);
      out.push(h("blockquote", {}, blocks(inner, depth + 1)));
    } else if (item.test(line) && depth < maxDepth) {
      i = list(lines, i, depth, out);
    } else if (line.includes("|") && delimiter.test(lines[i + 1] || "") && cells(line).length === cells(lines[i + 1]).length) {
      i = grid(lines, i, out);
    } else {
      i = paragraph(lines, i, depth, out);
    }
  }
  return out;
}

// fenced reads a code block, which a text that is still being written may leave open.
function fenced(lines, i, [, indent, mark, language], out) {
  const code = [];
  const end = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}\\s*$`);
  for (i++; i < lines.length && !end.test(lines[i]); i++) {
    let line = lines[i];
    for (let n = indent.length; n > 0 && line.startsWith(" "); n--) line = line.slice(1);
    code.push(line);
  }
  const text = code.join("\n");
  out.push(h("div", { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, language.trim().split(/\s/)[0] || "text"),
      button("Copy", (e) => copy(text, e.currentTarget), { class: "small quiet", "aria-label": "Copy the code" })),
    h("pre", { tabindex: "0" }, h("code", {}, text))));
  return i + 1;
}

// maths reads a displayed formula, which is shown as text.
function maths(lines, i, out) {
  const open = lines[i].trim().startsWith("$$") ? "$$" : "\\[";
  const close = open === "$$" ? "$$" : "\\]";
  const first = lines[i].trim().slice(2);
  const text = [];
  if (first.includes(close)) {
    text.push(first.slice(0, first.indexOf(close)));
  } else {
    if (first) text.push(first);
    for (i++; i < lines.length && !lines[i].includes(close); i++) text.push(lines[i]);
    if (i < lines.length) text.push(lines[i].slice(0, lines[i].indexOf(close)));
  }
  out.push(h("pre", { class: "maths", tabindex: "0" }, h("code", {}, text.join("\n").trim())));
  return i + 1;
}

// list reads the items of one list. Lines that are indented below an item's text belong to it.
function list(lines, i, depth, out) {
  const [, indent, mark] = item.exec(lines[i]);
  const ordered = /\d/.test(mark);
  const node = h(ordered ? "ol" : "ul", ordered && parseInt(mark, 10) !== 1 ? { start: parseInt(mark, 10) } : {});
  const base = indent.length;
  while (i < lines.length) {
    const m = item.exec(lines[i]);
    if (!m || m[1].length < base || m[1].length > base + 1 || /\d/.test(m[2]) !== ordered || rule.test(lines[i])) break;
    const width = m[1].length + m[2].length + 1;
    const inner = [m[3] || ""];
    for (i++; i < lines.length; i++) {
      const line = lines[i];
      const space = line.length - line.trimStart().length;
      if (!line.trim()) {
        const next = lines[i + 1] || "";
        if (!next.trim() || next.length - next.trimStart().length < width) break;
        inner.push("");
      } else if (space >= width || space > base + 1 && item.test(line)) {
        inner.push(line.slice(Math.min(space, width)));
      } else if (item.test(line) || space < width && starts(line)) {
        break;
      } else {
        inner.push(line.trimStart()); // a lazy continuation
      }
    }
    node.append(h("li", {}, tight(blocks(inner, depth + 1))));
    while (i < lines.length && !lines[i].trim() && item.test(lines[i + 1] || "")) i++;
  }
  out.push(node);
  return i;
}

// tight takes the only paragraph of an item out of its element.
function tight(nodes) {
  if (nodes.length && nodes[0].tagName === "P") return [...nodes[0].childNodes, ...nodes.slice(1)];
  return nodes;
}

const starts = (line) => fence.test(line) || heading.test(line) || rule.test(line) || quote.test(line);

// cells splits a row of a table. A bar behind a backslash or in code belongs to its cell.
function cells(line) {
  const out = [""];
  let code = false;
  const row = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  for (let i = 0; i < row.length; i++) {
    if (row[i] === "\\" && row[i + 1] === "|") out[out.length - 1] += row[++i];
    else if (row[i] === "|" && !code) out.push("");
    else {
      if (row[i] === "`") code = !code;
      out[out.length - 1] += row[i];
    }
  }
  return out.map((c) => c.trim());
}

function grid(lines, i, out) {
  const heads = cells(lines[i]);
  const sides = cells(lines[i + 1]).map((c) =>
    c.endsWith(":") ? (c.startsWith(":") ? "middle" : "right") : "");
  const rows = [];
  for (i += 2; i < lines.length && lines[i].includes("|") && lines[i].trim(); i++) rows.push(cells(lines[i]));
  out.push(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((c, j) => h("th", { scope: "col", class: sides[j] }, inline(c))))),
    h("tbody", {}, rows.map((r) => h("tr", {}, heads.map((_, j) => h("td", { class: sides[j] }, inline(r[j] || ""))))))))); 
  return i;
}

function paragraph(lines, i, depth, out) {
  const text = [lines[i++].trimStart()];
  for (; i < lines.length && lines[i].trim() && !starts(lines[i]); i++) {
    if (depth < maxDepth && item.test(lines[i]) && !/^ *\d/.test(lines[i])) break;
    text.push(lines[i].trimStart());
  }
  out.push(h("p", {}, inline(text.join("\n"))));
  return i;
}

// Inline marks in the order in which they are tried at a place. Each has a sticky pattern whose first group is the
// inside, and makes a node of it.
const marks = [
  [/\\([\\`*_{}[\]()#+\-.!|<>~$])/y, (m) => m[1]],
  [/\\\(([^\n]{1,2000}?)\\\)/y, (m) => h("code", { class: "maths" }, m[1].trim())],
  [/\$([^\s$](?:[^$\n]{0,500}[^\s$])?)\$(?!\d)/y, (m) => h("code", { class: "maths" }, m[1])],
  [/!?\[([^\]\n]{0,1000})\]\(\s*<?((?:[^\s()<>]|\([^\s()<>]{0,200}\)){0,2000})>?(?:\s+"[^"\n]{0,500}")?\s*\)/y, (m, depth) => link(m[2], inline(m[1], depth + 1), m[1])],
  [/<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y, (m) => link(m[1], [m[1]], m[1])],
  [/https?:\/\/[^\s<>"'`]{0,2000}[^\s<>"'`.,;:!?)\]}*_~|]/y, (m) => link(m[0], [m[0]], m[0])],
];

// Emphasis, from the longest delimiter to the shortest.
const emphasis = [["***", ["strong", "em"]], ["___", ["strong", "em"]], ["**", ["strong"]], ["__", ["strong"]],
  ["~~", ["del"]], ["*", ["em"]], ["_", ["em"]]];

const special = /[\\`$!\[<h*_~\n]/g;

// inline returns the nodes of text without blocks.
function inline(text, depth = 0) {
  const out = [];
  let plain = "";
  const hopeless = new Set(); // delimiters and marks that have no end in the rest of the text
  const put = (node) => {
    if (plain) out.push(plain);
    plain = "";
    if (typeof node === "string") plain = node;
    else out.push(node);
  };
  for (let at = 0; at < text.length;) {
    special.lastIndex = at;
    const next = special.exec(text);
    if (!next || depth > maxDepth) {
      plain += text.slice(at);
      break;
    }
    plain += text.slice(at, next.index);
    at = next.index;
    if (text[at] === "\n") {
      const slash = text[at - 1] === "\\";
      if (slash || text.startsWith("  ", at - 2)) {
        plain = slash ? plain.slice(0, -1) : plain.trimEnd();
        put(h("br"));
      } else plain += "\n";
      at++;
      continue;
    }
    const found = mark(text, at, depth, hopeless) || emphasised(text, at, depth, hopeless);
    if (!found) {
      plain += text[at++];
      continue;
    }
    put(found.node);
    at = found.end;
  }
  if (plain) out.push(plain);
  return out;
}

// closing returns where the next run of exactly as many backticks begins, or -1. Each length fails once in a text.
function closing(text, run, from) {
  const ticks = /`+/g;
  ticks.lastIndex = from;
  for (let m; (m = ticks.exec(text));) if (m[0].length === run.length) return m.index;
  return -1;
}

function mark(text, at, depth, hopeless) {
  const ticks = text[at] === "`" ? /`+/y : null;
  if (ticks) {
    ticks.lastIndex = at;
    const run = ticks.exec(text)[0];
    const end = hopeless.has(run) ? -1 : closing(text, run, at + run.length);
    if (end < 0) {
      hopeless.add(run);
      return { node: run, end: at + run.length };
    }
    const code = text.slice(at + run.length, end).replace(/\n/g, " ");
    const padded = code.startsWith(" ") && code.endsWith(" ") && code.trim();
    return { node: h("code", {}, padded ? code.slice(1, -1) : code), end: end + run.length };
  }
  for (const [pattern, make] of marks) {
    pattern.lastIndex = at;
    const m = pattern.exec(text);
    if (!m) continue;
    const end = pattern.lastIndex; // before the inside of a link is read, by the same patterns
    return { node: make(m, depth), end };
  }
  return null;
}

function emphasised(text, at, depth, hopeless) {
  for (const [sign, tags] of emphasis) {
    if (!text.startsWith(sign, at) || hopeless.has(sign)) continue;
    const from = at + sign.length;
    if (/\s/.test(text[from] ?? " ") || text[from] === sign[0]) continue;
    if (sign[0] === "_" && /\w/.test(text[at - 1] ?? " ")) continue; // snake_case
    for (let end = text.indexOf(sign, from); ; end = text.indexOf(sign, end + 1)) {
      if (end < 0) {
        hopeless.add(sign);
        break;
      }
      const after = text[end + sign.length] ?? " ";
      if (/\s/.test(text[end - 1]) || text[end - 1] === "\\" || after === sign[0]) continue;
      if (sign[0] === "_" && /\w/.test(after)) continue;
      const inside = inline(text.slice(from, end), depth + 1);
      return { node: tags.reduceRight((inner, tag) => [h(tag, {}, inner)], inside)[0], end: end + sign.length };
    }
  }
  return null;
}

// link makes a link, unless the address is one that could run scripts.
function link(address, inside, text) {
  if (!/^(https?:\/\/|mailto:)/i.test(address)) return h("span", {}, inside.length ? inside : text);
  return h("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank" }, inside.length ? inside : address);
}

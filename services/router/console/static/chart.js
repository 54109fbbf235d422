// chart.js draws curves of several runs over steps, with the values under the pointer or the arrow keys. Long curves are
// thinned to what the width can show, each column keeping its lowest and highest value.

import { h, replace, svg } from "./dom.js";
import { short } from "./format.js";

const width = 420;
const height = 190;
const edge = { left: 50, right: 8, top: 8, bottom: 24 };
const columns = 400;

// chart makes an empty chart. Its draw takes series: [{name, color, points: [[x, y], ..], dashed}] with x ascending;
// color is the number of a colour of the style sheet.
export function chart(title) {
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0" });
  const note = h("figcaption", {}, title);
  const readout = h("p", { class: "readout", "aria-live": "polite" });
  const cursor = svg("line", { class: "cursor", y1: edge.top, y2: height - edge.bottom, visibility: "hidden" });
  const node = h("figure", { class: "chart" }, note, picture, readout);
  let now = { series: [], x: null };
  let at = null;

  const read = (x) => {
    at = x;
    cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x === null || !now.x) {
      replace(readout, latest(now.series));
      return;
    }
    cursor.setAttribute("x1", now.x.place(x));
    cursor.setAttribute("x2", now.x.place(x));
    replace(readout, h("b", {}, `step ${Math.round(x)}`), now.series.map((s) => value(s, nearest(s.points, x))));
  };

  picture.addEventListener("pointermove", (e) => {
    if (!now.x) return;
    const box = picture.getBoundingClientRect();
    const inside = (e.clientX - box.left) / box.width * width;
    read(Math.min(now.x.high, Math.max(now.x.low, now.x.value(inside))));
  });
  picture.addEventListener("pointerleave", () => read(null));
  picture.addEventListener("blur", () => read(null));
  picture.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!by || !now.x) return;
    e.preventDefault();
    const from = at ?? now.x.high;
    read(Math.min(now.x.high, Math.max(now.x.low, from + by * Math.max(1, (now.x.high - now.x.low) / 100))));
  });

  return { node, draw(series, log = false) {
    const shown = series.filter((s) => s.points.length).map((s) => log ? { ...s, points: s.points.filter(([, y]) => y > 0) } : s);
    now = scaled(shown, log);
    now.series = shown;
    picture.setAttribute("aria-label", `${title}. ${shown.map((s) => `${s.name}: ${short(s.points.at(-1)?.[1] ?? 0)}`).join("; ") || "No values yet"}.`);
    if (!now.x) {
      replace(picture, svg("text", { x: width / 2, y: height / 2, class: "axis", "text-anchor": "middle" }, "no values yet"));
      replace(readout);
      return;
    }
    replace(picture, grid(now), shown.map((s) => svg("polyline", { class: `curve series-${s.color}${s.dashed ? " dashed" : ""}`,
      points: thin(s.points, now).map(([x, y]) => `${now.x.place(x).toFixed(1)},${now.y.place(y).toFixed(1)}`).join(" ") })), single(shown, now), cursor);
    read(at === null || at > now.x.high ? null : at);
  } };
}

// single marks curves of one point, of which a line would show nothing.
const single = (series, now) => series.filter((s) => s.points.length === 1).map((s) =>
  svg("circle", { class: `point series-${s.color}`, r: 3, cx: now.x.place(s.points[0][0]), cy: now.y.place(s.points[0][1]) }));

const latest = (series) => series.map((s) => value(s, s.points.at(-1)));

const value = (s, point) => h("span", { class: "entry" }, h("span", { class: `key series-${s.color}${s.dashed ? " dashed" : ""}` }),
  `${s.name} ${point ? short(point[1]) : "–"}`);

// nearest finds the point with the x that is nearest, by bisection.
function nearest(points, x) {
  let lo = 0;
  let hi = points.length - 1;
  while (hi - lo > 1) {
    const mid = (lo + hi) >> 1;
    if (points[mid][0] <= x) lo = mid;
    else hi = mid;
  }
  if (hi < 0) return undefined;
  return Math.abs(points[lo][0] - x) <= Math.abs(points[hi][0] - x) ? points[lo] : points[hi];
}

// axis maps values of [low, high] to places of [from, to].
function axis(low, high, from, to, log) {
  const f = log ? Math.log10 : (v) => v;
  const g = log ? (v) => 10 ** v : (v) => v;
  const [a, b] = [f(low), f(high)];
  return { low, high, log, place: (v) => from + (f(v) - a) / (b - a) * (to - from), value: (p) => g(a + (p - from) / (to - from) * (b - a)) };
}

function scaled(series, log) {
  let [xl, xh, yl, yh] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const s of series) {
    for (const [x, y] of s.points) {
      if (x < xl) xl = x;
      if (x > xh) xh = x;
      if (y < yl) yl = y;
      if (y > yh) yh = y;
    }
  }
  if (xl > xh) return { series, x: null };
  if (xl === xh) xh = xl + 1;
  const room = (yh - yl) * 0.05 || Math.abs(yh) * 0.05 || 1;
  [yl, yh] = log ? [yl / 1.05, yh * 1.05] : [yl < 0 ? yl - room : Math.max(0, yl - room), yh + room];
  return { series, x: axis(xl, xh, edge.left, width - edge.right), y: axis(yl, yh, height - edge.bottom, edge.top, log) };
}

// ticks are round numbers of an axis.
function ticks(a, about) {
  if (a.log) {
    const out = [];
    for (let e = Math.ceil(Math.log10(a.low)); e <= Math.log10(a.high); e++) out.push(10 ** e);
    if (out.length > 1) return out;
  }
  const raw = (a.high - a.low) / about;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((n) => n * size >= raw) * size;
  const out = [];
  for (let v = Math.ceil(a.low / step) * step; v <= a.high + step * 1e-9; v += step) out.push(Number(v.toPrecision(12)));
  return out;
}

const label = (v) => (Math.abs(v) >= 1e5 || v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(0) : String(v));

function grid({ x, y }) {
  return [
    ...ticks(y, 5).map((v) => [
      svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y.place(v), y2: y.place(v) }),
      svg("text", { class: "axis", x: edge.left - 6, y: y.place(v) + 4, "text-anchor": "end" }, label(v))]),
    ...ticks(x, 5).filter(Number.isInteger).map((v) =>
      svg("text", { class: "axis", x: x.place(v), y: height - 8, "text-anchor": "middle" }, label(v))),
  ].flat();
}

// thin keeps the lowest and the highest point of each column of the picture.
function thin(points, { x }) {
  if (points.length <= 2 * columns) return points;
  const out = [];
  let column = -1;
  let low;
  let high;
  const put = () => {
    if (!low) return;
    out.push(...(low[0] < high[0] ? [low, high] : low === high ? [low] : [high, low]));
  };
  for (const p of points) {
    const c = Math.floor((p[0] - x.low) / (x.high - x.low) * columns);
    if (c !== column) {
      put();
      column = c;
      low = high = p;
    } else {
      if (p[1] < low[1]) low = p;
      if (p[1] > high[1]) high = p;
    }
  }
  put();
  return out;
}

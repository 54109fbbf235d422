// format.js writes numbers for people.

export const count = (n, one, many = `${one}s`) => `${whole(n)} ${Number(n) === 1 ? one : many}`;

export const whole = (n) => Number(n || 0).toLocaleString("en");

export const percent = (share) => `${Math.round(100 * (share || 0))} %`;

// short keeps three significant digits.
export function short(n) {
  const size = Math.abs(n);
  if (!Number.isFinite(n)) return String(n);
  if (size === 0) return "0";
  if (size >= 1e4 || size < 1e-3) return n.toExponential(2);
  if (size >= 100) return n.toFixed(0);
  return n.toPrecision(3);
}

export function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = Number(n || 0);
  let unit = 0;
  for (; size >= 1024 && unit < units.length - 1; unit++) size /= 1024;
  return `${unit === 0 || size >= 100 ? size.toFixed(0) : size.toFixed(1)} ${units[unit]}`;
}

export function millis(ms) {
  if (!ms) return "–";
  return ms < 10 ? `${ms.toFixed(2)} ms` : `${ms.toFixed(ms < 100 ? 1 : 0)} ms`;
}

// duration writes seconds.
export function duration(s) {
  const total = Math.round(Number(s));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min ${total % 60} s`;
  return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
}

export function time(when) {
  const d = new Date(when);
  return Number.isNaN(d.getTime()) || d.getFullYear() < 1971 ? "–" : d.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export const clock = (when) => new Date(when).toLocaleTimeString("en-GB");

// layers names a span of layers, [lo, hi).
export function layers(span) {
  const lo = span.lo || 0;
  return span.hi - lo === 1 ? `layer ${lo}` : `layers ${lo}–${span.hi - 1}`;
}

// brief shortens a digest.
export const brief = (digest) => (digest || "").replace(/^sha256:/, "").slice(0, 12);

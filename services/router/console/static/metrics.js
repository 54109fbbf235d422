// metrics.js follows metrics.jsonl of a run: it fetches what was added since the last time, and starts again when the
// file is shorter, because the run has gone back to a checkpoint.

import { bytes } from "./api.js";

export class Metrics {
  lines = []; // one object for each step, in order
  samples = []; // the same of samples.jsonl
  #files = {}; // by name: {offset, decoder, rest}

  constructor(run) {
    this.run = run;
  }

  // update fetches what is new. It reports whether there was anything.
  async update() {
    const metrics = await this.#fetch("metrics.jsonl", this.lines);
    const samples = await this.#fetch("samples.jsonl", this.samples);
    if (metrics) this.lines = ordered(this.lines);
    return metrics || samples;
  }

  async #fetch(name, into) {
    const fresh = { offset: 0, decoder: new TextDecoder(), rest: "" };
    const file = this.#files[name] ||= fresh;
    let piece;
    try {
      piece = await bytes(`/api/runs/${encodeURIComponent(this.run)}/files/${name}?offset=${file.offset}`);
    } catch (error) {
      if (error.status === 404) return false; // nothing has been written yet
      if (!file.offset) throw error;
      this.#files[name] = fresh;
      into.length = 0;
      return true;
    }
    file.offset += piece.byteLength;
    const lines = (file.rest + file.decoder.decode(piece, { stream: true })).split("\n");
    file.rest = lines.pop();
    for (const line of lines) {
      try {
        into.push(JSON.parse(line));
      } catch {
        // a line that was cut by a crash
      }
    }
    return lines.length > 0;
  }
}

// ordered keeps the latest line of each step: after a return to a checkpoint steps are made again.
function ordered(lines) {
  if (lines.every((l, i) => i === 0 || l.step > lines[i - 1].step)) return lines;
  return [...new Map(lines.map((l) => [l.step, l])).values()].sort((a, b) => a.step - b.step);
}

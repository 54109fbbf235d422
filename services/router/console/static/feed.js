// feed.js receives the topology of the mesh as long as the console is open, and keeps what happened and how fast it was,
// so that a page that is opened later can show it.

import { follow } from "./api.js";
import { happenings } from "./happenings.js";

const keptHappenings = 200;
const keptRates = 90; // samples of a pipeline, at least a second apart
const window = 1000; // milliseconds over which the busy share is measured

export class Feed {
  mesh = null; // the latest topology; null before the first
  refused = ""; // why there is none
  happened = []; // the newest first
  rates = new Map(); // tokens/s by pipeline
  busy = new Map(); // share of the last second in which a span computed, by address and span
  #marks = new Map(); // compute_us at a time, for that
  #listeners = new Set();
  #pipelines = new Set();

  start(state) {
    follow("/api/topology", (mesh) => this.take(mesh), (now, reason) => {
      this.refused = now === "refused" ? reason : "";
      state(now, reason);
      if (now === "lost") this.mark("lost", "The connection to the router is lost.");
      this.#notify();
    });
    setInterval(() => this.settle(), 1000);
  }

  // on calls back after each change until the returned function is called.
  on(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  // onPipelines calls back when pipelines have come or gone.
  onPipelines(listener) {
    this.#pipelines.add(listener);
    return () => this.#pipelines.delete(listener);
  }

  mark(kind, text) {
    if (this.happened[0]?.text === text) return;
    this.happened.unshift({ kind, text, at: Date.now() });
    this.happened.length = Math.min(this.happened.length, keptHappenings);
  }

  take(mesh) {
    const before = this.mesh;
    this.mesh = mesh;
    for (const { kind, text } of happenings(before, mesh)) this.mark(kind, text);
    this.#measure(performance.now());
    this.#notify();
    const names = (m) => (m?.pipelines || []).map((p) => p.id).join() + "|" + (m?.adapters || []).map((a) => a.digest).join();
    if (before && names(before) !== names(mesh)) this.#pipelines.forEach((l) => l());
  }

  // settle measures again when no topology has come for a while, which means that nothing is computed.
  settle() {
    if (!this.mesh) return;
    this.#sample();
    this.#measure(performance.now());
    this.#notify();
  }

  #sample() {
    const live = new Set();
    for (const p of this.mesh.pipelines || []) {
      live.add(p.id);
      const list = this.rates.get(p.id) || [];
      list.push(p.running ? p.tokens_per_second || 0 : 0);
      this.rates.set(p.id, list.slice(-keptRates));
    }
    for (const id of this.rates.keys()) if (!live.has(id)) this.rates.delete(id);
  }

  #measure(now) {
    for (const m of this.mesh.members || []) {
      for (const held of m.held || []) {
        const key = spanKey(m.address, held);
        const computed = Number(held.compute_us || 0);
        const mark = this.#marks.get(key);
        if (!mark || computed < mark.computed) {
          this.#marks.set(key, { at: now, computed });
        } else if (now - mark.at >= window) {
          this.busy.set(key, Math.min(1, (computed - mark.computed) / 1000 / (now - mark.at)));
          this.#marks.set(key, { at: now, computed });
        }
      }
    }
  }

  #notify() {
    this.#listeners.forEach((l) => l());
  }
}

// spanKey names a span of a host.
export const spanKey = (address, held) => `${address} ${held.digest} ${held.lo || 0}`;

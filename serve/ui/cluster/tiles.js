/** What a model does: one number each with its last two minutes. The tiles are made once, their numbers change. */

import { element } from "../shared/dom.js";
import { counted, durationInWords, figure } from "../shared/words.js";
import { Chart } from "./chart.js";

/** @typedef {import("./snapshots.js").Model} Model */

/** Label, the number that is drawn, how it is written, what stands below, and the least height of the chart. */
const TILES = /** @type {readonly {label: string, value: (model: Model) => number | null, shown: (value: number) => string, unit: string, note: (model: Model) => string, least: number}[]} */ ([
  { label: "Generated", value: (m) => m.generation_tokens_per_s, shown: figure, unit: "tokens/s", note: (m) => between(m), least: 10 },
  { label: "Prompts read", value: (m) => m.prompt_tokens_per_s, shown: figure, unit: "tokens/s", note: (m) => first(m), least: 50 },
  { label: "Requests", value: (m) => m.requests_per_s, shown: figure, unit: "per second", note: (m) => `${figure(m.requests_total)} in all`, least: 1 },
  { label: "Running", value: (m) => m.running, shown: figure, unit: "", note: (m) => (m.waiting > 0 ? `${figure(m.waiting)} waiting` : "none waiting"), least: 4 },
  { label: "KV cache", value: (m) => used(m), shown: (v) => `${figure(v)} %`, unit: "", note: (m) => blocks(m), least: 100 },
  { label: "Recoveries", value: (m) => m.recoveries.count, shown: figure, unit: "", note: (m) => recovered(m), least: 3 },
]);

export class Tiles {
  frame = element("dl", { class: "tiles" });
  #parts = TILES.map((tile) => {
    const chart = new Chart(tile.least);
    const parts = { chart, value: element("span", { class: "value" }), note: element("dd", { class: "note" }) };
    const unit = tile.unit && element("span", { class: "unit" }, tile.unit);
    this.frame.append(element("div", { class: "tile" }, element("dt", {}, tile.label), element("dd", {}, parts.value, unit), parts.note, element("dd", { class: "drawn" }, chart.frame)));
    return parts;
  });

  /** @param {Model} model */
  update(model) {
    TILES.forEach((tile, at) => {
      const value = tile.value(model);
      const { chart, value: shown, note } = this.#parts[at];
      shown.textContent = value === null ? "–" : tile.shown(value);
      note.textContent = tile.note(model);
      chart.push(value);
    });
  }
}

/** @param {Model} model */
const used = ({ kv }) => (kv === null || kv.blocks === 0 ? null : (100 * kv.used) / kv.blocks);

/** @param {Model} model */
const blocks = ({ kv }) => (kv === null ? "" : `${figure(kv.used)} of ${counted(kv.blocks, "block")}`);

/** @param {Model} model */
const first = ({ ttft_p50_ms: ms }) => (ms === null ? "no first token yet" : `first token after ${durationInWords(ms)}`);

/** @param {Model} model */
const between = ({ itl_p50_ms: ms }) => (ms === null ? "no token yet" : `${ms < 10 ? `${ms.toFixed(1)} ms` : durationInWords(ms)} between tokens`);

/** @param {Model} model */
const recovered = ({ recoveries }) => (recoveries.last_s === null ? "no rank was lost" : `the last took ${durationInWords(recoveries.last_s * 1000)}`);

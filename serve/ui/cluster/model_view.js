/** One model of the cluster: its state, its numbers, its mesh and the table of its ranks. */

import { element } from "../shared/dom.js";
import { counted, figure } from "../shared/words.js";
import { PARTS } from "./load_bar.js";
import { Mesh } from "./mesh.js";
import { rankTable } from "./tables.js";
import { Tiles } from "./tiles.js";

const STATES = { ready: "ready", loading: "loading …", failed: "failed" };
const MEANINGS = { compute: "computes", communicate: "communicates", wait: "waits for others" };

/** @typedef {import("./snapshots.js").Model} Model */

export class ModelView {
  #state = element("span", { class: "state" });
  #shape = element("p", { class: "shape" });
  #tiles = new Tiles();
  #mesh = new Mesh();
  #table = rankTable();
  #ranks = element(
    "div",
    {},
    element("div", { class: "ranks-head" }, element("h3", {}, "Ranks"), element("div", { class: "legend", "aria-hidden": "true" }, ...PARTS.map((part) => element("span", { class: part }, MEANINGS[part])))),
    this.#mesh.frame,
    this.#table.frame,
  );
  frame;

  /** @param {string} name */
  constructor(name) {
    this.frame = element("section", { class: "model", "aria-label": name }, element("header", {}, element("h2", {}, name), this.#state), this.#shape, this.#tiles.frame, this.#ranks);
  }

  /** @param {Model} model @param {string[]} nodes */
  update(model, nodes) {
    if (this.#state.textContent !== STATES[model.state]) this.#state.textContent = STATES[model.state];
    this.#state.dataset.state = model.state;
    this.#shape.textContent = shapeInWords(model);
    this.#tiles.frame.hidden = model.state === "loading";
    this.#ranks.hidden = model.ranks.length === 0;
    if (model.state === "loading") return;
    this.#tiles.update(model);
    this.#mesh.update(model, nodes);
    this.#table.update(model.ranks);
  }
}

/** @param {Model} model */
function shapeInWords({ mesh, max_model_len: length, ranks }) {
  if (mesh === null) return "Its ranks are loading their weights.";
  const stages = mesh.pipeline === 1 ? "one stage" : counted(mesh.pipeline, "stage");
  const share = mesh.tensor === 1 ? "one rank" : `${counted(mesh.tensor, "rank")} that share its layers`;
  const context = length === null ? "" : ` Up to ${figure(length)} tokens of context.`;
  return `${counted(ranks.length, "rank")}: ${stages}${mesh.pipeline === 1 ? " of" : ", each of"} ${share}.${context}`;
}

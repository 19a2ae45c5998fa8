/**
 * The mesh of a model as a picture: a column for each stage of the pipeline, through which an answer goes from left to
 * right; in it, one above the other, the tensor ranks that share the stage's layers. The colour at a rank's edge is its
 * node's. A table says the same to who cannot see it.
 */

import { element, setAttribute } from "../shared/dom.js";
import { bytesInWords, counted } from "../shared/words.js";
import { LoadBar } from "./load_bar.js";

/** A rank that nobody has heard of for so long may be gone. */
export const LATE_S = 5;
const NUM_COLOURS = 6;

/** @typedef {import("./snapshots.js").Model} Model @typedef {import("./snapshots.js").Rank} Rank */

export class Mesh {
  frame = element("div", { class: "mesh", "aria-hidden": "true" });
  /** @type {Map<number, RankBox>} */
  #boxes = new Map();
  #shape = "";

  /** @param {Model} model @param {string[]} nodes by their colours */
  update(model, nodes) {
    const shape = JSON.stringify([model.mesh, model.ranks.map((rank) => [rank.rank, rank.stage, rank.tensor])]);
    if (shape !== this.#shape) this.#rebuild(model, shape);
    for (const rank of model.ranks) this.#boxes.get(rank.rank)?.update(rank, nodes.indexOf(rank.node) % NUM_COLOURS);
  }

  /** @param {Model} model @param {string} shape */
  #rebuild(model, shape) {
    this.#shape = shape;
    this.#boxes = new Map(model.ranks.map((rank) => [rank.rank, new RankBox()]));
    const stages = [...new Set(model.ranks.map((rank) => rank.stage))].sort((a, b) => a - b);
    this.frame.replaceChildren(...stages.flatMap((stage, at) => {
      const ranks = model.ranks.filter((rank) => rank.stage === stage).sort((a, b) => a.tensor - b.tensor);
      const boxes = ranks.map((rank) => this.#boxes.get(rank.rank)?.frame ?? "");
      const layers = ranks[0].layers === null ? "" : ` · layers ${ranks[0].layers[0]}–${ranks[0].layers[1]}`;
      const head = element("div", { class: "stage-head" }, element("strong", {}, `Stage ${stage}`), layers);
      return [at > 0 && element("div", { class: "arrow" }), element("div", { class: "stage" }, head, ...boxes)].filter((part) => part !== false);
    }));
  }
}

class RankBox {
  #name = element("strong");
  #node = element("span", { class: "rank-node" });
  #units = element("div", { class: "rank-units" });
  #bytes = element("div", { class: "rank-bytes" });
  #bar = new LoadBar();
  frame = element("div", { class: "rank" }, element("div", { class: "rank-head" }, this.#name, this.#node), this.#bar.frame, this.#units, this.#bytes);

  /** @param {Rank} rank @param {number} colour of its node */
  update(rank, colour) {
    this.#name.textContent = `Rank ${rank.rank}`;
    this.#node.textContent = rank.node;
    this.#units.textContent = `${counted(rank.units.heads, "head")} · ${counted(rank.units.mlp, "MLP unit")}${rank.units.vocab > 0 ? ` · ${counted(rank.units.vocab, "vocabulary unit")}` : ""}`;
    this.#bytes.textContent = `${bytesInWords(rank.weight_bytes)} weights · ${bytesInWords(rank.kv_bytes)} KV`;
    this.#bar.update(rank.load);
    setAttribute(this.frame, "data-node", colour);
    this.frame.classList.toggle("late", (rank.heartbeat_age_s ?? 0) > LATE_S);
  }
}

/** Tables whose rows stay the same elements: only the text that has changed is written. */

import { element } from "../shared/dom.js";
import { bytesInWords, counted, durationInWords, figure } from "../shared/words.js";
import { LATE_S } from "./mesh.js";
import { percent } from "./load_bar.js";

/** @typedef {import("./snapshots.js").Rank} Rank @typedef {import("./snapshots.js").Node} Node */

/** @template T */
class Table {
  #columns;
  #body = element("tbody");
  frame;

  #isLost;

  /**
   * @param {string} caption @param {readonly [string, (item: T) => string][]} columns the first one names the row
   * @param {(item: T) => boolean} isLost whose row stands out
   */
  constructor(caption, columns, isLost) {
    this.#columns = columns;
    this.#isLost = isLost;
    const head = element("tr", {}, ...columns.map(([name]) => element("th", { scope: "col" }, name)));
    const table = element("table", {}, element("caption", { class: "only-read-aloud" }, caption), element("thead", {}, head), this.#body);
    this.frame = element("div", { class: "table-frame", role: "region", "aria-label": caption, tabindex: 0 }, table);
  }

  /** @param {T[]} items */
  update(items) {
    while (this.#body.rows.length > items.length) this.#body.lastElementChild.remove();
    while (this.#body.rows.length < items.length) this.#body.append(this.#row());
    items.forEach((item, at) => {
      this.#body.rows[at].classList.toggle("lost", this.#isLost(item));
      this.#columns.forEach(([, text], column) => {
        const cell = this.#body.rows[at].cells[column];
        const shown = text(item);
        if (cell.textContent !== shown) cell.textContent = shown;
      });
    });
  }

  #row() {
    return element("tr", {}, ...this.#columns.map((_, at) => (at === 0 ? element("th", { scope: "row" }) : element("td"))));
  }
}

/** @returns {Table<Rank>} */
export const rankTable = () =>
  new Table("What every rank holds and does", [
    ["Rank", (rank) => String(rank.rank)],
    ["Stage", (rank) => String(rank.stage)],
    ["Tensor", (rank) => String(rank.tensor)],
    ["Node", (rank) => rank.node],
    ["Device", (rank) => (rank.threads ? `${rank.device}, ${counted(rank.threads, "thread")}` : rank.device)],
    ["Process", (rank) => String(rank.pid)],
    ["Layers", (rank) => (rank.layers === null ? "none" : `${rank.layers[0]}–${rank.layers[1]}`)],
    ["Heads", (rank) => figure(rank.units.heads)],
    ["MLP units", (rank) => figure(rank.units.mlp)],
    ["Vocabulary units", (rank) => figure(rank.units.vocab)],
    ["Weights", (rank) => bytesInWords(rank.weight_bytes)],
    ["KV cache", (rank) => bytesInWords(rank.kv_bytes)],
    ["Computes", (rank) => percent(rank.load.compute)],
    ["Communicates", (rank) => percent(rank.load.communicate)],
    ["Waits", (rank) => percent(rank.load.wait)],
    ["Sent", (rank) => bytesInWords(total(rank, "sent_bytes"))],
    ["Received", (rank) => bytesInWords(total(rank, "received_bytes"))],
    ["Heard of", (rank) => (rank.heartbeat_age_s === null ? "never" : `${durationInWords(rank.heartbeat_age_s * 1000)} ago`)],
  ], (rank) => rank.heartbeat_age_s === null || rank.heartbeat_age_s > LATE_S);

/** @returns {Table<Node>} */
export const nodeTable = () =>
  new Table("Nodes", [
    ["Node", (node) => node.name],
    ["Address", (node) => node.address],
    ["State", (node) => (node.is_alive ? "alive" : "lost")],
    ["Processors", (node) => figure(node.cpus)],
    ["Memory", (node) => bytesInWords(node.memory_bytes)],
  ], (node) => !node.is_alive);

/** @param {Rank} rank @param {"sent_bytes" | "received_bytes"} direction */
function total(rank, direction) {
  return rank.links.reduce((sum, link) => sum + link[direction], 0);
}

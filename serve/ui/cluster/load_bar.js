/** What a rank did in the last second: computing, communicating, waiting; the rest is idle. */

import { element } from "../shared/dom.js";

/** @typedef {import("./snapshots.js").Load} Load */

export const PARTS = /** @type {const} */ (["compute", "communicate", "wait"]);

export class LoadBar {
  #parts = PARTS.map((name) => element("span", { class: `part ${name}` }));
  frame = element("div", { class: "load-bar", "aria-hidden": "true" }, ...this.#parts);

  /** @param {Load} load parts of one */
  update(load) {
    PARTS.forEach((name, at) => {
      this.#parts[at].style.width = `${(100 * Math.min(1, Math.max(0, load[name]))).toFixed(1)}%`;
    });
    this.frame.title = PARTS.map((name) => `${name} ${percent(load[name])}`).join(", ");
  }
}

/** @param {number} part */
export const percent = (part) => `${Math.round(100 * part)} %`;

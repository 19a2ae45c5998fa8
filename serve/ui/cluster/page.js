/** The page that shows the cluster at work. */

import { ApiError, currentKey, messageOf } from "../shared/api.js";
import { element, find } from "../shared/dom.js";
import { drawIcons } from "../shared/icons.js";
import { askForKeysOf, logOut } from "../shared/key_dialog.js";
import { offerThemes } from "../shared/theme_choice.js";
import { counted, durationInWords } from "../shared/words.js";
import { ModelView } from "./model_view.js";
import { snapshots } from "./snapshots.js";
import { nodeTable } from "./tables.js";

/** @typedef {import("./snapshots.js").Snapshot} Snapshot */

class Page {
  /** @type {Map<string, ModelView>} */
  #models = new Map();
  #nodes = nodeTable();
  #trouble = find("#trouble");
  #reading = new AbortController();

  constructor() {
    find("#nodes").append(this.#nodes.frame);
    find("#log-out").addEventListener("click", logOut);
    askForKeysOf(() => this.start());
  }

  async start() {
    find("#log-out").hidden = currentKey() === null;
    this.#reading.abort(new DOMException("again", "AbortError"));
    this.#reading = new AbortController();
    try {
      for await (const snapshot of snapshots(this.#reading.signal, (text) => this.#tell(text))) this.#show(snapshot);
    } catch (error) {
      const isForbidden = error instanceof ApiError && error.status === 403;
      this.#tell(isForbidden ? "Only a key of an administrator sees the cluster." : messageOf(error), true);
    }
  }

  /** @param {string} text @param {boolean} hasEnded whether nothing is tried again by itself */
  #tell(text, hasEnded = false) {
    const retry = () => this.start();
    find("#live").dataset.state = "lost";
    this.#trouble.hidden = false;
    this.#trouble.replaceChildren(
      element("span", {}, text),
      ...(hasEnded ? [element("button", { type: "button", class: "small outlined", on: { click: retry } }, "Try again")] : []),
    );
  }

  /** @param {Snapshot} snapshot */
  #show(snapshot) {
    this.#trouble.hidden = true;
    find("#live").dataset.state = "live";
    find("#waiting").hidden = true;
    find("#nodes").hidden = false;
    find("#summary").textContent = summaryOf(snapshot);
    this.#showModels(snapshot);
    this.#nodes.update(snapshot.nodes);
  }

  /** @param {Snapshot} snapshot */
  #showModels({ models, nodes }) {
    const names = nodes.map((node) => node.name);
    for (const [name, view] of this.#models) {
      if (models.some((model) => model.name === name)) continue;
      view.frame.remove();
      this.#models.delete(name);
    }
    for (const model of models) {
      let view = this.#models.get(model.name);
      if (view === undefined) {
        view = new ModelView(model.name);
        this.#models.set(model.name, view);
        find("#models").append(view.frame);
      }
      view.update(model, names);
    }
  }
}

/** @param {Snapshot} snapshot */
function summaryOf({ nodes, models, uptime_s: uptime, version }) {
  const numRanks = models.reduce((sum, model) => sum + model.ranks.length, 0);
  const parts = [counted(nodes.length, "node"), counted(models.length, "model"), counted(numRanks, "rank")];
  return `${parts.join(" · ")} · up for ${durationInWords(uptime * 1000)} · version ${version}`;
}

drawIcons(document);
offerThemes();
new Page().start();

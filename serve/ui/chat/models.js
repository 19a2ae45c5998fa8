/** The models that the server has ready, and which of them is asked. */

import { messageOf, requestJson } from "../shared/api.js";
import { element, find } from "../shared/dom.js";

const ASK_AGAIN_MS = 2000;

/** @typedef {{id: string, default_sampling?: import("./parameters.js").Parameters}} Model `default_sampling`: how it is asked where a request does not say it */

export class Models {
  /** @type {HTMLSelectElement} */
  #select = find("#model");
  /** @type {Model[]} */
  #models = [];
  /** @type {string | null} */
  #wanted = null;
  #timer = 0;
  #whenKnown;
  #whenShown;

  /** @param {{whenKnown(): void, whenChosen(name: string): void, whenShown(model: Model): void}} actions */
  constructor({ whenKnown, whenChosen, whenShown }) {
    this.#whenKnown = whenKnown;
    this.#whenShown = whenShown;
    this.#select.addEventListener("change", () => {
      this.choose(this.#select.value);
      whenChosen(this.#select.value);
    });
  }

  /** The model that is asked, if any is ready. @returns {string | null} */
  get chosen() {
    return this.#models.length === 0 ? null : this.#select.value;
  }

  /** @param {string | null} name what a conversation or the reader's settings say */
  choose(name) {
    this.#wanted = name;
    if (this.#models.length === 0) return;
    const shown = this.#models.find(({ id }) => id === name) ?? this.#models[0];
    this.#select.value = shown.id;
    this.#whenShown(shown);
  }

  /** Asks until a model is there. */
  async load() {
    clearTimeout(this.#timer);
    let text = "No model is ready yet …";
    const before = this.#models;
    try {
      const { data } = await requestJson("GET", "/v1/models");
      this.#models = data.map((/** @type {Model} */ { id, default_sampling }) => ({ id, default_sampling }));
    } catch (error) {
      text = messageOf(error);
    }
    const isKnown = this.#models.length > 0;
    if (isKnown && JSON.stringify(before) === JSON.stringify(this.#models)) return;
    const options = isKnown ? this.#models.map(({ id }) => element("option", { value: id }, id)) : [element("option", { value: "" }, text)];
    this.#select.replaceChildren(...options);
    this.#select.disabled = !isKnown;
    this.choose(this.#wanted);
    this.#whenKnown();
    if (!isKnown) this.#timer = setTimeout(() => this.load(), ASK_AGAIN_MS);
  }
}

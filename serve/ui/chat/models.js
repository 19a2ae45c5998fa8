/** The models that the server has ready, and which of them is asked. */

import { messageOf, requestJson } from "../shared/api.js";
import { element, find } from "../shared/dom.js";

const ASK_AGAIN_MS = 2000;

export class Models {
  /** @type {HTMLSelectElement} */
  #select = find("#model");
  /** @type {string[]} */
  #names = [];
  /** @type {string | null} */
  #wanted = null;
  #timer = 0;
  #whenKnown;

  /** @param {{whenKnown(): void, whenChosen(name: string): void}} actions */
  constructor({ whenKnown, whenChosen }) {
    this.#whenKnown = whenKnown;
    this.#select.addEventListener("change", () => {
      this.#wanted = this.#select.value;
      whenChosen(this.#select.value);
    });
  }

  /** The model that is asked, if any is ready. @returns {string | null} */
  get chosen() {
    return this.#names.length === 0 ? null : this.#select.value;
  }

  /** @param {string | null} name what a conversation or the reader's settings say */
  choose(name) {
    this.#wanted = name;
    if (this.#names.length > 0) this.#select.value = name !== null && this.#names.includes(name) ? name : this.#names[0];
  }

  /** Asks until a model is there. */
  async load() {
    clearTimeout(this.#timer);
    let text = "No model is ready yet …";
    const before = this.#names;
    try {
      const { data } = await requestJson("GET", "/v1/models");
      this.#names = data.map((/** @type {{id: string}} */ model) => model.id);
    } catch (error) {
      text = messageOf(error);
    }
    if (this.#names.length > 0 && String(before) === String(this.#names)) return;
    const isKnown = this.#names.length > 0;
    const options = isKnown ? this.#names.map((name) => element("option", { value: name }, name)) : [element("option", { value: "" }, text)];
    this.#select.replaceChildren(...options);
    this.#select.disabled = !isKnown;
    this.choose(this.#wanted);
    this.#whenKnown();
    if (!isKnown) this.#timer = setTimeout(() => this.load(), ASK_AGAIN_MS);
  }
}

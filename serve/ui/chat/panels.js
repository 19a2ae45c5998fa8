/** The two panels beside the messages. On a narrow page one at a time covers them: then the rest is inert until it closes. */

import { find } from "../shared/dom.js";
import { recall, remember } from "../shared/memory.js";

const NARROW = matchMedia("(max-width: 60rem)");

export class Panels {
  side = new Panel("side", true, (panel) => this.#changed(panel));
  settings = new Panel("settings", false, (panel) => this.#changed(panel));
  #all = [this.side, this.settings];
  #main = find("#main");

  constructor() {
    find(".cover").addEventListener("click", () => this.#covering?.close());
    document.addEventListener("keydown", (event) => this.#pressed(event));
    NARROW.addEventListener("change", () => this.#begin());
    this.#begin();
  }

  /** @returns {Panel | null} */
  get #covering() {
    return this.#all.find((panel) => panel.isCovering) ?? null;
  }

  #begin() {
    for (const panel of this.#all) panel.isOpen = !NARROW.matches && panel.isWanted;
  }

  /** @param {Panel} changed */
  #changed(changed) {
    if (changed.isCovering) for (const other of this.#all) if (other !== changed && other.isOpen) other.isOpen = false;
    const covering = this.#covering;
    this.#main.inert = covering !== null;
    for (const panel of this.#all) panel.frame.inert = covering !== null && panel !== covering;
  }

  /** What lies above the panel closes before it. @param {KeyboardEvent} event */
  #pressed(event) {
    const covering = this.#covering;
    if (event.key !== "Escape" || event.defaultPrevented || covering === null || document.querySelector("dialog[open], :popover-open")) return;
    event.preventDefault();
    covering.close();
  }
}

class Panel {
  frame;
  #name;
  #isOpenFirst;
  #whenChanged;
  #openButton;
  #closeButton;

  /** @param {string} name of the panel's element @param {boolean} isOpenFirst on a wide page @param {(panel: Panel) => void} whenChanged */
  constructor(name, isOpenFirst, whenChanged) {
    this.#name = name;
    this.#isOpenFirst = isOpenFirst;
    this.#whenChanged = whenChanged;
    this.frame = find(`#${name}`);
    this.#openButton = find(`#open-${name}`);
    this.#closeButton = find(`#close-${name}`);
    for (const button of [this.#openButton, this.#closeButton]) button.addEventListener("click", () => this.toggle());
  }

  get isOpen() {
    return !this.frame.hidden;
  }

  set isOpen(isOpen) {
    this.frame.hidden = !isOpen;
    this.#openButton.setAttribute("aria-expanded", String(isOpen));
    document.documentElement.toggleAttribute(`data-${this.#name}-open`, isOpen);
    this.#whenChanged(this);
  }

  get isCovering() {
    return this.isOpen && NARROW.matches;
  }

  /** What the reader chose last on a wide page. */
  get isWanted() {
    return (recall(`panel.${this.#name}`) ?? String(this.#isOpenFirst)) === "true";
  }

  toggle() {
    this.isOpen = !this.isOpen;
    if (!NARROW.matches) remember(`panel.${this.#name}`, String(this.isOpen));
    (this.isOpen ? this.#closeButton : this.#openButton).focus();
  }

  close() {
    this.isOpen = false;
    this.#openButton.focus();
  }

  /** On a narrow page only: what was chosen in the panel is behind it. */
  closeIfCovering() {
    if (this.isCovering) this.close();
  }
}

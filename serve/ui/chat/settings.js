/** What the reader has chosen, kept by the server: for all conversations, and for each. Written a moment after a change. */

import { messageOf, requestJson } from "../shared/api.js";
import { tellTrouble } from "../shared/notices.js";

const WRITE_AFTER_MS = 400;

/** @typedef {import("./parameters.js").Parameters} Parameters @typedef {{model?: string, parameters?: Parameters}} Choices */

/** Writes changes together that come quickly after each other, and never two times at once. @template Change */
export class LateWrite {
  #write;
  #timer = 0;
  /** @type {Change[]} */
  #changes = [];
  /** What is on its way, which a page that is left takes back. @type {Change[]} */
  #writing = [];

  /** @param {(changes: Change[], isLeaving: boolean) => Promise<unknown>} write `isLeaving`: only one request has time */
  constructor(write) {
    this.#write = write;
  }

  /** Whether the server does not have every change. */
  get isOpen() {
    return this.#writing.length > 0 || this.#changes.length > 0;
  }

  /** @param {Change} change */
  plan(change) {
    clearTimeout(this.#timer);
    this.#changes.push(change);
    this.#timer = setTimeout(() => this.flush(), WRITE_AFTER_MS);
  }

  /** @returns {Promise<boolean>} whether it went well */
  async flush(isLeaving = false) {
    clearTimeout(this.#timer);
    if (this.#writing.length > 0 && !isLeaving) return false;
    const changes = [...this.#writing, ...this.#changes];
    if (changes.length === 0) return false;
    this.#changes = [];
    this.#writing = changes;
    const trouble = await this.#write(changes, isLeaving).then(() => null, messageOf);
    this.#writing = [];
    if (trouble !== null) tellTrouble(`Your settings were not kept. ${trouble}`, () => this.#again(changes));
    this.flush();
    return trouble === null;
  }

  /** @param {Change[]} changes older than what is planned since */
  #again(changes) {
    this.#changes.unshift(...changes);
    this.flush();
  }
}

/** What new conversations begin with. Other pages of the reader change it too: only what this one changes is written. */
export class Defaults {
  /** @type {Choices} */
  values = {};
  /** What the server had last. @type {Choices | null} */
  #read = null;
  #late = new LateWrite((/** @type {Choices[]} */ changes, isLeaving) => this.#write(changes, isLeaving));

  async load() {
    this.#read = await loadChoices();
    this.values = merged(this.#read, this.values);
  }

  /** @param {Choices} change */
  change(change) {
    const { parameters: before = {} } = this.values;
    const { parameters: after } = change;
    this.values = { ...this.values, ...change };
    this.#late.plan(after === undefined ? change : { ...change, parameters: difference(before, after) });
  }

  flush(isLeaving = false) {
    return this.#late.flush(isLeaving);
  }

  /** @param {Choices[]} changes @param {boolean} isLeaving */
  async #write(changes, isLeaving) {
    const before = isLeaving ? this.#read : await loadChoices();
    if (before === null) return;
    this.#read = changes.reduce(merged, before);
    await requestJson("PUT", "/api/settings", this.#read, undefined, isLeaving);
  }
}

/** @returns {Promise<Choices>} */
async function loadChoices() {
  const kept = await requestJson("GET", "/api/settings");
  return typeof kept === "object" && kept !== null ? kept : {};
}

/** @param {Choices} before @param {Choices} change @returns {Choices} */
const merged = (before, change) => ({ ...before, ...change, parameters: { ...before.parameters, ...change.parameters } });

/** @param {Parameters} before @param {Parameters} after @returns {Parameters} undefined, which JSON leaves out, for what is gone */
function difference(before, after) {
  const names = Object.keys({ ...before, ...after }).filter((name) => before[name] !== after[name]);
  return Object.fromEntries(names.map((name) => [name, after[name]]));
}

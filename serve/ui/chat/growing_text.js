/**
 * An answer that grows. Only its last block of Markdown is parsed again when text comes: the blocks before it are done.
 * What one update costs is waited for before the next, so that the page answers however long a block becomes.
 */

import { element } from "../shared/dom.js";
import { codeBlock, MAX_LANGUAGE_CHARS } from "./code.js";
import { parse } from "./markdown.js";
import { patch } from "./patch.js";
import { appendText, plainText } from "./plain_text.js";
import { rendered } from "./render.js";

/** Beyond this, what follows is shown as it is. */
const MAX_MARKDOWN_CHARS = 200_000;
const REST_PER_COST = 3;
const LONGEST_REST_MS = 1000;

/** @typedef {import("./markdown.js").Token} Token */

export class GrowingText {
  /** @type {HTMLElement} */
  #target;
  #text = "";
  /** The characters whose blocks are done. */
  #numDone = 0;
  /** Links that were defined before the last block. @type {Record<string, object>} */
  #references = {};
  #hasDefinitions = false;
  /** The text that is shown as it stays. @type {string | null} */
  #finished = null;
  /** The nodes of the last block. @type {ChildNode[]} */
  #last = [];
  /** The last block, where it is code without an end. @type {import("./code.js").CodeBlock | null} */
  #code = null;
  /** @type {HTMLElement | null} */
  #plain = null;
  #isScheduled = false;
  #restUntilMs = 0;
  /** @type {() => void} */
  #whenShown;

  /** @param {HTMLElement} target empty @param {() => void} whenShown after each update */
  constructor(target, whenShown = () => {}) {
    this.#target = target;
    this.#whenShown = whenShown;
  }

  get text() {
    return this.#text;
  }

  /** @param {string} text */
  append(text) {
    this.#text += text;
    this.#schedule();
  }

  /** All of it at once, whatever was there. @param {string} text */
  set(text) {
    if (text.startsWith(this.#text)) {
      this.#text = text;
    } else {
      this.#text = text;
      this.#restart();
    }
    this.#show();
  }

  /** The text has ended: links that are defined in it, wherever that is, are shown as their definitions came to be. */
  finish() {
    if (this.#finished === this.#text) return;
    this.#finished = this.#text;
    if (this.#hasDefinitions) this.#restart();
    this.#show();
  }

  #restart() {
    this.#target.replaceChildren();
    this.#numDone = 0;
    this.#last = [];
    this.#code = null;
    this.#plain = null;
    this.#references = {};
    this.#hasDefinitions = false;
  }

  #schedule() {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    const show = () => {
      this.#isScheduled = false;
      this.#show();
    };
    const restMs = this.#restUntilMs - performance.now();
    if (restMs > 0) setTimeout(() => requestAnimationFrame(show), restMs);
    else requestAnimationFrame(show);
  }

  #show() {
    const startedMs = performance.now();
    if (this.#text.length > MAX_MARKDOWN_CHARS) this.#showPlain();
    else this.#showMarkdown();
    this.#whenShown();
    const endedMs = performance.now();
    this.#restUntilMs = endedMs + Math.min(LONGEST_REST_MS, REST_PER_COST * (endedMs - startedMs));
  }

  #showPlain() {
    if (this.#plain === null) {
      this.#drop();
      this.#plain = plainText("");
      this.#target.append(this.#plain);
    }
    appendText(this.#plain, this.#text.slice(this.#numDone));
    this.#numDone = this.#text.length;
  }

  #showMarkdown() {
    const rest = this.#text.slice(this.#numDone);
    const found = { references: { ...this.#references } };
    const blocks = blocksOf(parse(rest, found));
    this.#hasDefinitions ||= Object.keys(found.references).length > 0;
    const last = blocks.pop();
    if (blocks.length > 0 && last !== undefined) {
      this.#references = found.references;
      this.#settle(blocks);
      this.#numDone += startOfLine(rest, last[0].map?.[0] ?? 0);
    }
    this.#showLast(last ?? []);
  }

  /** They are done. The first of them is what was the last. @param {Token[][]} blocks */
  #settle(blocks) {
    if (this.#growCode(blocks[0])) this.#target.append(rendered(blocks.slice(1).flat()));
    else patch(this.#target, this.#last, rendered(blocks.flat()));
    this.#last = [];
    this.#code = null;
  }

  /** @param {Token[]} block */
  #showLast(block) {
    if (this.#growCode(block)) return;
    const fence = fenceOf(block);
    if (this.#code !== null || fence !== null) this.#drop();
    this.#code = fence === null ? null : codeBlock(fence.content, languageOf(fence));
    const made = this.#code === null ? rendered(block) : element("div", { class: "holder" }, this.#code.frame);
    this.#last = patch(this.#target, this.#last, made);
  }

  /** @param {Token[]} block @returns {boolean} whether it is the code that is shown */
  #growCode(block) {
    const fence = fenceOf(block);
    if (fence === null || this.#code === null || this.#code.frame.dataset.language !== languageOf(fence).slice(0, MAX_LANGUAGE_CHARS)) return false;
    this.#code.update(fence.content);
    return true;
  }

  #drop() {
    for (const node of this.#last) node.remove();
    this.#last = [];
    this.#code = null;
  }
}

/** @param {Token[]} block @returns {Token | null} */
const fenceOf = (block) => (block.length === 1 && block[0].type === "fence" ? block[0] : null);

/** @param {Token} fence */
const languageOf = (fence) => fence.info.trim().split(/\s/)[0];

/** Tokens by their outermost block. @param {Token[]} tokens @returns {Token[][]} */
function blocksOf(tokens) {
  /** @type {Token[][]} */
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) blocks.push([]);
    blocks[blocks.length - 1].push(token);
    depth += token.nesting;
  }
  return blocks;
}

/** @param {string} text @param {number} line from 0 @returns {number} the place of its first character */
function startOfLine(text, line) {
  const ends = /\r\n?|\n/g;
  for (let count = 0; count < line && ends.exec(text) !== null; count += 1);
  return line === 0 ? 0 : ends.lastIndex;
}

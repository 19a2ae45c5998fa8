/** One message: its text, what it cost, and what can be done with it. */

import { element, setAttribute } from "../shared/dom.js";
import { icon } from "../shared/icons.js";
import { durationInWords, figure } from "../shared/words.js";
import { copyButton } from "./copying.js";
import { GrowingText } from "./growing_text.js";
import { plainText } from "./plain_text.js";

/**
 * @typedef {import("./tree.js").Message} Message
 * @typedef {{edit(id: string): void, regenerate(id: string): void, branch(id: string): void, showSibling(id: string): void, retry(): void}} Actions
 */

/** Programs put more than questions and answers into a conversation. */
const SPEAKERS = { user: "You", assistant: "Answer", system: "Instructions", developer: "Instructions", tool: "Result of a tool" };

const PREVIOUS = "Previous version";
const NEXT = "Next version";

export class MessageView {
  /** @type {Message} */
  message;
  /** @type {HTMLElement} */
  frame;
  #actions;
  #growing;
  #body = element("div", { class: "message-body" });
  #progress = element("div", { class: "progress", hidden: true });
  #trouble = element("div", { class: "trouble-box", role: "alert", hidden: true });
  #foot = element("div", { class: "message-foot" });
  #footShows = "";
  #isBusy = false;

  /** @param {Message} message @param {Actions} actions @param {() => void} whenShown after each change of an answer's text */
  constructor(message, actions, whenShown) {
    this.message = message;
    this.#actions = actions;
    this.#growing = message.role === "user" ? null : new GrowingText(this.#body, whenShown);
    const speaker = SPEAKERS[message.role] ?? "Answer";
    this.frame = element(
      "article",
      { class: `message ${message.role}`, "data-id": message.id, tabindex: -1 },
      element("h2", { class: "only-read-aloud" }, speaker),
      this.#body,
      this.#progress,
      this.#trouble,
      this.#foot,
    );
    if (this.#growing === null) this.#body.append(plainText(message.content));
    else this.#growing.set(message.content);
  }

  get text() {
    return this.#growing?.text ?? this.message.content;
  }

  /** @param {string} text */
  append(text) {
    this.#hideProgress();
    this.#growing?.append(text);
  }

  /** How much of the prompt is read. @param {number} processed @param {number} total tokens */
  showProgress(processed, total) {
    if (this.text !== "") return;
    this.#progress.hidden = false;
    const part = total > 0 ? Math.round((100 * processed) / total) : 0;
    this.#progress.replaceChildren(element("span", { class: "dots", "aria-hidden": "true" }), part < 100 && part > 0 ? `Reading · ${part} %` : "Thinking");
  }

  #hideProgress() {
    this.#progress.hidden = true;
  }

  /** @param {string} text @param {string | null} action the words of the button that tries again */
  showTrouble(text, action = "Try again") {
    this.#hideProgress();
    const retry = () => this.#actions.retry();
    this.#trouble.hidden = false;
    this.#trouble.replaceChildren(
      element("span", {}, text),
      ...(action === null ? [] : [element("button", { type: "button", class: "small outlined", on: { click: retry } }, action)]),
    );
  }

  hideTrouble() {
    this.#trouble.hidden = true;
  }

  /**
   * The message as it is kept, with its place among its siblings.
   *
   * @param {Message} message @param {string[]} siblings @param {boolean} isBusy whether an answer is on its way in the conversation
   */
  update(message, siblings, isBusy) {
    const isOpen = message.state === "pending" || message.state === "streaming";
    this.message = message;
    setAttribute(this.frame, "data-state", message.state);
    setAttribute(this.frame, "aria-busy", isOpen ? "true" : null);
    if (this.#growing !== null && !isOpen) {
      this.#growing.set(message.content);
      this.#growing.finish();
      this.#hideProgress();
    }
    if (this.#growing !== null && isOpen) {
      if (this.#growing.text !== message.content) this.#growing.set(message.content);
      this.hideTrouble();
      this.showProgress(0, 0);
    }
    if (message.role === "assistant" && message.state === "interrupted" && this.#trouble.hidden) {
      this.showTrouble("This answer was interrupted.", "Answer again");
    }
    this.#updateFoot(message, siblings, isOpen);
    this.#setBusy(isBusy);
  }

  /** Only where it says something else: the focus may be in it. @param {Message} message @param {string[]} siblings @param {boolean} isOpen */
  #updateFoot(message, siblings, isOpen) {
    const { id, role, model, usage, finish_reason: reason } = message;
    const shows = JSON.stringify([id, role, isOpen, siblings, model, usage, reason]);
    if (shows === this.#footShows) return;
    this.#footShows = shows;
    const focused = this.#foot.contains(document.activeElement) ? nameOf(document.activeElement) : null;
    this.#foot.replaceChildren(...this.#footOf(message, siblings, isOpen));
    if (focused !== null) this.focus(focused);
  }

  /** Buttons that wait for the end of an answer keep the focus: a disabled one would lose it. @param {boolean} isBusy */
  #setBusy(isBusy) {
    this.#isBusy = isBusy;
    for (const button of this.#foot.querySelectorAll("[data-waits]")) setAttribute(button, "aria-disabled", isBusy ? "true" : null);
  }

  /** @param {string} name of the button that had the focus in the version of this message that was shown before */
  focus(name) {
    const buttons = /** @type {HTMLButtonElement[]} */ ([...this.#foot.querySelectorAll("button:not(:disabled)")]);
    const isSwitch = name === PREVIOUS || name === NEXT;
    const found = buttons.find((button) => nameOf(button) === name) ?? (isSwitch ? buttons.find((button) => button.closest(".switch")) : undefined);
    (found ?? this.frame).focus({ preventScroll: true });
  }

  /** @returns {string | null} the name of the button here that has the focus; empty: something else here has it */
  get focused() {
    return this.frame.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  }

  /** @param {Message} message @param {string[]} siblings @param {boolean} isOpen @returns {Node[]} */
  #footOf(message, siblings, isOpen) {
    if (isOpen) return siblings.length > 1 ? [this.#switch(message, siblings)] : [];
    const { edit, regenerate, branch } = this.#actions;
    const isUser = message.role === "user";
    const buttons = [
      siblings.length > 1 && this.#switch(message, siblings),
      copyButton(() => this.text, isUser ? "Copy message" : "Copy answer"),
      isUser && this.#waiting("edit", "Edit message", () => edit(message.id)),
      message.role === "assistant" && this.#waiting("again", "Answer again", () => regenerate(message.id)),
      this.#waiting("branch", "Go on from here in a new conversation", () => branch(message.id)),
    ].filter((button) => button !== false);
    return [element("div", { class: "actions" }, ...buttons), ...(isUser ? [] : [costOf(message)])];
  }

  /** @param {import("../shared/icons.js").IconName} name @param {string} label @param {() => void} act */
  #waiting(name, label, act) {
    const button = action(name, label, () => this.#isBusy || act());
    button.dataset.waits = "";
    return button;
  }

  /** @param {Message} message @param {string[]} siblings */
  #switch(message, siblings) {
    const at = siblings.indexOf(message.id);
    const go = (/** @type {number} */ to) => () => this.#actions.showSibling(siblings[to]);
    return element(
      "div",
      { class: "switch", role: "group", "aria-label": "Versions" },
      action("left", PREVIOUS, go(at - 1), at === 0),
      element("span", {}, `${at + 1}/${siblings.length}`),
      action("right", NEXT, go(at + 1), at === siblings.length - 1),
    );
  }
}

/** @param {Element | null} button */
const nameOf = (button) => button?.getAttribute("aria-label") ?? "";

/** @param {import("../shared/icons.js").IconName} name @param {string} label @param {() => unknown} act @param {boolean} isDisabled @returns {HTMLButtonElement} */
function action(name, label, act, isDisabled = false) {
  return element("button", { type: "button", class: "small square", "aria-label": label, title: label, disabled: isDisabled, on: { click: act } }, icon(name));
}

/** @param {Message} message @returns {HTMLElement} */
function costOf(message) {
  const { usage } = message;
  const parts = [];
  if (usage?.tokens_per_s) parts.push(["Tokens per second, after the first", `${figure(usage.tokens_per_s)} tokens/s`]);
  if (usage?.ttft_ms != null) parts.push(["Time to the first token", `first after ${durationInWords(usage.ttft_ms)}`]);
  if (usage) parts.push([promptInWords(usage), usage.completion_tokens === 1 ? "1 token" : `${figure(usage.completion_tokens)} tokens`]);
  if (message.finish_reason === "cancelled") parts.push(["", "stopped"]);
  if (message.finish_reason === "length") parts.push(["The answer has as many tokens as it may", "cut at its limit"]);
  if (message.model) parts.push(["Model", message.model]);
  return element("div", { class: "cost" }, ...parts.map(([title, text]) => element("span", { title: title || null }, text)));
}

/** @param {import("./tree.js").Usage} usage */
function promptInWords({ prompt_tokens: prompt, cached_tokens: cached }) {
  return `The prompt has ${figure(prompt)} tokens, ${figure(cached)} of them from the cache`;
}

/** The messages of the shown branch, in a list that follows its end while the reader is there. */

import { element, find } from "../shared/dom.js";
import { MessageView } from "./message_view.js";

const AT_END_PX = 64;
const SHOWN_AT_ONCE = 60;
const SHOWN_MORE = 120;

/** @typedef {import("./tree.js").Message} Message @typedef {import("./message_view.js").Actions} Actions */

export class MessageList {
  #frame = find("#messages");
  #list = find("#message-list");
  #toEnd = find("#to-end");
  #earlier = element("button", { type: "button", class: "outlined earlier" });
  /** @type {Map<string, MessageView>} */
  #views = new Map();
  #numShown = SHOWN_AT_ONCE;
  #isFollowing = true;
  #isAsked = false;
  #actionsOf;
  /** @type {() => void} */
  #showAgain = () => {};

  /** @param {(id: string) => Actions} actionsOf a message */
  constructor(actionsOf) {
    this.#actionsOf = actionsOf;
    this.#frame.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.#toEnd.addEventListener("click", () => this.follow());
    this.#earlier.addEventListener("click", () => this.#showMore());
    const grown = new ResizeObserver(() => this.#keepUp());
    for (const part of [this.#frame, this.#list]) grown.observe(part);
  }

  /** Another conversation: nothing of the one before stays. */
  clear() {
    for (const view of this.#views.values()) view.frame.remove();
    this.#views.clear();
    this.#numShown = SHOWN_AT_ONCE;
    this.follow();
  }

  /** @param {Message[]} path @param {(message: Message) => string[]} siblingsOf @param {boolean} isBusy */
  show(path, siblingsOf, isBusy) {
    this.#showAgain = () => this.show(path, siblingsOf, isBusy);
    const shown = path.slice(-this.#numShown);
    const ids = new Set(shown.map((message) => message.id));
    const focused = this.#focused(ids);
    for (const [id, view] of this.#views) {
      if (ids.has(id)) continue;
      view.frame.remove();
      this.#views.delete(id);
    }
    const numEarlier = path.length - shown.length;
    this.#earlier.textContent = `Show ${Math.min(numEarlier, SHOWN_MORE)} earlier messages`;
    if (numEarlier === 0) this.#earlier.remove();
    else this.#list.before(this.#earlier);
    shown.forEach((message, at) => this.#place(message, at, siblingsOf(message), isBusy));
    if (focused !== null) this.#views.get(shown[Math.min(focused.at, shown.length - 1)]?.id)?.focus(focused.name);
    this.#keepUp();
  }

  /** @param {Set<string>} ids of those that stay @returns {{at: number, name: string} | null} where the focus is in one that goes */
  #focused(ids) {
    for (const [id, view] of this.#views) {
      const name = ids.has(id) ? null : view.focused;
      if (name !== null) return { at: [...this.#list.children].indexOf(view.frame), name };
    }
    return null;
  }

  /** @param {Message} message @param {number} at @param {string[]} siblings @param {boolean} isBusy */
  #place(message, at, siblings, isBusy) {
    let view = this.#views.get(message.id);
    if (view === undefined) {
      view = new MessageView(message, this.#actionsOf(message.id), () => this.#keepUp());
      this.#views.set(message.id, view);
    }
    if (this.#list.children[at] !== view.frame) this.#list.insertBefore(view.frame, this.#list.children[at] ?? null);
    view.update(message, siblings, isBusy);
  }

  /** @param {string} id @returns {MessageView | null} */
  get(id) {
    return this.#views.get(id) ?? null;
  }

  /** To the end, and along with it from now on. */
  follow() {
    this.#isFollowing = true;
    this.#keepUp();
  }

  #showMore() {
    const first = this.#list.firstElementChild;
    const before = first?.getBoundingClientRect().top ?? 0;
    this.#numShown += SHOWN_MORE;
    this.#isFollowing = false;
    this.#showAgain();
    this.#frame.scrollTop += (first?.getBoundingClientRect().top ?? 0) - before;
    if (!this.#earlier.isConnected) this.#frame.focus();
  }

  #keepUp() {
    if (this.#isFollowing) this.#frame.scrollTop = this.#frame.scrollHeight;
    if (this.#isAsked) return;
    this.#isAsked = true;
    requestAnimationFrame(() => {
      this.#isAsked = false;
      this.#toEnd.hidden = this.#isFollowing || this.#isAtEnd();
    });
  }

  #scrolled() {
    this.#isFollowing = this.#isAtEnd();
    this.#toEnd.hidden = this.#isFollowing;
  }

  #isAtEnd() {
    return this.#frame.scrollHeight - this.#frame.scrollTop - this.#frame.clientHeight < AT_END_PX;
  }
}

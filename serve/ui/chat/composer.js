/** The field in which the reader writes. It grows with its text, and can hold a message that is being edited. */

import { find, setAttribute } from "../shared/dom.js";
import { draw } from "../shared/icons.js";
import { recallHere, rememberHere } from "../shared/memory.js";

const MAX_ROWS_PX = 240;
/** A screen's keyboard has no Shift that is held: there Enter is a new line, and the button sends. */
const IS_TOUCHED = !matchMedia("(any-pointer: fine)").matches;

export class Composer {
  #form = find("#composer");
  /** @type {HTMLTextAreaElement} */
  #field = find("#input");
  #button = find("#send");
  #editing = find("#editing");
  #actions;
  #isBusy = false;
  #canSend = false;
  /** The message that is edited, as it was, and what was being written before. @type {{id: string, text: string, draft: string} | null} */
  #edited = null;

  /** @param {{send(text: string, edited: string | null): boolean, stop(): void, editLast(): void}} actions */
  constructor(actions) {
    this.#actions = actions;
    this.#form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      if (this.#isBusy) actions.stop();
      else this.#send();
    });
    this.#field.addEventListener("input", () => this.#changed());
    this.#field.addEventListener("keydown", (event) => this.#pressed(event));
    find("#stop-editing").addEventListener("click", () => this.endEdit());
    this.#form.addEventListener("click", (/** @type {MouseEvent} */ event) => event.target === this.#form && this.focus());
    if (IS_TOUCHED) this.#field.enterKeyHint = "enter";
    addEventListener("pagehide", () => rememberHere("draft", this.#draft || null));
    this.offer(recallHere("draft") ?? "");
    this.#changed();
  }

  focus() {
    this.#field.focus();
  }

  /** What is not said yet and stays when an edit or the page is left. */
  get #draft() {
    const { value } = this.#field;
    if (this.#edited === null) return value;
    return this.#edited.draft === "" && value !== this.#edited.text ? value : this.#edited.draft;
  }

  /** @param {boolean} isBusy whether an answer is on its way @param {boolean} canSend whether there is a model to ask */
  update(isBusy, canSend) {
    this.#isBusy = isBusy;
    this.#canSend = canSend;
    draw(find(".icon", this.#button), isBusy ? "stop" : "send");
    setAttribute(this.#button, "aria-label", isBusy ? "Stop the answer" : "Send");
    setAttribute(this.#button, "title", isBusy ? "Stop the answer (Esc)" : "Send (Enter)");
    this.#changed();
  }

  /** @param {string} id @param {string} text */
  edit(id, text) {
    this.#edited = { id, text, draft: this.#edited?.draft ?? this.#field.value };
    this.#editing.hidden = false;
    this.#write(text);
    this.#field.focus();
  }

  /** What was being written before comes back. @param {string} [draft] */
  endEdit(draft = this.#edited?.draft) {
    if (draft === undefined) return;
    this.#edited = null;
    this.#editing.hidden = true;
    this.#write(draft);
    this.#field.focus();
  }

  /** The message that is edited is no longer there. */
  leaveEdit() {
    if (this.#edited !== null) this.endEdit(this.#draft);
  }

  /** Nothing of what is written stays. */
  clear() {
    this.endEdit();
    this.#write("");
  }

  #send() {
    const text = this.#field.value;
    if (text.trim() === "" || this.#isBusy || !this.#canSend) return;
    if (!this.#actions.send(text, this.#edited?.id ?? null)) return;
    if (this.#edited === null) this.#write("");
    else this.endEdit();
  }

  /** @param {string} text */
  #write(text) {
    this.#field.value = text;
    this.#changed();
  }

  /** What could not be said, unless something else is being written. @param {string} text */
  offer(text) {
    if (this.#field.value === "") this.#write(text);
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && !IS_TOUCHED) {
      event.preventDefault();
      this.#send();
    } else if (event.key === "Escape" && this.#edited !== null) {
      event.stopPropagation();
      this.endEdit();
    } else if (event.key === "ArrowUp" && !event.altKey && !event.shiftKey && this.#field.value === "" && !this.#isBusy) {
      event.preventDefault();
      this.#actions.editLast();
    }
  }

  #changed() {
    this.#field.style.height = "auto";
    this.#field.style.height = `${Math.min(MAX_ROWS_PX, this.#field.scrollHeight)}px`;
    this.#button.disabled = !this.#isBusy && (this.#field.value.trim() === "" || !this.#canSend);
  }
}

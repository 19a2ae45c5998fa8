/** Questions in a dialog. The browser keeps the focus inside, gives it back afterwards, and closes on Escape. */

import { element } from "./dom.js";

let numDialogs = 0;

/**
 * @param {{title: string, text: string, action: string, isDangerous?: boolean}} question
 * @returns {Promise<boolean>}
 */
export function confirmed({ title, text, action, isDangerous = false }) {
  return new Promise((resolve) => {
    const yes = element("button", { type: "button", class: isDangerous ? "warning" : "filled" }, action);
    const no = element("button", { type: "button", class: "outlined" }, "Cancel");
    const dialog = show(title, [element("p", {}, text), choices(no, yes)], () => resolve(dialog.returnValue === "yes"));
    yes.addEventListener("click", () => dialog.close("yes"));
    no.addEventListener("click", () => dialog.close());
    (isDangerous ? no : yes).focus();
  });
}

/**
 * @param {{title: string, label: string, value: string, action: string}} question
 * @returns {Promise<string | null>} null when it was dismissed or left empty
 */
export function askedText({ title, label, value, action }) {
  return new Promise((resolve) => {
    const input = element("input", { id: "asked-text", maxlength: 200, autocomplete: "off" });
    input.value = value;
    const yes = element("button", { type: "submit", class: "filled" }, action);
    const no = element("button", { type: "button", class: "outlined" }, "Cancel");
    const form = element("form", {}, field(label, input), choices(no, yes));
    const dialog = show(title, [form], () => resolve(dialog.returnValue === "yes" ? input.value.trim() || null : null));
    form.addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      dialog.close("yes");
    });
    no.addEventListener("click", () => dialog.close());
    input.select();
  });
}

/**
 * @param {string} title @param {Node[]} content @param {() => void} whenClosed
 * @param {boolean} isBinding whether it stays until its own buttons close it
 * @returns {HTMLDialogElement} open, and removed when it closes
 */
export function show(title, content, whenClosed = () => {}, isBinding = false) {
  numDialogs += 1;
  const heading = `dialog-title-${numDialogs}`;
  const dialog = element("dialog", { "aria-labelledby": heading }, element("h2", { id: heading }, title), ...content);
  dialog.addEventListener("close", () => {
    dialog.remove();
    whenClosed();
  });
  if (isBinding) bind(dialog);
  else closeFromOutside(dialog);
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** @param {string} label @param {HTMLElement} input */
export const field = (label, input) => element("div", { class: "field" }, element("label", { for: input.id }, label), input);

/** @param {...Node} buttons */
export const choices = (...buttons) => element("div", { class: "choices" }, ...buttons);

/** A browser lets the second cancel in a row pass: the key that makes one is taken, too. @param {HTMLDialogElement} dialog */
function bind(dialog) {
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault());
}

/** By a press that also began there: one that selects text may end anywhere. @param {HTMLDialogElement} dialog */
function closeFromOutside(dialog) {
  let hasBegunOutside = false;
  dialog.addEventListener("pointerdown", (event) => {
    hasBegunOutside = event.target === dialog && isOutside(dialog, event);
  });
  dialog.addEventListener("click", (event) => {
    if (hasBegunOutside && event.target === dialog && isOutside(dialog, event)) dialog.close();
  });
}

/** The backdrop belongs to the dialog as far as clicks know. @param {HTMLElement} dialog @param {MouseEvent} event */
function isOutside(dialog, event) {
  const box = dialog.getBoundingClientRect();
  return event.clientX < box.left || event.clientX > box.right || event.clientY < box.top || event.clientY > box.bottom;
}

/** What the keyboard does. Keys with a letter need Alt or Ctrl, so that nothing happens to who only writes. */

import { choices, show } from "../shared/dialogs.js";
import { element } from "../shared/dom.js";

/** @typedef {{keys: string[], what: string, matches(event: KeyboardEvent): boolean, act(): unknown}} Shortcut */

/** There Option and a letter write another letter, and Ctrl and one move in the text: shortcuts take a key more. */
const IS_MAC = /^Mac/.test(navigator.platform);

/** @param {string} code @returns {(event: KeyboardEvent) => boolean} */
export const alt = (code) => (event) => event.altKey && event.ctrlKey === IS_MAC && !event.metaKey && isKey(event, code);

/** @param {string} code @returns {(event: KeyboardEvent) => boolean} */
export const command = (code) => (event) => event.metaKey === IS_MAC && event.ctrlKey !== IS_MAC && !event.altKey && !event.shiftKey && isKey(event, code);

/** Outside of fields only. @param {string} key @returns {(event: KeyboardEvent) => boolean} */
export const bare = (key) => (event) => event.key === key && !event.ctrlKey && !event.metaKey && !event.altKey && !isWriting(event.target);

/** @param {Shortcut[]} shortcuts the first that matches acts */
export function listenFor(shortcuts) {
  if (IS_MAC) for (const button of document.querySelectorAll("button")) button.title = button.title.replace("(Alt ", "(Ctrl Option ");
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open], :popover-open")) return;
    const found = shortcuts.find((shortcut) => shortcut.matches(event));
    if (found === undefined) return;
    event.preventDefault();
    found.act();
  });
}

/** @param {{keys: string[], what: string}[]} shortcuts */
export function showShortcuts(shortcuts) {
  const rows = shortcuts.map(({ keys, what }) =>
    element("div", {}, element("dt", {}, ...keys.flatMap(onThisKeyboard).flatMap((key, at) => [at > 0 && " ", element("kbd", {}, key)])), element("dd", {}, what)),
  );
  const close = element("button", { type: "button", class: "filled" }, "Close");
  const dialog = show("Keyboard", [element("dl", { class: "shortcuts" }, ...rows), choices(close)]);
  close.addEventListener("click", () => dialog.close());
  close.focus();
}

/** The letter that is written where the keyboard has it, and its place where the keyboard has other letters. @param {KeyboardEvent} event @param {string} code */
function isKey({ key, code: pressed }, code) {
  const letter = code.match(/^Key(.)$/)?.[1].toLowerCase();
  if (letter === undefined || IS_MAC) return pressed === code;
  return key.toLowerCase() === letter || (pressed === code && /^(?!\p{Script=Latin})\p{L}$/u.test(key));
}

/** @param {string} key @returns {string[]} */
function onThisKeyboard(key) {
  if (!IS_MAC) return [key];
  return key === "Alt" ? ["Ctrl", "Option"] : [key === "Ctrl" ? "⌘" : key];
}

/** @param {EventTarget | null} target */
function isWriting(target) {
  return target instanceof HTMLElement && target.matches("input:not([type=range]), textarea, select");
}

/** A menu at a button: arrow keys walk through it, Escape and a click elsewhere close it, the focus returns. */

import { element } from "./dom.js";
import { icon } from "./icons.js";

const GAP_PX = 4;

/** @typedef {{label: string, icon: import("./icons.js").IconName, act: () => unknown, isDangerous?: boolean}} Choice */

/** @param {HTMLElement} button @param {Choice[]} entries */
export function openMenu(button, entries) {
  const menu = element("div", { class: "menu", role: "menu", popover: "auto" });
  for (const { label, icon: name, act, isDangerous } of entries) {
    const chosen = () => {
      menu.hidePopover();
      act();
    };
    menu.append(
      element("button", { type: "button", role: "menuitem", tabindex: -1, class: isDangerous && "dangerous", on: { click: chosen } }, icon(name), label),
    );
  }
  menu.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => walk(menu, event));
  menu.addEventListener("toggle", (/** @type {ToggleEvent} */ event) => {
    if (event.newState !== "closed") return;
    button.setAttribute("aria-expanded", "false");
    if (menu.contains(document.activeElement)) button.focus();
    menu.remove();
  });
  document.body.append(menu);
  menu.showPopover();
  place(menu, button);
  button.setAttribute("aria-expanded", "true");
  menu.firstElementChild.focus();
}

/** Below the button where there is room, else above it. @param {HTMLElement} menu @param {HTMLElement} button */
function place(menu, button) {
  const at = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  const isBelow = at.bottom + GAP_PX + height <= innerHeight;
  menu.style.left = `${Math.max(GAP_PX, Math.min(at.left, innerWidth - width - GAP_PX))}px`;
  menu.style.top = `${isBelow ? at.bottom + GAP_PX : Math.max(GAP_PX, at.top - height - GAP_PX)}px`;
}

/** @param {HTMLElement} menu @param {KeyboardEvent} event */
function walk(menu, event) {
  const items = /** @type {HTMLElement[]} */ ([...menu.children]);
  const at = items.findIndex((item) => item === document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
  if (event.key === "Tab") menu.hidePopover();
  if (to === undefined) return;
  event.preventDefault();
  items.at(to % items.length)?.focus();
}

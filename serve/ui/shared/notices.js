/** Short sentences at the edge of the page, read aloud as they come; trouble stays until it is dismissed or tried again. */

import { element, find } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 4000;

/** @param {string} text */
export function tell(text) {
  const box = element("div", { class: "notice plain" }, text);
  place(box, "#said");
  setTimeout(() => box.remove(), SHOWN_MS);
}

/** @param {string} text @param {(() => unknown) | null} again what a retry does */
export function tellTrouble(text, again = null) {
  const close = () => box.remove();
  const retry = () => {
    close();
    again?.();
  };
  const box = element(
    "div",
    { class: "notice trouble" },
    element("span", {}, text),
    again && element("button", { type: "button", class: "small outlined", on: { click: retry } }, "Try again"),
    element("button", { type: "button", class: "small square", "aria-label": "Dismiss", on: { click: close } }, icon("close")),
  );
  place(box, "#warned");
}

export function dismissTrouble() {
  find("#warned").replaceChildren();
}

/** @param {HTMLElement} box @param {string} region */
function place(box, region) {
  for (const old of document.querySelectorAll(`${region} .notice`)) old.remove();
  find(region).append(box);
}

/** Text to the clipboard, and a button that says for a moment that it is there. */

import { element } from "../shared/dom.js";
import { draw, icon } from "../shared/icons.js";
import { tell, tellTrouble } from "../shared/notices.js";

const SHOWN_MS = 1600;

/** @param {string} text @returns {Promise<boolean>} */
export async function copy(text) {
  try {
    await (navigator.clipboard ? navigator.clipboard.writeText(text) : copyBySelection(text));
    return true;
  } catch {
    tellTrouble("The browser does not let this page copy.");
    return false;
  }
}

/** @param {() => string} text @param {string} label @returns {HTMLButtonElement} */
export function copyButton(text, label) {
  const picture = icon("copy");
  const button = element("button", { type: "button", class: "small square", "aria-label": label, title: label }, picture);
  button.addEventListener("click", async () => {
    if (!(await copy(text()))) return;
    draw(picture, "check");
    tell("Copied.");
    setTimeout(() => draw(picture, "copy"), SHOWN_MS);
  });
  return button;
}

/** Pages that come without TLS from another machine have no clipboard. @param {string} text */
function copyBySelection(text) {
  const field = element("textarea", { class: "only-read-aloud", readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  if (!isCopied) throw new Error("refused");
}

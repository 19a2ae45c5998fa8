/** Text as it is, in pieces: the browser lays out those that are in sight, however long the text is. */

import { element } from "../shared/dom.js";

const PIECE_CHARS = 4000;

/** @param {string} text @returns {HTMLElement} */
export function plainText(text) {
  const frame = element("span", { class: "plain-text" });
  appendText(frame, text);
  return frame;
}

/** @param {HTMLElement} frame of plainText @param {string} text what comes after the text that it has */
export function appendText(frame, text) {
  let at = 0;
  const last = frame.lastElementChild?.firstChild;
  if (last instanceof Text) {
    at = Math.min(text.length, Math.max(0, PIECE_CHARS - last.length));
    last.appendData(text.slice(0, at));
  }
  while (at < text.length) {
    const end = endOfPiece(text, at);
    frame.append(element("span", { class: "piece" }, text.slice(at, end)));
    at = end;
  }
}

/** After a line or a word where there is one, and never between the halves of a character. @param {string} text @param {number} at */
function endOfPiece(text, at) {
  const limit = at + PIECE_CHARS;
  if (limit >= text.length) return text.length;
  const line = text.lastIndexOf("\n", limit - 1);
  if (line >= at) return line + 1;
  const word = text.lastIndexOf(" ", limit - 1);
  if (word >= at) return word + 1;
  return /[\uDC00-\uDFFF]/.test(text[limit]) ? limit - 1 : limit;
}

/** Tokens of Markdown to elements. What the tokens say becomes text and a few known attributes, never markup. */

import { element } from "../shared/dom.js";
import { codeBlock } from "./code.js";
import { formula } from "./formula.js";
import { plainText } from "./plain_text.js";

/** @typedef {import("./markdown.js").Token} Token */

const LINKS = /^(?:https?|mailto):/i;
const TAGS = new Set("p h1 h2 h3 h4 h5 h6 blockquote ul ol li hr table thead tbody tr th td strong em s".split(" "));
/** The page's own headings come before an answer's. @type {Record<string, string>} */
const SHOWN_AS = { h1: "h3", h2: "h4", h3: "h5", h4: "h6", h5: "h6", h6: "h6" };

/** @param {Token[]} tokens @returns {DocumentFragment} */
export function rendered(tokens) {
  const root = document.createDocumentFragment();
  /** @type {ParentNode[]} */
  const open = [root];
  for (const token of tokens) {
    const within = /** @type {any} */ (open[open.length - 1]);
    if (token.type === "inline") within.append(rendered(token.children ?? []));
    else if (token.nesting === 1) open.push(opened(token, within));
    else if (token.nesting === -1) open.pop();
    else within.append(leaf(token));
  }
  return root;
}

/** @param {Token} token @param {any} within @returns {ParentNode} where the token's content goes */
function opened(token, within) {
  if (token.hidden) return within;
  if (token.type === "link_open") return appended(within, link(token.attrGet("href") ?? ""));
  if (!TAGS.has(token.tag)) return within;
  const made = element(SHOWN_AS[token.tag] ?? token.tag, { class: token.tag in SHOWN_AS && `heading-${token.tag[1]}` });
  if (token.tag === "ol") made.start = Number(token.attrGet("start") ?? 1);
  const align = /text-align:(right|center)/.exec(token.attrGet("style") ?? "");
  if (align) made.className = `align-${align[1]}`;
  if (token.tag !== "table") return appended(within, made);
  within.append(element("div", { class: "table-frame", role: "region", "aria-label": "Table", tabindex: 0 }, made));
  return made;
}

/** @template T @param {any} within @param {T} made @returns {T} */
function appended(within, made) {
  within.append(made);
  return made;
}

/** @param {string} address @returns {HTMLElement} */
function link(address) {
  if (!LINKS.test(address)) return element("span", { class: "no-link", title: address.slice(0, 300) });
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer" });
}

/** @param {Token} token @returns {Node | string} */
function leaf(token) {
  switch (token.type) {
    case "code_inline":
      return element("code", {}, token.content);
    case "fence":
      return codeBlock(token.content, token.info.trim().split(/\s/)[0]).frame;
    case "code_block":
      return codeBlock(token.content, "").frame;
    case "formula":
      return formula(token.content, false);
    case "formula_displayed":
    case "formula_block":
      return formula(token.content, true);
    case "long_text":
      return plainText(token.content);
    case "image":
      return picture(token);
    case "hr":
      return element("hr");
    case "hardbreak":
      return element("br");
    case "softbreak":
      return "\n";
    default:
      return token.content;
  }
}

/** A picture would be asked of another host, which would learn of the reader. @param {Token} token */
function picture(token) {
  const address = token.attrGet("src") ?? "";
  const made = link(address);
  made.append(`Image: ${token.content || address.slice(0, 300)}`);
  return made;
}

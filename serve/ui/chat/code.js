/** Blocks of code: their language, a button that copies them, and colours by highlight.js, fetched with the first block. */

import { element } from "../shared/dom.js";
import { copyButton } from "./copying.js";
import { patch } from "./patch.js";

const LIBRARY = "/ui/vendor/highlight.js-11.12.0/highlight.min.js";
const MAX_COLOURED_CHARS = 40_000;
export const MAX_LANGUAGE_CHARS = 30;

/** @type {any} highlight.js, once it is there */
let library = null;
/** @type {Promise<void> | null} */
let loading = null;

/**
 * @typedef {{frame: HTMLElement, update(text: string): void}} CodeBlock
 * @param {string} text @param {string} language @returns {CodeBlock}
 */
export function codeBlock(text, language) {
  let shown = "";
  const code = element("code");
  const name = language.slice(0, MAX_LANGUAGE_CHARS);
  const frame = element(
    "div",
    { class: "code-block", "data-language": name },
    element("div", { class: "code-head" }, element("span", {}, name || "text"), copyButton(() => shown, "Copy code")),
    element("pre", { role: "region", "aria-label": name ? `Code, ${name}` : "Code", tabindex: 0 }, code),
  );
  const update = (/** @type {string} */ whole) => {
    const before = shown;
    shown = whole.replace(/\n$/, "");
    if (canColour(shown, name)) colour(code, () => shown, name);
    else extend(code, before, shown);
  };
  update(text);
  return { frame, update };
}

/** @param {string} text @param {string} language */
function canColour(text, language) {
  return language !== "" && text.length <= MAX_COLOURED_CHARS && (library === null || library.getLanguage(language) !== undefined);
}

/** @param {HTMLElement} code @param {() => string} text as it is when the library has come @param {string} language */
function colour(code, text, language) {
  if (library === null) {
    code.replaceChildren(text());
    load().then(() => canColour(text(), language) && colour(code, text, language), () => {});
    return;
  }
  const tree = library.highlight(text(), { language, ignoreIllegals: true })._emitter.rootNode;
  const made = document.createDocumentFragment();
  made.append(...tree.children.map(coloured));
  patch(code, [...code.childNodes], made);
}

/** @param {string | {scope?: string, children: any[]}} node of highlight.js' tree @returns {Node | string} */
function coloured(node) {
  if (typeof node === "string") return node;
  const scope = node.scope?.split(".")[0];
  return element("span", { class: scope && `code-${scope}` }, ...node.children.map(coloured));
}

/** @param {HTMLElement} code @param {string} before @param {string} text */
function extend(code, before, text) {
  const last = code.lastChild;
  if (code.childNodes.length === 1 && last instanceof Text && text.startsWith(before)) last.appendData(text.slice(before.length));
  else code.replaceChildren(text);
}

function load() {
  loading ??= import(LIBRARY).then((module) => {
    library = module.default;
  });
  return loading;
}

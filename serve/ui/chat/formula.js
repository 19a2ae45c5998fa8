/**
 * Formulas by KaTeX, which is fetched with the first of them; until then, and where it cannot read one, the source is
 * shown. KaTeX writes a few style attributes, which the page's policy forbids; they are set as properties instead.
 */

import { element } from "../shared/dom.js";

const FOLDER = "/ui/vendor/katex-0.19.1";
const MAX_CHARS = 4000;
const KEPT_STYLE = "data-katex-style";

/** @type {Promise<any> | null} */
let loading = null;

/** @param {string} source TeX @param {boolean} isDisplayed in a line of its own @returns {HTMLElement} */
export function formula(source, isDisplayed) {
  const frame = element("span", { class: isDisplayed ? "formula displayed" : "formula" }, element("code", {}, source));
  if (isDisplayed) for (const [name, value] of [["role", "region"], ["aria-label", "Formula"], ["tabindex", "0"]]) frame.setAttribute(name, value);
  if (source.length > MAX_CHARS) return frame;
  if (loaded !== null) draw(frame, source, isDisplayed);
  else load().then(() => draw(frame, source, isDisplayed), () => {});
  return frame;
}

/** @type {any} KaTeX, once it is there */
let loaded = null;

function load() {
  loading ??= Promise.all([import(`${FOLDER}/katex.min.js`), addStyles()]).then(() => {
    loaded = /** @type {any} */ (globalThis).katex;
  });
  return loading;
}

function addStyles() {
  return new Promise((resolve, reject) => {
    const sheet = element("link", { rel: "stylesheet", href: `${FOLDER}/katex.min.css`, on: { load: resolve, error: reject } });
    document.head.append(sheet);
  });
}

/** @param {HTMLElement} frame @param {string} source @param {boolean} isDisplayed */
function draw(frame, source, isDisplayed) {
  try {
    const tree = loaded.__renderToDomTree(source, { displayMode: isDisplayed, throwOnError: true, maxSize: 40, maxExpand: 500, strict: "ignore" });
    setAside(tree);
    const drawn = tree.toNode();
    for (const styled of drawn.querySelectorAll(`[${KEPT_STYLE}]`)) {
      styled.style.cssText = styled.getAttribute(KEPT_STYLE);
      styled.removeAttribute(KEPT_STYLE);
    }
    frame.replaceChildren(drawn);
  } catch {
    frame.classList.add("unreadable");
  }
}

/** @param {any} node of KaTeX's tree */
function setAside(node) {
  if (node.attributes?.style !== undefined) {
    node.attributes[KEPT_STYLE] = node.attributes.style;
    delete node.attributes.style;
  }
  for (const child of node.children ?? []) setAside(child);
}

/** Markdown to tokens: CommonMark with tables and bare links, no HTML, and formulas between dollars or \( \), \[ \]. */

import MarkdownIt from "../vendor/markdown-it-15.0.3/markdown-it.esm.min.mjs";

/** Text of one paragraph or cell beyond this stays as it is: the time of some nested marks grows with the square. */
const MAX_INLINE_CHARS = 10_000;
const DELIMITERS = /** @type {const} */ ([
  ["$$", "$$", true],
  ["\\[", "\\]", true],
  ["\\(", "\\)", false],
]);

/** @typedef {{type: string, tag: string, nesting: number, content: string, info: string, hidden: boolean, level: number, map: [number, number] | null, children: Token[] | null, attrs: [string, string][] | null, attrGet(name: string): string | null}} Token */

const parser = newParser();

/** @param {string} text @param {object} references links defined so far; those of the text are added @returns {Token[]} */
export const parse = (text, references) => parser.parse(text, references);

function newParser() {
  const made = new /** @type {any} */ (MarkdownIt)({ html: false, linkify: true });
  made.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
  made.core.ruler.at("inline", (/** @type {any} */ state) => {
    for (const token of state.tokens) {
      if (token.type === "inline") parseInline(token, state);
    }
  });
  made.inline.ruler.before("escape", "formula", inlineFormula);
  made.block.ruler.before("fence", "formula", blockFormula, { alt: ["paragraph", "reference", "blockquote", "list"] });
  return made;
}

/** @param {any} token @param {any} state */
function parseInline(token, state) {
  if (token.content.length <= MAX_INLINE_CHARS) {
    state.md.inline.parse(token.content, state.md, state.env, token.children);
    return;
  }
  const text = new state.Token("long_text", "", 0);
  text.content = token.content;
  token.children.push(text);
}

/** @param {any} state @param {boolean} silent @returns {boolean} */
function inlineFormula(state, silent) {
  const { src, pos } = state;
  const found = DELIMITERS.find(([open]) => src.startsWith(open, pos));
  const formula = found ? between(src, pos, found) : src[pos] === "$" ? betweenDollars(src, pos) : null;
  if (formula === null) return false;
  if (!silent) {
    const token = state.push(formula.isDisplayed ? "formula_displayed" : "formula", "", 0);
    token.content = formula.text;
  }
  state.pos = formula.end;
  return true;
}

/** @param {string} src @param {number} pos @param {typeof DELIMITERS[number]} delimiters */
function between(src, pos, [open, close, isDisplayed]) {
  const end = src.indexOf(close, pos + open.length);
  const text = src.slice(pos + open.length, end).trim();
  return end < 0 || text === "" ? null : { text, end: end + close.length, isDisplayed };
}

/** `$5 and $10` are prices: a formula has no space inside its dollars, and no digit behind. @param {string} src @param {number} pos */
function betweenDollars(src, pos) {
  if (/[\s$]/.test(src[pos + 1] ?? " ")) return null;
  for (let end = src.indexOf("$", pos + 1); end > 0; end = src.indexOf("$", end + 1)) {
    if (src[end - 1] === "\\") continue;
    if (/\s/.test(src[end - 1]) || /\d/.test(src[end + 1] ?? "")) return null;
    return { text: src.slice(pos + 1, end), end: end + 1, isDisplayed: false };
  }
  return null;
}

/** @param {any} state @param {number} startLine @param {number} endLine @param {boolean} silent @returns {boolean} */
function blockFormula(state, startLine, endLine, silent) {
  const first = state.src.slice(state.bMarks[startLine] + state.tShift[startLine], state.eMarks[startLine]);
  const found = DELIMITERS.find(([open, , isDisplayed]) => isDisplayed && first.startsWith(open));
  if (found === undefined || state.sCount[startLine] - state.blkIndent >= 4) return false;
  const [open, close] = found;
  const lines = [first.slice(open.length)];
  for (let line = startLine; line < endLine; line += 1) {
    if (line > startLine) lines.push(state.src.slice(state.bMarks[line], state.eMarks[line]));
    const end = lines[lines.length - 1].trimEnd();
    if (!end.endsWith(close)) {
      if (end.includes(close) || end.trim() === "" && line > startLine) return false;
      continue;
    }
    lines[lines.length - 1] = end.slice(0, -close.length);
    if (silent) return true;
    const token = state.push("formula_block", "", 0);
    token.content = lines.join("\n").trim();
    token.map = [startLine, line + 1];
    state.line = line + 1;
    return true;
  }
  return false;
}

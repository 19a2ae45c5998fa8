/** Elements that are made anew become the ones that are shown: what has not changed stays, with the reader's selection in it. */

/** They know their text by heart, or draw it later: they are the same or others. */
const WHOLE = ".code-block, .formula";

/**
 * @param {Node} parent @param {ChildNode[]} shown the last children of `parent`, or all @param {Node} wanted what they shall be; it is emptied
 * @returns {ChildNode[]} them
 */
export function patch(parent, shown, wanted) {
  const made = [...wanted.childNodes];
  for (const node of shown.slice(made.length)) node.remove();
  return made.map((node, at) => {
    const old = shown[at];
    if (old === undefined) return parent.appendChild(node);
    if (!isAlike(old, node)) {
      old.replaceWith(node);
      return node;
    }
    if (old instanceof Text && node instanceof Text) write(old, node.data);
    else if (!(old instanceof Element && old.matches(WHOLE))) patch(old, [...old.childNodes], node);
    return old;
  });
}

/** @param {Node} old @param {Node} made */
function isAlike(old, made) {
  if (old instanceof Text) return made instanceof Text;
  if (old instanceof Element && old.matches(WHOLE)) return old.isEqualNode(made);
  return old.cloneNode(false).isEqualNode(made.cloneNode(false));
}

/** @param {Text} text @param {string} wanted */
function write(text, wanted) {
  if (wanted.startsWith(text.data)) text.appendData(wanted.slice(text.length));
  else if (!text.data.startsWith(wanted)) text.data = wanted;
  else text.deleteData(wanted.length, text.length);
}

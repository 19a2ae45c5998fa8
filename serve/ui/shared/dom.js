/** Elements from a description. Text becomes text nodes: nothing here reads markup. */

/**
 * @typedef {Node | string | null | undefined | false} Child
 * @typedef {{[name: string]: unknown, on?: {[event: string]: (event: any) => unknown}}} Properties
 */

/**
 * Attributes by name: false and null leave one out, true gives it no value; `on` holds listeners.
 *
 * @param {string} tag @param {Properties} properties @param {...Child} children
 * @returns {any} an HTMLElement of the tag's kind
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") listen(made, properties.on ?? {});
    else setAttribute(made, name, value);
  }
  made.append(...children.filter(isShown));
  return made;
}

/** @param {Element} target @param {string} name @param {unknown} value */
export function setAttribute(target, name, value) {
  if (value === false || value === null || value === undefined) target.removeAttribute(name);
  else target.setAttribute(name, value === true ? "" : String(value));
}

/** @param {EventTarget} target @param {{[event: string]: (event: any) => unknown}} listeners */
export function listen(target, listeners) {
  for (const [name, listener] of Object.entries(listeners)) target.addEventListener(name, listener);
}

/** @param {string} selector @param {ParentNode} within @returns {any} the element, which must be there */
export function find(selector, within = document) {
  const found = within.querySelector(selector);
  if (found === null) throw new Error(`the page has no ${selector}`);
  return found;
}

/** @param {Child} child @returns {child is Node | string} */
function isShown(child) {
  return child !== null && child !== undefined && child !== false;
}

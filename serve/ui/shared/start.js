/**
 * The page's work begins after its first picture; a page that nobody sees has none, and begins at once. All modules are
 * asked for together, but not before that: the picture would come after them. The first of them is the page.
 */

const modules = /** @type {HTMLTemplateElement} */ (document.getElementById("modules")).content;
const page = /** @type {HTMLLinkElement} */ (modules.querySelector("link")).href;
/** The last button that was pressed before somebody listened: then its press is repeated. @type {HTMLElement | null} */
let pressed = null;

/** @param {MouseEvent} event */
function keep({ target }) {
  pressed = (target instanceof Element && target.closest("button")) || pressed;
}

async function begin() {
  document.head.append(modules);
  try {
    await import(page);
  } catch (error) {
    console.error(error);
    /** @type {HTMLElement} */ (document.querySelector("[role=status]")).textContent = "This page could not be loaded. Load it again.";
    return;
  }
  removeEventListener("click", keep, true);
  pressed?.click();
}

addEventListener("click", keep, true);
if (document.hidden) begin();
else requestAnimationFrame(() => setTimeout(begin));

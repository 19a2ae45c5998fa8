/**
 * Light, dark or the system's choice: an attribute of the root, kept in this browser. The first picture waits for this
 * file, so that it has the right colours; therefore it imports nothing.
 */

const KEY = "tinycluster.theme";

/** @typedef {"system" | "light" | "dark"} Theme */

export const THEMES = /** @type {const} */ (["system", "light", "dark"]);

/** @returns {Theme} */
export function currentTheme() {
  return THEMES.find((theme) => theme === document.documentElement.dataset.theme) ?? "system";
}

/** @param {Theme} theme */
export function chooseTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // A browser that may not keep anything forgets the choice with the page.
  }
}

/** @returns {string | null} */
function kept() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

document.documentElement.dataset.theme = kept() ?? "system";

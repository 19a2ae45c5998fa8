/** The button that goes from the system's colours to light to dark. */

import { find } from "./dom.js";
import { draw } from "./icons.js";
import { chooseTheme, currentTheme, THEMES } from "./theme.js";

const ICONS = /** @type {const} */ ({ system: "system", light: "sun", dark: "moon" });

export function offerThemes() {
  const button = find("#theme");
  const show = () => {
    const theme = currentTheme();
    draw(find(".icon", button), ICONS[theme]);
    const label = `Colours: ${theme}`;
    button.setAttribute("aria-label", label);
    button.title = label;
  };
  button.addEventListener("click", () => {
    chooseTheme(THEMES[(THEMES.indexOf(currentTheme()) + 1) % THEMES.length]);
    show();
  });
  show();
}

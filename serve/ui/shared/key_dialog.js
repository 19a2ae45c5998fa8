/** Where a key is pasted when the server asks for one. It stays in this browser and goes to this server only. */

import { ApiError, currentKey, keepKey, requestJson } from "./api.js";
import { choices, field, show } from "./dialogs.js";
import { element } from "./dom.js";
import { rememberHere } from "./memory.js";

/** @typedef {{auth: "none" | "keys", name: string | null, role: string}} Identity */

/** @param {() => void} whenAccepted after a key that the server takes */
export function askForKeysOf(whenAccepted) {
  /** @type {HTMLDialogElement | null} */
  let open = null;
  document.addEventListener("keyneeded", () => {
    if (open !== null) return;
    open = showKeyDialog(whenAccepted, () => {
      open = null;
    });
  });
}

/** Forgets the key and everything on the page that came with it. */
export function logOut() {
  keepKey(null);
  rememberHere("draft", null);
  location.assign("/");
}

/** @returns {Promise<Identity>} */
export const whoAmI = () => requestJson("GET", "/api/me");

/** @param {() => void} whenAccepted @param {() => void} whenClosed @returns {HTMLDialogElement} */
function showKeyDialog(whenAccepted, whenClosed) {
  const input = element("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true, placeholder: "tc-…" });
  const trouble = element("div", { class: "trouble-box field", role: "alert", hidden: true });
  trouble.hidden = currentKey() === null;
  trouble.textContent = "The server does not take the key that this browser has.";
  const submit = element("button", { type: "submit", class: "filled" }, "Continue");
  const form = element("form", {}, field("Key", input), trouble, choices(submit));
  const text = "This server asks for a key. Its operator makes one with “tinycluster keys create”. It stays in this browser.";
  const dialog = show("Your key", [element("p", {}, text), form], whenClosed, true);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    submit.disabled = true;
    const refusal = await tried(input.value.trim());
    submit.disabled = false;
    if (refusal === null) {
      dialog.close();
      whenAccepted();
    } else {
      trouble.hidden = false;
      trouble.textContent = refusal;
      input.select();
    }
  });
  return dialog;
}

/** @param {string} key @returns {Promise<string | null>} null: the server takes it, and it is kept; else why not */
async function tried(key) {
  const before = currentKey();
  keepKey(key);
  try {
    await whoAmI();
    return null;
  } catch (error) {
    keepKey(before);
    if (error instanceof ApiError && error.status !== 401) return error.message;
    return "The server does not take this key.";
  }
}

/** Files that go out of the page and come in. */

import { element } from "../shared/dom.js";

/** @param {string} name @param {object} content */
export function offerFile(name, content) {
  const address = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
  const plain = name.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation";
  const link = element("a", { href: address, download: `${plain}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** @param {File} file @returns {Promise<object | null>} null for what is not an object in JSON */
export async function readJsonFile(file) {
  try {
    const content = JSON.parse(await file.text());
    return typeof content === "object" && content !== null && !Array.isArray(content) ? content : null;
  } catch {
    return null;
  }
}

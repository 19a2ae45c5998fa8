/** Short texts that this browser keeps. One that may not keep anything forgets them with the page. */

const PREFIX = "tinycluster.";

/** @param {() => Storage} storage */
function memory(storage) {
  /** @type {Map<string, string>} */
  const ofThisPage = new Map();
  return {
    /** @param {string} name @returns {string | null} */
    recall(name) {
      try {
        return storage().getItem(PREFIX + name);
      } catch {
        return ofThisPage.get(name) ?? null;
      }
    },

    /** @param {string} name @param {string | null} text null: forget it */
    remember(name, text) {
      try {
        if (text === null) storage().removeItem(PREFIX + name);
        else storage().setItem(PREFIX + name, text);
      } catch {
        if (text === null) ofThisPage.delete(name);
        else ofThisPage.set(name, text);
      }
    },
  };
}

export const { recall, remember } = memory(() => localStorage);

/** Until this tab is closed, and for it alone. */
export const { recall: recallHere, remember: rememberHere } = memory(() => sessionStorage);

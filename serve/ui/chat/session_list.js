/** The rows of the list of conversations, by day. A row stays the same element, so that the focus and an open menu stay at it. */

import { element, find, setAttribute } from "../shared/dom.js";
import { icon } from "../shared/icons.js";
import { dayGroup } from "../shared/words.js";

export const MAX_TITLE_CHARS = 300;

/**
 * @typedef {import("./session.js").Summary} Summary
 * @typedef {{frame: HTMLElement, update(session: Summary): void, focus(): void, mark(isOpen: boolean): void}} Row
 */

export class SessionList {
  #frame = find("#sessions");
  /** @type {Map<string, Row>} */
  #rows = new Map();
  /** @type {Map<string, {frame: HTMLElement, list: HTMLElement}>} */
  #groups = new Map();
  #open;
  #showMore;

  /** @param {(id: string) => void} open @param {(session: Summary, button: HTMLElement) => void} showMore of what can be done */
  constructor(open, showMore) {
    this.#open = open;
    this.#showMore = showMore;
  }

  /** @param {Summary[]} sessions the newest first @param {string | null} openId */
  show(sessions, openId) {
    const focused = document.activeElement;
    const groups = grouped(sessions);
    arrange(this.#frame, [...groups.keys()].map((name) => this.#group(name).frame));
    for (const [name, members] of groups) arrange(this.#group(name).list, members.map((session) => this.#row(session).frame));
    const ids = new Set(sessions.map(({ id }) => id));
    for (const id of this.#rows.keys()) if (!ids.has(id)) this.#rows.delete(id);
    this.mark(openId);
    if (focused instanceof HTMLElement && focused !== document.activeElement && this.#frame.contains(focused)) focused.focus({ preventScroll: true });
  }

  /** @param {string | null} openId */
  mark(openId) {
    for (const [id, row] of this.#rows) row.mark(id === openId);
  }

  /** @param {string} id @returns {boolean} whether it is there */
  focus(id) {
    this.#rows.get(id)?.focus();
    return this.#rows.has(id);
  }

  /** @param {string} name */
  #group(name) {
    let group = this.#groups.get(name);
    if (group === undefined) {
      const list = element("ul");
      group = { list, frame: element("li", {}, element("h3", {}, name), list) };
      this.#groups.set(name, group);
    }
    return group;
  }

  /** @param {Summary} session */
  #row(session) {
    const row = this.#rows.get(session.id) ?? newRow(session.id, this.#open, this.#showMore);
    this.#rows.set(session.id, row);
    row.update(session);
    return row;
  }
}

/** @param {string} id @param {(id: string) => void} open @param {(session: Summary, button: HTMLElement) => void} showMore @returns {Row} */
function newRow(id, open, showMore) {
  /** @type {Summary} */
  let shown;
  const opened = (/** @type {MouseEvent} */ event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(id);
  };
  const link = element("a", { href: `#${id}`, "data-id": id, on: { click: opened } });
  const more = element("button", { type: "button", class: "small square", "aria-haspopup": "menu", "aria-expanded": "false" }, icon("more"));
  more.addEventListener("click", () => showMore(shown, more));
  return {
    frame: element("li", { class: "session" }, link, more),
    update: (session) => {
      const title = session.title.slice(0, MAX_TITLE_CHARS);
      shown = session;
      if (link.textContent === title) return;
      link.textContent = link.title = title;
      more.setAttribute("aria-label", `More about ${title}`);
    },
    focus: () => link.focus(),
    mark: (isOpen) => setAttribute(link, "aria-current", isOpen ? "page" : null),
  };
}

/** Moves only what is elsewhere, since what is moved loses the focus. @param {HTMLElement} parent @param {HTMLElement[]} children */
function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(/** @type {HTMLElement} */ (child))) child.remove();
  children.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
}

/** @param {Summary[]} sessions @returns {Map<string, Summary[]>} */
function grouped(sessions) {
  const now = new Date();
  const groups = new Map();
  for (const session of sessions) {
    const name = dayGroup(session.updated_at, now);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(session);
  }
  return groups;
}

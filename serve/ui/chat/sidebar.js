/** The list of conversations: searched, opened, renamed, deleted, taken away and brought back. */

import { isAbort, messageOf } from "../shared/api.js";
import { askedText, confirmed } from "../shared/dialogs.js";
import { find } from "../shared/dom.js";
import { openMenu } from "../shared/menu.js";
import { tell, tellTrouble } from "../shared/notices.js";
import { counted } from "../shared/words.js";
import { offerFile, readJsonFile } from "./files.js";
import { changeSession, deleteSession, exportSessions, importSessions, listSessions } from "./session.js";
import { MAX_TITLE_CHARS, SessionList } from "./session_list.js";

const SEARCH_AFTER_MS = 180;
const AT_ONCE = 40;
const MOST_AT_ONCE = 100;

/** @typedef {import("./session.js").Summary} Summary */

export class Sidebar {
  #list = new SessionList(
    (id) => this.#actions.open(id),
    (session, button) => openMenu(button, this.#choices(session)),
  );
  /** @type {HTMLInputElement} */
  #search = find("#search");
  #more = find("#more-sessions");
  #nothing = find("#no-sessions");
  /** @type {Summary[]} */
  #sessions = [];
  /** What they were searched by. */
  #searched = "";
  /** The place after the last that is shown, if anything is there. @type {string | null} */
  #next = null;
  /** @type {string | null} */
  #openId = null;
  #timer = 0;
  /** @type {AbortController | null} */
  #loading = null;
  #actions;

  /** @param {{open(id: string | null): void, renamed(id: string, title: string): void, deleted(id: string): void}} actions */
  constructor(actions) {
    this.#actions = actions;
    this.#search.addEventListener("input", () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.refresh(), SEARCH_AFTER_MS);
    });
    this.#search.addEventListener("keydown", (event) => event.key === "ArrowDown" && this.#focusFirst(event));
    this.#more.addEventListener("click", () => this.#load(this.#next ?? ""));
    /** @type {HTMLInputElement} */
    const file = find("#import-file");
    find("#import").addEventListener("click", () => file.click());
    find("#export-all").addEventListener("click", () => this.#export(null, "conversations"));
    file.addEventListener("change", () => this.#import(file));
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  /** @param {string | null} id */
  markOpen(id) {
    this.#openId = id;
    this.#list.mark(id);
  }

  /** @param {number} step @returns {string | null} the conversation so far below the open one */
  neighbour(step) {
    const at = this.#sessions.findIndex((session) => session.id === this.#openId);
    return this.#sessions[at < 0 ? 0 : at + step]?.id ?? null;
  }

  refresh() {
    return this.#load("");
  }

  /** @param {string} before the place after the last that is shown; empty: from the newest */
  async #load(before) {
    this.#loading?.abort();
    const loading = (this.#loading = new AbortController());
    try {
      const limit = before === "" ? Math.min(MOST_AT_ONCE, Math.max(AT_ONCE, this.#sessions.length)) : AT_ONCE;
      const search = this.#search.value.trim();
      const { sessions, next } = await listSessions({ search, before, limit }, loading.signal);
      const known = search === this.#searched ? this.#sessions : [];
      const all = before !== "" ? [...known, ...sessions] : next !== null ? merged(sessions, known) : sessions;
      this.#searched = search;
      this.#take(all, all.length > sessions.length && before === "" ? this.#next : next);
    } catch (error) {
      if (!isAbort(error)) tellTrouble(`The conversations cannot be listed. ${messageOf(error)}`, () => this.#load(before));
    }
  }

  /** @param {Summary[]} sessions @param {string | null} next */
  #take(sessions, next) {
    this.#sessions = sessions;
    this.#next = next;
    this.#show();
  }

  #show() {
    this.#list.show(this.#sessions, this.#openId);
    this.#more.hidden = this.#next === null;
    this.#nothing.hidden = this.#sessions.length > 0;
    this.#nothing.textContent = this.#search.value.trim() === "" ? "Your conversations will be here." : "Nothing is found.";
  }

  /** @param {Summary} session @returns {import("../shared/menu.js").Choice[]} */
  #choices(session) {
    return [
      { label: "Rename", icon: "edit", act: () => this.rename(session) },
      { label: "Export", icon: "save", act: () => this.#export(session.id, session.title) },
      { label: "Delete", icon: "trash", act: () => this.#delete(session), isDangerous: true },
    ];
  }

  /** @param {{id: string, title: string}} session */
  async rename({ id, title }) {
    const name = await askedText({ title: "Rename the conversation", label: "Title", value: title, action: "Rename" });
    if (name === null || name === title) return;
    await attempt(async () => {
      await changeSession(id, { title: name });
      this.#actions.renamed(id, name);
      await this.refresh();
    });
  }

  /** @param {Summary} session */
  async #delete({ id, title }) {
    const text = `“${title.slice(0, MAX_TITLE_CHARS)}” and all of its messages will be gone.`;
    if (!(await confirmed({ title: "Delete the conversation?", text, action: "Delete", isDangerous: true }))) return;
    await attempt(async () => {
      await deleteSession(id);
      this.#forget(id);
      this.#actions.deleted(id);
      await this.refresh();
      tell("The conversation is deleted.");
    });
  }

  /** The focus that was at it goes to the one that has its place. @param {string} id */
  #forget(id) {
    const at = this.#sessions.findIndex((session) => session.id === id);
    const next = this.#sessions[at + 1] ?? this.#sessions[at - 1];
    this.#take(this.#sessions.filter((session) => session.id !== id), this.#next);
    if (document.activeElement !== document.body) return;
    if (next === undefined || !this.#list.focus(next.id)) find("#new").focus();
  }

  /** @param {string | null} id @param {string} name */
  #export(id, name) {
    return attempt(async () => offerFile(name, await exportSessions(id)));
  }

  /** @param {HTMLInputElement} field */
  async #import(field) {
    const file = field.files?.[0];
    if (file === undefined) return;
    field.value = "";
    const document = await readJsonFile(file);
    if (document === null) {
      tellTrouble(`${file.name} is not a file of exported conversations.`);
      return;
    }
    await attempt(async () => {
      const { sessions } = await importSessions(document);
      await this.refresh();
      tell(`${counted(sessions.length, "conversation")} imported.`);
    });
  }

  /** @param {Event} event */
  #focusFirst(event) {
    event.preventDefault();
    const [first] = this.#sessions;
    if (first !== undefined) this.#list.focus(first.id);
  }
}

/** @param {() => Promise<void>} work tried again by the reader where it fails */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    tellTrouble(messageOf(error), () => attempt(work));
  }
}

/**
 * @param {Summary[]} newest as the server has them @param {Summary[]} known what was shown
 * @returns {Summary[]} the newest, and after them what is known of those before
 */
function merged(newest, known) {
  const ids = new Set(newest.map(({ id }) => id));
  const last = newest.at(-1);
  if (last === undefined || !known.some(({ id }) => ids.has(id))) return newest;
  return [...newest, ...known.filter(({ id, updated_at: updated }) => !ids.has(id) && updated <= last.updated_at)];
}

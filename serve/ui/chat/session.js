/** A conversation as the server keeps it: what is asked of it, and what this page knows of the one that is open. */

import { requestJson } from "../shared/api.js";
import { LateWrite } from "./settings.js";
import { MessageTree } from "./tree.js";

/** @typedef {{id: string, title: string, model: string | null, updated_at: number}} Summary */

/** @param {string} id */
const pathOf = (id) => `/api/sessions/${encodeURIComponent(id)}`;

/** @param {{search?: string, before?: string, limit?: number}} query @param {AbortSignal} [signal] @returns {Promise<{sessions: Summary[], has_more: boolean, next: string | null}>} */
export function listSessions({ search = "", before = "", limit = 40 }, signal) {
  const query = new URLSearchParams({ limit: String(limit) });
  if (search !== "") query.set("search", search);
  if (before !== "") query.set("before", before);
  return requestJson("GET", `/api/sessions?${query}`, undefined, signal);
}

/** @param {string} id @param {AbortSignal} signal @returns {Promise<object>} what a Session is made of */
export const loadSession = (id, signal) => requestJson("GET", pathOf(id), undefined, signal);

/** @typedef {{title?: string, settings?: Record<string, unknown>, model?: string, head_id?: string}} Change */

/** @param {string} id @param {Change} change @param {boolean} keepalive whether it goes on when the page is left */
export const changeSession = (id, change, keepalive = false) => requestJson("PATCH", pathOf(id), change, undefined, keepalive);

/** @param {string} id */
export const deleteSession = (id) => requestJson("DELETE", pathOf(id));

/** @param {string} id @param {string} messageId @returns {Promise<Summary>} */
export const forkSession = (id, messageId) => requestJson("POST", `${pathOf(id)}/fork`, { message_id: messageId });

/** @param {string | null} id null: all of them @returns {Promise<object>} */
export const exportSessions = (id) => requestJson("GET", id === null ? "/api/sessions/export" : `${pathOf(id)}/export`);

/** @param {object} document @returns {Promise<{sessions: Summary[]}>} */
export const importSessions = (document) => requestJson("POST", "/api/sessions/import", { document });

/** @returns {string} an id that no other message has; a request that is sent twice is known by it */
export function newMessageId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `msg_${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

export class Session {
  #late = new LateWrite((/** @type {Change[]} */ changes, isLeaving) => changeSession(this.id, Object.assign({}, ...changes), isLeaving));

  /** Branches that were chosen and are not kept yet. */
  #numChosen = 0;

  /** @param {any} shown what GET /api/sessions/{id} answers, or the beginning of a new one */
  constructor(shown) {
    /** @type {string} */
    this.id = shown.id;
    /** @type {string | null} */
    this.model = null;
    /** @type {Record<string, unknown>} */
    this.settings = {};
    /** The last message that is shown. @type {string | null} */
    this.head = null;
    this.update(shown);
  }

  /** As the server has it, but for what it does not have yet. @param {any} shown */
  update(shown) {
    /** @type {string} */
    this.title = shown.title;
    if (!this.#late.isOpen) Object.assign(this, { model: shown.model, settings: shown.settings ?? {} });
    this.tree = new MessageTree(shown.messages ?? []);
    if (this.#numChosen === 0) this.head = shown.head_id ?? this.tree.newestRoot();
  }

  /** The newest branch through a message is shown from now on, also by who leaves at once. @param {string} id */
  async choose(id) {
    this.head = this.tree.newestLeaf(id);
    this.#numChosen += 1;
    try {
      await changeSession(this.id, { head_id: this.head }, true);
    } finally {
      this.#numChosen -= 1;
    }
  }

  /** @param {{settings?: Record<string, unknown>, model?: string}} change written a moment later */
  change(change) {
    Object.assign(this, change);
    this.#late.plan(change);
  }

  flush(isLeaving = false) {
    return this.#late.flush(isLeaving);
  }

  get path() {
    return this.tree.path(this.head);
  }

  /** An answer that the server is writing, if the shown branch ends with one. */
  get openAnswer() {
    const last = this.head === null ? null : this.tree.get(this.head);
    return last !== null && (last.state === "pending" || last.state === "streaming") ? last : null;
  }
}

/** A conversation is a tree of messages: every edit and every further answer is a branch beside the one before. */

/**
 * @typedef {{prompt_tokens: number, cached_tokens: number, completion_tokens: number, ttft_ms: number | null, tokens_per_s: number | null}} Usage
 * @typedef {{
 *   id: string, parent_id: string | null, role: "system" | "developer" | "user" | "assistant" | "tool", content: string,
 *   state: "complete" | "pending" | "streaming" | "interrupted", model: string | null, created_at: number,
 *   finish_reason: string | null, parameters?: Record<string, unknown> | null, usage: Usage | null,
 * }} Message
 */

export class MessageTree {
  /** @type {Map<string, Message>} */
  #messages = new Map();
  /** Ids by their parent, the oldest first. @type {Map<string | null, string[]>} */
  #children = new Map();

  /** @param {Iterable<Message>} messages parents before their children or after */
  constructor(messages = []) {
    for (const message of messages) this.put(message);
  }

  /** A message that is there already is replaced. @param {Message} message */
  put(message) {
    if (!this.#messages.has(message.id)) {
      const siblings = this.#children.get(message.parent_id) ?? [];
      siblings.push(message.id);
      this.#children.set(message.parent_id, siblings);
    }
    this.#messages.set(message.id, message);
  }

  /** A message without children. @param {string} id */
  remove(id) {
    const message = this.#messages.get(id);
    if (message === undefined) return;
    this.#messages.delete(id);
    this.#children.set(message.parent_id, this.siblings(message).filter((sibling) => sibling !== id));
  }

  /** @param {string} id @returns {Message | null} */
  get(id) {
    return this.#messages.get(id) ?? null;
  }

  /** From the first message to `leaf`. @param {string | null} leaf @returns {Message[]} */
  path(leaf) {
    const found = [];
    const seen = new Set();
    for (let id = leaf; id !== null && !seen.has(id); ) {
      seen.add(id);
      const message = this.#messages.get(id);
      if (message === undefined) break;
      found.push(message);
      id = message.parent_id;
    }
    return found.reverse();
  }

  /** @param {Message} message @returns {string[]} ids, itself among them */
  siblings(message) {
    return this.#children.get(message.parent_id) ?? [message.id];
  }

  /** The end of the newest branch below a message. @param {string} id @returns {string} */
  newestLeaf(id) {
    let leaf = id;
    for (let next = this.#children.get(leaf); next !== undefined && next.length > 0; next = this.#children.get(leaf)) {
      leaf = next[next.length - 1];
    }
    return leaf;
  }

  /** Where a conversation without a head goes on. @returns {string | null} */
  newestRoot() {
    const roots = this.#children.get(null) ?? [];
    return roots.length > 0 ? this.newestLeaf(roots[roots.length - 1]) : null;
  }
}

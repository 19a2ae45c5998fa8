/** A question that the server has not begun to answer: how it is shown, and how it is asked. */

/**
 * Without `input` it is a message that the server has, and that is answered anew.
 * @typedef {{messageId: string, input: string | null, parentId: string | null, parameters?: Record<string, unknown>}} Question
 * @typedef {import("./session.js").Session} Session @typedef {import("./tree.js").Message} Message
 */

/** The id of an answer that the server has not given one. */
const UNNAMED = "answer-without-a-name";

/** @param {Session} session @param {Question} question @param {boolean} isAsked whether its answer is waited for @returns {Message[]} from the first message on */
export function pathOf({ tree }, { messageId, input, parentId }, isAsked) {
  const asked = input === null ? tree.path(messageId) : [...tree.path(parentId), draft(messageId, parentId, "user", input)];
  return isAsked ? [...asked, draft(UNNAMED, messageId, "assistant", "")] : asked;
}

/** @param {Session} session @param {Question} question @returns {Record<string, unknown>} the body of POST /api/chat */
export function bodyOf(session, { messageId, input, parentId, parameters }) {
  const place = session.id === "" ? {} : { session_id: session.id };
  if (input === null) return { ...parameters, ...place, regenerate: messageId };
  const parent = session.id === "" ? {} : { parent_id: parentId };
  return { ...parameters, ...place, ...parent, input, message_id: messageId };
}

/** @param {string} id @param {string | null} parentId @param {"user" | "assistant"} role @param {string} content @returns {Message} */
function draft(id, parentId, role, content) {
  const state = role === "user" ? "complete" : "pending";
  return { id, parent_id: parentId, role, content, state, model: null, created_at: Date.now() / 1000, finish_reason: null, usage: null };
}

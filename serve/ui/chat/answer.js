/**
 * An answer as it is written: from the request or from where a reader was, over broken connections, to its end.
 *
 * The server goes on writing whoever reads. So a connection that breaks is opened again with the id of the last event
 * that came, and nothing is lost or comes twice. Before the first event a message with an id of its own is sent again,
 * which the server knows to be the same message.
 */

import { ApiError, isAbort, request, sentence } from "../shared/api.js";
import { readEvents } from "../shared/event_stream.js";
import { delayAfter, pause } from "../shared/pause.js";

const MAX_FAILURES = 12;

/**
 * @typedef {import("./tree.js").Message} Message
 * @typedef {{id: string, title: string, model: string | null, updated_at: number}} SessionSummary
 * @typedef {{sessionId: string, answerId: string, lastEventId: string | null}} Place
 * @typedef {{kind: "start", session: SessionSummary, message: Message | null, answer: Message}
 *   | {kind: "progress", total: number, cached: number, processed: number}
 *   | {kind: "delta", text: string}
 *   | {kind: "done", message: Message, session: SessionSummary | null}
 *   | {kind: "failed", error: ApiError}
 *   | {kind: "waiting", delayMs: number}
 *   | {kind: "back"}} AnswerEvent
 */

/** @param {Message} answer as a session shows it @param {string} sessionId @returns {Place} after what is known of it */
export function placeOf(answer, sessionId) {
  const numCharacters = [...answer.content].length;
  return { sessionId, answerId: answer.id, lastEventId: numCharacters > 0 ? `${answer.id}/${numCharacters}` : null };
}

/**
 * @param {Record<string, unknown>} body of POST /api/chat @param {AbortSignal} signal
 * @returns {AsyncGenerator<AnswerEvent>} ApiError for what the server refuses
 */
export async function* askedAnswer(body, signal) {
  const mayRepeat = body.message_id !== undefined;
  yield* followed((place) => (place === null ? post(body, signal) : resume(place, signal)), null, mayRepeat, signal);
}

/** @param {Place} place @param {AbortSignal} signal @returns {AsyncGenerator<AnswerEvent>} */
export async function* resumedAnswer(place, signal) {
  yield* followed((from) => resume(from ?? place, signal), place, true, signal);
}

/** @param {string} sessionId @param {string} answerId */
export const stopAnswer = (sessionId, answerId) => request("POST", `${answerPath(sessionId, answerId)}/stop`);

/**
 * @param {(place: Place | null) => Promise<Response>} open @param {Place | null} start
 * @param {boolean} mayRepeat before a place is known @param {AbortSignal} signal @returns {AsyncGenerator<AnswerEvent>}
 */
async function* followed(open, start, mayRepeat, signal) {
  let place = start;
  for (let numFailures = 0; ; ) {
    try {
      const response = await open(place);
      if (numFailures > 0) yield { kind: "back" };
      for await (const { event, data, id } of readEvents(response)) {
        const told = data === "[DONE]" ? null : meaning(event, JSON.parse(data));
        if (told === null) continue;
        numFailures = 0;
        if (told.kind === "start") place = { sessionId: told.session.id, answerId: told.answer.id, lastEventId: null };
        if (place !== null && id !== null) place.lastEventId = id;
        yield told;
        if (told.kind === "done" || told.kind === "failed") return;
      }
    } catch (error) {
      if (isAbort(error) || signal.aborted) throw error;
      if (error instanceof ApiError && !error.isPassing) throw error;
      if (error instanceof ApiError && place === null && (!mayRepeat || error.status !== 0)) throw error;
      if (error instanceof SyntaxError) throw new ApiError("The server's answer is not of the expected form.", 500);
    }
    if (place === null && !mayRepeat) throw new ApiError("The connection broke before the answer began.");
    numFailures += 1;
    if (numFailures > MAX_FAILURES) throw new ApiError("The server cannot be reached.");
    const delayMs = delayAfter(numFailures);
    yield { kind: "waiting", delayMs };
    await pause(delayMs, signal);
  }
}

/** @param {string} event @param {any} told @returns {AnswerEvent | null} null for what this page does not know */
function meaning(event, told) {
  switch (event) {
    case "start":
      return { kind: "start", session: told.session, message: told.message ?? null, answer: told.answer };
    case "progress":
      return { kind: "progress", total: told.total, cached: told.cached, processed: told.processed };
    case "delta":
      return { kind: "delta", text: told.text };
    case "done":
      return { kind: "done", message: told.message, session: told.session ?? null };
    case "error":
      return { kind: "failed", error: new ApiError(sentence(told.error.message), 500) };
    default:
      return null;
  }
}

/** @param {Record<string, unknown>} body @param {AbortSignal} signal */
function post(body, signal) {
  return request("POST", "/api/chat", { body: { ...body, stream: true }, signal });
}

/** @param {Place} place @param {AbortSignal} signal */
function resume({ sessionId, answerId, lastEventId }, signal) {
  /** @type {{[name: string]: string}} */
  const headers = lastEventId === null ? {} : { "last-event-id": lastEventId };
  return request("GET", `${answerPath(sessionId, answerId)}/events`, { headers, signal });
}

/** @param {string} sessionId @param {string} answerId */
function answerPath(sessionId, answerId) {
  return `/api/sessions/${encodeURIComponent(sessionId)}/messages/${encodeURIComponent(answerId)}`;
}

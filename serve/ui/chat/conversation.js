/** The open conversation: what is asked in it, how its answers come, and which branch is shown. */

import { ApiError, isAbort, messageOf } from "../shared/api.js";
import { tellTrouble } from "../shared/notices.js";
import { askedAnswer, placeOf, resumedAnswer, stopAnswer } from "./answer.js";
import { bodyOf, pathOf } from "./question.js";
import { loadSession, newMessageId, Session } from "./session.js";

const MAX_SHOWN_CHARS = 100;

/**
 * An answer that is read, with its question until the server has begun. Ending it does not end the answer.
 * @typedef {{session: Session, question: Question | null, controller: AbortController, isWaiting: boolean, mustStop: boolean}} Reading
 *
 * @typedef {import("./question.js").Question} Question
 * @typedef {import("./tree.js").Message} Message
 * @typedef {import("./answer.js").AnswerEvent} AnswerEvent
 * @typedef {{
 *   show(path: Message[], isBusy: boolean): void,
 *   delta(id: string, text: string): void,
 *   progress(id: string, processed: number, total: number): void,
 *   trouble(id: string, text: string, action?: string): void,
 *   connection(text: string | null): void,
 *   began(): void, ended(message: Message): void,
 *   opening(): void, opened(session: Session | null): void, refreshed(session: Session): void,
 *   listed(): void, begunSession(session: Session): void,
 *   unsaid(input: string): void, settings(): Record<string, unknown>, parameters(): Record<string, unknown>,
 * }} View
 */

export class Conversation {
  /** @type {Session | null} */
  session = null;
  #view;
  /** @type {AbortController | null} */
  #opening = null;
  /** @type {Reading | null} */
  #reading = null;
  /** The end of what is shown, which is not in the tree yet: on its way, or refused. @type {Question | null} */
  #question = null;
  /** The answers that have begun since this page has. */
  #numStarted = 0;

  /** @param {View} view */
  constructor(view) {
    this.#view = view;
  }

  get isOpening() {
    return this.#opening !== null;
  }

  /** Whether an answer is on its way. */
  get isBusy() {
    return this.#reading !== null;
  }

  /** What is shown, the first message first. */
  get path() {
    if (this.session === null) return [];
    return this.#question === null ? this.session.path : pathOf(this.session, this.#question, this.isBusy);
  }

  /** @param {Message} message of the path @returns {string[]} ids, itself among them */
  siblings(message) {
    const kept = this.session?.tree.siblings(message) ?? [];
    return kept.includes(message.id) ? kept : [...kept, message.id];
  }

  /** @param {string | null} id null: an empty page */
  async open(id) {
    this.leave();
    this.session = null;
    const opening = (this.#opening = new AbortController());
    this.#view.opening();
    const numStarted = this.#numStarted;
    try {
      this.session = id === null ? null : new Session(await loadSession(id, opening.signal));
    } catch (error) {
      if (!isAbort(error)) throw error;
      return;
    } finally {
      if (this.#opening === opening) this.#opening = null;
    }
    this.#view.opened(this.session);
    this.#show();
    this.#resume();
    // What has begun in the meantime may belong to this conversation and not be in what was loaded.
    if (this.#numStarted !== numStarted) this.refresh();
  }

  /** What another page or device has added. */
  async refresh() {
    const { session } = this;
    if (session === null || session.id === "" || this.isBusy || this.#question !== null) return;
    const { head } = session;
    const shown = await loadSession(session.id, AbortSignal.timeout(10_000)).catch(() => null);
    if (shown === null || this.session !== session || session.head !== head || this.isBusy || this.#question !== null) return;
    session.update(shown);
    this.#view.refreshed(session);
    this.#show();
    this.#resume();
  }

  /** A question that is on its way arrives all the same: what the reader has said is not taken back by looking elsewhere. */
  leave() {
    this.#opening?.abort();
    this.#opening = null;
    if (this.#reading?.question === null) this.#reading.controller.abort();
    if (!this.isBusy && this.#question !== null) this.#view.unsaid(this.#question.input ?? "");
    this.#reading = null;
    this.#question = null;
    this.#view.connection(null);
  }

  /**
   * @param {string} input @param {string | null} edited the message that this one replaces
   * @returns {boolean} whether it is taken
   */
  send(input, edited) {
    if (this.isBusy || this.isOpening) return false;
    const parentId = this.#parentOf(edited);
    this.session ??= new Session({ id: "", title: "", model: null, settings: this.#view.settings() });
    this.#ask(this.session, { messageId: newMessageId(), input, parentId });
    return true;
  }

  /** What is said after a refused question takes its place. @param {string | null} edited */
  #parentOf(edited) {
    const message = edited === null ? null : (this.session?.tree.get(edited) ?? null);
    if (message !== null) return message.parent_id;
    return this.#question === null ? (this.session?.head ?? null) : this.#question.parentId;
  }

  /** A further answer beside this one, or to this message of the reader. @param {string} id */
  regenerate(id) {
    const message = this.session?.tree.get(id);
    const asked = message?.role === "user" ? message.id : message?.parent_id;
    if (this.session === null || this.isBusy || asked == null) return;
    if (this.#question !== null) this.leave();
    this.#ask(this.session, { messageId: asked, input: null, parentId: null });
  }

  /** @param {string} id of the message that is in trouble */
  retry(id) {
    if (this.session === null || this.isBusy) return;
    if (this.#question?.messageId === id) this.#ask(this.session, this.#question);
    else if (this.session.openAnswer?.id === id) this.#resume();
    else this.regenerate(id);
  }

  /** The answer ends here, with what it has. */
  stop() {
    const reading = this.#reading;
    if (reading === null) return;
    reading.mustStop = true;
    if (reading.question !== null) this.#giveUpIfWaiting(reading);
    else if (reading.session.openAnswer !== null) this.#stop(reading.session.id, reading.session.openAnswer.id);
  }

  /** @param {string} sessionId @param {string} answerId */
  async #stop(sessionId, answerId) {
    try {
      await stopAnswer(sessionId, answerId);
    } catch (error) {
      tellTrouble(messageOf(error), () => this.#stop(sessionId, answerId));
    }
  }

  /** @param {string} id of a message; the newest branch through it is shown */
  showSibling(id) {
    if (this.session === null) return;
    this.leave();
    this.session.choose(id).catch((error) => tellTrouble(messageOf(error)));
    this.#show();
    this.#resume();
  }

  #show() {
    this.#view.show(this.path, this.isBusy);
  }

  /** @param {Session} session @param {Question} question */
  #ask(session, question) {
    const reading = newReading(session, question);
    if (session === this.session && !this.isBusy) {
      question.parameters = this.#view.parameters();
      const lost = session.openAnswer;
      if (lost !== null) session.tree.put({ ...lost, state: "interrupted" });
      this.#question = question;
      this.#begin(reading);
    }
    this.#read(reading, askedAnswer(bodyOf(session, question), reading.controller.signal));
  }

  #resume() {
    const { session } = this;
    const answer = session?.openAnswer;
    if (!session || !answer) return;
    const reading = newReading(session, null);
    this.#begin(reading);
    this.#read(reading, resumedAnswer(placeOf(answer, session.id), reading.controller.signal));
  }

  /** @param {Reading} reading */
  #begin(reading) {
    this.#reading = reading;
    this.#view.began();
    this.#show();
  }

  /** @param {Reading} reading @param {AsyncGenerator<AnswerEvent>} events */
  async #read(reading, events) {
    try {
      for await (const event of events) {
        if (event.kind === "start") this.#started(reading, event);
        if (this.#reading === reading) this.#happened(reading, event);
        else if (reading.question === null) return;
      }
    } catch (error) {
      if (!isAbort(error)) this.#failed(reading, messageOf(error));
      return;
    }
    if (this.#reading !== reading) return;
    this.#reading = null;
    this.#show();
  }

  /** @param {Reading} reading @param {AnswerEvent} event */
  #happened(reading, event) {
    const { session } = reading;
    const answer = session.openAnswer;
    reading.isWaiting = event.kind === "waiting";
    if (event.kind === "waiting") {
      this.#view.connection("The connection is lost. Trying again …");
      if (reading.mustStop) this.#giveUpIfWaiting(reading);
    } else if (event.kind === "back") this.#view.connection(null);
    else if (answer === null) return;
    else if (event.kind === "progress") this.#view.progress(answer.id, event.processed, event.total);
    else if (event.kind === "delta") this.#grew(answer, event.text);
    else if (event.kind === "failed") {
      session.tree.put({ ...answer, state: "interrupted" });
      this.#view.trouble(answer.id, event.error.message, "Answer again");
    } else if (event.kind === "done") this.#done(session, event);
  }

  /** @param {Reading} reading @param {Extract<AnswerEvent, {kind: "start"}>} event */
  #started(reading, event) {
    const { session } = reading;
    const isNew = session.id === "";
    this.#numStarted += 1;
    Object.assign(session, { id: event.session.id, title: event.session.title, model: event.session.model });
    if (event.message !== null) session.tree.put(event.message);
    session.tree.put({ ...event.answer, content: "", state: "streaming" });
    reading.question = null;
    if (this.#reading === reading) {
      this.#question = null;
      session.head = event.answer.id;
    }
    if (isNew) this.#view.begunSession(session);
    this.#view.listed();
    if (this.session === session) this.#show();
    else if (this.session?.id === session.id) this.refresh();
    if (reading.mustStop) this.#stop(session.id, event.answer.id);
  }

  /** A question that cannot be sent is refused by its reader. @param {Reading} reading */
  #giveUpIfWaiting({ question, isWaiting, controller }) {
    if (question !== null && isWaiting) controller.abort(new ApiError("This was stopped before it was sent."));
  }

  /** @param {Message} answer @param {string} text */
  #grew(answer, text) {
    answer.content += text;
    answer.state = "streaming";
    this.#view.delta(answer.id, text);
  }

  /** @param {Session} session @param {Extract<AnswerEvent, {kind: "done"}>} event */
  #done(session, event) {
    session.tree.put(event.message);
    if (event.session !== null) session.title = event.session.title;
    this.#view.listed();
    this.#view.ended(event.message);
  }

  /** The server refuses, or cannot be reached for good. @param {Reading} reading @param {string} trouble */
  #failed(reading, trouble) {
    const { session, question } = reading;
    if (this.#reading !== reading) {
      const what = question?.input == null ? "A further answer" : `“${question.input.slice(0, MAX_SHOWN_CHARS)}”`;
      if (question !== null) tellTrouble(`${what} was not asked for. ${trouble}`, () => this.#ask(session, question));
      return;
    }
    const id = question?.messageId ?? session.openAnswer?.id;
    if (question?.input === null) this.#question = null;
    this.#reading = null;
    this.#view.connection(null);
    this.#show();
    if (id !== undefined) this.#view.trouble(id, trouble);
  }
}

/** @param {Session} session @param {Question | null} question @returns {Reading} */
const newReading = (session, question) => ({ session, question, controller: new AbortController(), isWaiting: false, mustStop: false });

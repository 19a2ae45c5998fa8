/** The page that talks to the models: what its parts tell each other. */

import { ApiError, currentKey, messageOf } from "../shared/api.js";
import { find } from "../shared/dom.js";
import { drawIcons } from "../shared/icons.js";
import { askForKeysOf, logOut, whoAmI } from "../shared/key_dialog.js";
import { dismissTrouble, tell, tellTrouble } from "../shared/notices.js";
import { offerThemes } from "../shared/theme_choice.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { copy } from "./copying.js";
import { MessageList } from "./message_list.js";
import { Models } from "./models.js";
import { Panels } from "./panels.js";
import { forkSession } from "./session.js";
import { Defaults } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { alt, bare, command, listenFor, showShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";

const READ_ALOUD_CHARS = 600;

class Page {
  #list = new MessageList((id) => this.#actionsOf(id));
  #models = new Models({
    whenKnown: () => this.#updateComposer(),
    whenChosen: (name) => this.#modelChosen(name),
    whenShown: (model) => this.#panel.showDefaults(model.default_sampling ?? {}),
  });
  #composer = new Composer({
    send: (text, edited) => this.#conversation.send(text, edited),
    stop: () => this.#conversation.stop(),
    editLast: () => this.#editLast(),
  });
  #sidebar = new Sidebar({
    open: (id) => this.#goTo(id),
    renamed: (id, title) => this.#renamed(id, title),
    deleted: (id) => id === hashId() && this.#goTo(null),
  });
  #panel = new SettingsPanel({
    whenChanged: (values) => this.#settingsChanged(values),
    keepAsDefaults: (values) => this.#keepAsDefaults(values),
  });
  #panels = new Panels();
  #side = this.#panels.side;
  #settings = this.#panels.settings;
  /** The message that was in trouble last. */
  #troubled = "";
  #defaults = new Defaults();
  #isStarted = false;
  /** @type {import("../shared/key_dialog.js").Identity | null} */
  #reader = null;
  #conversation = new Conversation({
    show: (path, isBusy) => {
      find("#nothing-said").hidden = path.length > 0;
      find("#main").classList.toggle("is-empty", path.length === 0);
      this.#list.show(path, (message) => this.#conversation.siblings(message), isBusy);
      this.#updateComposer();
    },
    delta: (id, text) => this.#list.get(id)?.append(text),
    progress: (id, processed, total) => this.#list.get(id)?.showProgress(processed, total),
    trouble: (id, text, action) => {
      this.#troubled = id;
      this.#list.get(id)?.showTrouble(text, action);
    },
    connection: (text) => {
      find("#connection").textContent = text ?? "";
    },
    began: () => {
      this.#list.get(this.#troubled)?.hideTrouble();
      this.#list.follow();
      this.#readAloud("The answer is being written.");
    },
    ended: (message) => this.#readAloud(`The answer is complete. ${message.content.slice(0, READ_ALOUD_CHARS)}`),
    opening: () => this.#updateComposer(),
    opened: (session) => this.#opened(session),
    refreshed: (session) => this.#showChoices(session),
    listed: () => this.#sidebar.refresh(),
    begunSession: (session) => this.#begunSession(session),
    unsaid: (input) => this.#composer.offer(input),
    settings: () => this.#panel.values,
    parameters: () => ({ ...this.#panel.values, model: this.#models.chosen }),
  });

  constructor() {
    find("#new").addEventListener("click", () => this.#startNew());
    find("#title").addEventListener("click", () => this.#rename());
    find("#log-out").addEventListener("click", () => this.#logOut());
    find(".skip").addEventListener("click", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#composer.focus();
    });
    find("#show-shortcuts").addEventListener("click", () => showShortcuts(this.#shortcuts));
    addEventListener("hashchange", () => this.#open(hashId()));
    document.addEventListener("visibilitychange", () => this.#seen());
    addEventListener("pagehide", () => this.#flush(true));
    listenFor(this.#shortcuts);
    askForKeysOf(() => this.#keyAccepted());
  }

  async start() {
    find("#log-out").hidden = currentKey() === null;
    try {
      const { auth, name, role } = (this.#reader = await whoAmI());
      find("#who").textContent = auth === "keys" ? (name ?? "") : "";
      find("#to-cluster").hidden = role !== "admin";
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 401)) tellTrouble(messageOf(error), () => this.start());
      return;
    }
    this.#isStarted = true;
    this.#sidebar.refresh();
    await this.#loadDefaults();
    await this.#open(hashId());
    // Nothing can be sent before a model is known: what is said then is not lost by what is opened first.
    this.#models.load();
  }

  async #loadDefaults() {
    try {
      await this.#defaults.load();
      this.#showChoices(this.#conversation.session);
    } catch (error) {
      tellTrouble(`Your settings cannot be read. ${messageOf(error)}`, () => this.#loadDefaults());
    }
  }

  /** What the reader was about to say stays, if the key was taken back in the midst of it; another reader finds nothing of it. */
  async #keyAccepted() {
    dismissTrouble();
    if (!this.#isStarted) return this.start();
    const { name, role } = await whoAmI().catch(() => ({ name: null, role: "" }));
    if (name !== this.#reader?.name || role !== this.#reader?.role) return this.#beginAnew();
    find("#log-out").hidden = false;
    this.#models.load();
    this.#sidebar.refresh();
  }

  #logOut() {
    this.#composer.clear();
    logOut();
  }

  #beginAnew() {
    this.#composer.clear();
    location.assign("/");
  }

  /** @param {string | null} id */
  #goTo(id) {
    this.#side.closeIfCovering();
    if (hashId() === id) this.#open(id);
    else if (id === null) {
      history.pushState(null, "", location.pathname);
      this.#open(null);
    } else location.hash = id;
  }

  #startNew() {
    this.#goTo(null);
    this.#composer.focus();
  }

  /** @param {string | null} id */
  async #open(id) {
    if (id !== null && id === this.#conversation.session?.id) return;
    this.#flush();
    this.#composer.leaveEdit();
    try {
      await this.#conversation.open(id);
    } catch (error) {
      this.#conversation.open(null);
      tellTrouble(messageOf(error), () => this.#open(id));
    }
  }

  /** What is chosen and not written yet. */
  #flush(isLeaving = false) {
    this.#defaults.flush(isLeaving);
    this.#conversation.session?.flush(isLeaving);
  }

  /** @param {import("./session.js").Session | null} session */
  #showChoices(session) {
    const { model, parameters } = this.#defaults.values;
    this.#showTitle(session?.title ?? null);
    this.#models.choose(session?.model ?? model ?? null);
    this.#panel.show(session?.settings ?? parameters ?? {}, session !== null);
  }

  /** @param {import("./session.js").Session | null} session */
  #opened(session) {
    this.#list.clear();
    this.#sidebar.markOpen(session?.id ?? null);
    this.#showChoices(session);
    // Who has begun to search or to set something goes on with that.
    const isWriting = document.activeElement?.matches("input, textarea, select") ?? false;
    if (matchMedia("(pointer: fine)").matches && !isWriting) this.#composer.focus();
  }

  /** The settings that the first message was asked with stay those of its conversation. @param {import("./session.js").Session} session */
  #begunSession(session) {
    if (session === this.#conversation.session) {
      history.pushState(null, "", `#${session.id}`);
      session.settings = this.#panel.values;
      this.#sidebar.markOpen(session.id);
      this.#showChoices(session);
    }
    if (Object.keys(session.settings).length > 0) session.change({ settings: session.settings });
  }

  /** @param {string | null} title */
  #showTitle(title) {
    const button = find("#title");
    button.textContent = title ?? "";
    button.hidden = title === null;
    document.title = title ? `${title.slice(0, 100)} · tinycluster` : "tinycluster";
  }

  #editLast() {
    const last = this.#conversation.path.findLast((message) => message.role === "user");
    if (last !== undefined) this.#composer.edit(last.id, last.content);
  }

  /** @param {string} id @returns {import("./message_view.js").Actions} */
  #actionsOf(id) {
    return {
      edit: () => this.#composer.edit(id, this.#list.get(id)?.text ?? ""),
      regenerate: () => this.#conversation.regenerate(id),
      branch: () => this.#branch(id),
      showSibling: (sibling) => this.#conversation.showSibling(sibling),
      retry: () => this.#conversation.retry(id),
    };
  }

  /** @param {string} id */
  async #branch(id) {
    const session = this.#conversation.session;
    if (session === null || session.tree.get(id) === null) return;
    try {
      const copied = await forkSession(session.id, id);
      this.#sidebar.refresh();
      this.#goTo(copied.id);
      tell("This is a new conversation, with what was said until there.");
    } catch (error) {
      tellTrouble(messageOf(error), () => this.#branch(id));
    }
  }

  #rename() {
    const session = this.#conversation.session;
    if (session !== null) this.#sidebar.rename(session);
  }

  /** @param {string} id @param {string} title */
  #renamed(id, title) {
    const session = this.#conversation.session;
    if (session?.id !== id) return;
    session.title = title;
    this.#showTitle(title);
  }

  /** @param {string} name */
  #modelChosen(name) {
    const session = this.#conversation.session;
    this.#defaults.change({ model: name });
    if (session?.id) session.change({ model: name });
  }

  /** @param {import("./parameters.js").Parameters} values */
  #settingsChanged(values) {
    const session = this.#conversation.session;
    if (session?.id) session.change({ settings: values });
    else this.#defaults.change({ parameters: values });
  }

  /** @param {import("./parameters.js").Parameters} values */
  async #keepAsDefaults(values) {
    this.#defaults.change({ parameters: values });
    if (await this.#defaults.flush()) tell("New conversations will begin with these settings.");
  }

  #updateComposer() {
    const { isBusy, isOpening } = this.#conversation;
    this.#composer.update(isBusy, !isOpening && this.#models.chosen !== null);
  }

  /** @param {string} text */
  #readAloud(text) {
    find("#read-aloud").textContent = text;
  }

  #seen() {
    if (document.visibilityState !== "visible") return;
    this.#sidebar.refresh();
    this.#conversation.refresh();
    if (this.#models.chosen !== null) this.#models.load();
  }

  async #copyLast() {
    const last = this.#conversation.path.findLast((message) => message.role === "assistant");
    if (last !== undefined && (await copy(last.content))) tell("The last answer is copied.");
  }

  #regenerateLast() {
    const last = this.#conversation.path.findLast((message) => message.role === "assistant");
    if (last !== undefined && !this.#conversation.isBusy) this.#conversation.regenerate(last.id);
  }

  /** @param {number} step */
  #goBy(step) {
    const id = this.#sidebar.neighbour(step);
    if (id !== null) this.#goTo(id);
  }

  #searchConversations() {
    if (!this.#side.isOpen) this.#side.toggle();
    this.#sidebar.focusSearch();
  }

  /** @type {import("./shortcuts.js").Shortcut[]} */
  #shortcuts = [
    { keys: ["Enter"], what: "Send the message", matches: () => false, act: () => {} },
    { keys: ["Shift", "Enter"], what: "A new line", matches: () => false, act: () => {} },
    { keys: ["↑"], what: "Edit the last message, from an empty field", matches: () => false, act: () => {} },
    { keys: ["Esc"], what: "Stop the answer", matches: (/** @type {KeyboardEvent} */ event) => event.key === "Escape" && this.#conversation.isBusy, act: () => this.#conversation.stop() },
    { keys: ["/"], what: "Write a message", matches: bare("/"), act: () => this.#composer.focus() },
    { keys: ["Alt", "N"], what: "New conversation", matches: alt("KeyN"), act: () => this.#startNew() },
    { keys: ["Ctrl", "K"], what: "Search the conversations", matches: command("KeyK"), act: () => this.#searchConversations() },
    { keys: ["Alt", "↓"], what: "The next conversation", matches: alt("ArrowDown"), act: () => this.#goBy(1) },
    { keys: ["Alt", "↑"], what: "The conversation before", matches: alt("ArrowUp"), act: () => this.#goBy(-1) },
    { keys: ["Alt", "R"], what: "Answer again", matches: alt("KeyR"), act: () => this.#regenerateLast() },
    { keys: ["Alt", "C"], what: "Copy the last answer", matches: alt("KeyC"), act: () => this.#copyLast() },
    { keys: ["Alt", "S"], what: "Settings", matches: alt("KeyS"), act: () => this.#settings.toggle() },
    { keys: ["Alt", "B"], what: "List of conversations", matches: alt("KeyB"), act: () => this.#side.toggle() },
    { keys: ["?"], what: "These shortcuts", matches: bare("?"), act: () => showShortcuts(this.#shortcuts) },
  ];
}

const hashId = () => /^#(conv_[\w-]+)$/.exec(location.hash)?.[1] ?? null;

drawIcons(document);
offerThemes();
new Page().start();

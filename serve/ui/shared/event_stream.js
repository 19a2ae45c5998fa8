/** Server-sent events read from a response, since EventSource cannot send a key (HTML standard, section 9.2.6). */

/** Four times as long as the server is silent at most before it sends a comment: a connection that says nothing is dead. */
const LONGEST_SILENCE_MS = 120_000;

/** @typedef {{event: string, data: string, id: string | null}} ServerEvent */

/**
 * @param {Response} response @param {number} longestSilenceMs after which the stream has ended
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* readEvents(response, longestSilenceMs = LONGEST_SILENCE_MS) {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const piece = await readSoon(reader, longestSilenceMs);
      if (piece.done) return;
      yield* parser.push(piece.value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** @param {ReadableStreamDefaultReader<string>} reader @param {number} ms @returns {Promise<{done: true} | {done: false, value: string}>} */
function readSoon(reader, ms) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => resolve({ done: true }), ms);
    reader.read().then(({ done, value }) => resolve(done ? { done } : { done, value }), reject).finally(() => clearTimeout(timer));
  });
}

/** Text in pieces of any size to events; an event that its empty line has not ended is not one yet. */
export class EventParser {
  #rest = "";
  #event = "";
  /** @type {string[]} */
  #data = [];
  /** @type {string | null} */
  #id = null;

  /** @param {string} text @returns {Generator<ServerEvent>} */
  *push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") yield* this.#end();
      else this.#field(line);
    }
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#event = value;
    else if (name === "data") this.#data.push(value);
    else if (name === "id") this.#id = value;
  }

  *#end() {
    if (this.#data.length > 0) yield { event: this.#event || "message", data: this.#data.join("\n"), id: this.#id };
    this.#event = "";
    this.#data = [];
  }
}

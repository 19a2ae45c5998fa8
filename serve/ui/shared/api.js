/** Requests to this page's own server. What goes wrong is a sentence; a key that is missing or wrong opens the key's dialog. */

import { recall, remember } from "./memory.js";

const KEY = "key";

/** The server's refusal, or its silence (status 0). The message is for the reader of the page. */
export class ApiError extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }

  /** Whether the network or a server that is starting again may be the cause, so that asking again helps. */
  get isPassing() {
    return this.status === 0 || this.status === 502 || this.status === 503 || this.status === 504;
  }
}

/** @returns {string | null} */
export const currentKey = () => recall(KEY);

/** @param {string | null} key */
export const keepKey = (key) => remember(KEY, key);

/**
 * @param {string} method @param {string} path
 * @param {{body?: unknown, headers?: {[name: string]: string}, signal?: AbortSignal, keepalive?: boolean}} options
 * @returns {Promise<Response>} an answer of success; ApiError for any other
 */
export async function request(method, path, options = {}) {
  const { body, signal, keepalive } = options;
  const headers = new Headers(options.headers);
  const key = currentKey();
  if (key !== null) headers.set("authorization", `Bearer ${key}`);
  if (body !== undefined) headers.set("content-type", "application/json");
  const content = body === undefined ? undefined : JSON.stringify(body);
  const response = await ask(path, { method, headers, body: content, signal, keepalive, cache: "no-store", credentials: "omit" });
  if (response.ok) return response;
  const refusal = await refusalOf(response);
  // Of a key that has been replaced in the meantime nothing needs to be said.
  if (response.status === 401 && key === currentKey()) document.dispatchEvent(new CustomEvent("keyneeded", { detail: refusal }));
  throw refusal;
}

/** @param {string} method @param {string} path @param {unknown} [body] @param {AbortSignal} [signal] @param {boolean} [keepalive] whether it goes on when the page is left @returns {Promise<any>} */
export async function requestJson(method, path, body, signal, keepalive) {
  const response = await request(method, path, { body, signal, keepalive });
  try {
    return await response.json();
  } catch (error) {
    throw rethrown(error);
  }
}

/** @param {string} path @param {RequestInit} init */
async function ask(path, init) {
  try {
    return await fetch(path, init);
  } catch (error) {
    throw rethrown(error);
  }
}

/** @param {unknown} error @returns {unknown} an abort as it is, everything else as what it means here */
function rethrown(error) {
  if (error instanceof DOMException && error.name === "AbortError") return error;
  if (error instanceof TypeError && /header|ByteString|ISO-8859-1/i.test(error.message)) {
    return new ApiError("The key has characters that no key has.", 401);
  }
  return new ApiError("The server cannot be reached.");
}

/** @param {Response} response @returns {Promise<ApiError>} */
async function refusalOf(response) {
  /** @type {{message?: unknown} | undefined} */
  let told;
  try {
    told = (await response.json()).error;
  } catch {
    told = undefined;
  }
  const message = typeof told?.message === "string" ? sentence(told.message) : `The server answered with status ${response.status}.`;
  return new ApiError(message, response.status);
}

/** @param {string} text @returns {string} with a capital at its start and an end */
export function sentence(text) {
  const trimmed = text.trim();
  const started = trimmed.charAt(0).toUpperCase() + trimmed.slice(1);
  return /[.!?…]$/.test(started) ? started : `${started}.`;
}

/** @param {unknown} error @returns {string} */
export function messageOf(error) {
  if (error instanceof ApiError) return error.message;
  console.error(error);
  return "Something went wrong in this page.";
}

/** @param {unknown} error */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";

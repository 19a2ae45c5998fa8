/** How an answer is chosen: the fields of the settings, their bounds, and what of them goes into a request. */

/**
 * @typedef {{name: string, label: string, hint: string, min: number, max: number, step: number, isInteger: boolean, slider: [number, number] | null}} NumberField
 * @typedef {Record<string, unknown>} Parameters
 */

/** @type {readonly NumberField[]} */
export const NUMBER_FIELDS = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token; more gives more variety.", min: 0, max: 2, step: 0.05, isInteger: false, slider: [0, 2] },
  { name: "top_k", label: "Top-k", hint: "Only this many of the likeliest tokens are considered; 0 considers all.", min: 0, max: 1000, step: 1, isInteger: true, slider: [1, 200] },
  { name: "top_p", label: "Top-p", hint: "Only the likeliest tokens that together have this probability.", min: 0.01, max: 1, step: 0.01, isInteger: false, slider: [0.01, 1] },
  { name: "min_p", label: "Min-p", hint: "Only tokens at least this likely, compared with the likeliest.", min: 0, max: 1, step: 0.01, isInteger: false, slider: [0, 1] },
  { name: "max_tokens", label: "Max tokens", hint: "Where an answer is cut.", min: 1, max: 1_000_000, step: 1, isInteger: true, slider: null },
  { name: "seed", label: "Seed", hint: "The same seed gives the same answer.", min: 0, max: 2 ** 53 - 1, step: 1, isInteger: true, slider: null },
];

/** @param {NumberField} field @param {string} text @returns {{value: number | null, trouble: string | null}} an empty text is null */
export function readNumber(field, text) {
  if (text.trim() === "") return { value: null, trouble: null };
  const value = Number(text);
  const isRight = Number.isFinite(value) && value >= field.min && value <= field.max && (!field.isInteger || Number.isInteger(value));
  const kind = field.isInteger ? "a whole number" : "a number";
  const trouble = `${field.label} is ${kind} from ${field.min} to ${field.max}.`;
  return isRight ? { value, trouble: null } : { value: null, trouble };
}

/** Only what this page knows and what has a right value: settings may come from another release. @param {any} kept @returns {Parameters} */
export function readParameters(kept) {
  /** @type {Parameters} */
  const found = {};
  for (const field of NUMBER_FIELDS) {
    const value = kept?.[field.name];
    if (typeof value === "number" && readNumber(field, String(value)).value !== null) found[field.name] = value;
  }
  if (typeof kept?.system === "string" && kept.system.trim() !== "") found.system = kept.system;
  return found;
}

/** The panel of settings: of the open conversation, or of those to come. Every change counts for the next answer. */

import { element, find } from "../shared/dom.js";
import { NUMBER_FIELDS, readNumber, readParameters } from "./parameters.js";

/** @typedef {import("./parameters.js").NumberField} NumberField @typedef {import("./parameters.js").Parameters} Parameters */

export class SettingsPanel {
  /** @type {Parameters} */
  #values = {};
  /** What the model takes for what is not set. @type {Parameters} */
  #defaults = {};
  #whenChanged;
  /** @type {Map<string, {input: HTMLInputElement, slider: HTMLInputElement | null, trouble: HTMLElement}>} */
  #numbers = new Map();
  #system = element("textarea", { id: "system", rows: 4, maxlength: 65536, placeholder: "None" });
  #scope = find("#settings-scope");
  #keepAsDefaults = find("#keep-as-defaults");

  /** @param {{whenChanged(values: Parameters): void, keepAsDefaults(values: Parameters): void}} actions */
  constructor({ whenChanged, keepAsDefaults }) {
    this.#whenChanged = whenChanged;
    const fields = find("#settings-fields");
    fields.append(this.#systemField(), ...NUMBER_FIELDS.map((field) => this.#numberField(field)));
    find("#forget-settings").addEventListener("click", () => this.#change({}));
    this.#keepAsDefaults.addEventListener("click", () => keepAsDefaults(this.values));
  }

  get values() {
    return { ...this.#values };
  }

  /** @param {Parameters} values @param {boolean} isOfSession */
  show(values, isOfSession) {
    this.#values = readParameters(values);
    this.#scope.textContent = `For ${isOfSession ? "this conversation" : "new conversations"}. What is empty is left to the model.`;
    this.#keepAsDefaults.hidden = !isOfSession;
    this.#fill();
  }

  #fill() {
    this.#system.value = this.#values.system ?? "";
    for (const field of NUMBER_FIELDS) {
      const parts = this.#numbers.get(field.name);
      if (parts === undefined) continue;
      const value = /** @type {number | undefined} */ (this.#values[field.name]);
      parts.input.value = value === undefined ? "" : String(value);
      this.#check(field);
      this.#slide(field);
    }
  }

  /** @param {Parameters} defaults the model's */
  showDefaults(defaults) {
    this.#defaults = defaults;
    for (const field of NUMBER_FIELDS) {
      const parts = this.#numbers.get(field.name);
      if (parts !== undefined) parts.input.placeholder = String(defaults[field.name] ?? "default");
      this.#slide(field);
    }
  }

  /** A slider has no place for "not set": it is paler then, and stands where the model does. @param {NumberField} field */
  #slide(field) {
    const slider = this.#numbers.get(field.name)?.slider ?? null;
    if (slider === null) return;
    const value = this.#values[field.name];
    slider.classList.toggle("unset", value === undefined);
    const shown = Number(value ?? this.#defaults[field.name] ?? field.max);
    // Only a number for "all" is below the others.
    slider.value = shown < Number(slider.min) ? slider.max : String(shown);
  }

  /** @param {Parameters} values */
  #change(values) {
    this.#values = values;
    this.#fill();
    this.#whenChanged(this.values);
  }

  #systemField() {
    this.#system.addEventListener("input", () => this.#set("system", this.#system.value.trim() === "" ? null : this.#system.value));
    return element("div", { class: "setting" }, element("label", { for: "system" }, "System prompt"), this.#system);
  }

  /** @param {NumberField} field */
  #numberField(field) {
    const { name, label, hint, min, max, step } = field;
    const input = element("input", { id: name, type: "number", inputmode: "decimal", min, max, step, placeholder: "default", "aria-describedby": `${name}-hint ${name}-trouble` });
    const slider = field.slider && element("input", { type: "range", min: field.slider[0], max: field.slider[1], step, "aria-label": label });
    const trouble = element("p", { id: `${name}-trouble`, class: "wrong", hidden: true });
    this.#numbers.set(name, { input, slider, trouble });
    input.addEventListener("input", () => {
      const { value } = this.#check(field);
      this.#set(name, value);
      this.#slide(field);
    });
    slider?.addEventListener("input", () => {
      input.value = slider.value;
      this.#check(field);
      this.#set(name, Number(slider.value));
      this.#slide(field);
    });
    const head = element("div", { class: "setting-head" }, element("label", { for: name }, label), input);
    return element("div", { class: "setting" }, head, slider, element("p", { id: `${name}-hint`, class: "hint" }, hint), trouble);
  }

  /** @param {NumberField} field */
  #check(field) {
    const { input, trouble } = /** @type {any} */ (this.#numbers.get(field.name));
    const read = input.validity.badInput ? readNumber(field, "?") : readNumber(field, input.value);
    trouble.hidden = read.trouble === null;
    trouble.textContent = read.trouble ?? "";
    input.setAttribute("aria-invalid", String(read.trouble !== null));
    return read;
  }

  /** @param {string} name @param {unknown} value null: the model's own */
  #set(name, value) {
    if (value === null) delete this.#values[name];
    else this.#values[name] = value;
    this.#whenChanged(this.values);
  }
}

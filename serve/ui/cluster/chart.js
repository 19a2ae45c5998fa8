/** A small line of the last two minutes, drawn as one SVG path. What it shows stands beside it as a number. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 48;
const NUM_POINTS = 120;

export class Chart {
  /** @type {(number | null)[]} */
  #values = [];
  #least;
  #line = document.createElementNS(SVG, "path");
  #area = document.createElementNS(SVG, "path");
  frame = document.createElementNS(SVG, "svg");

  /** @param {number} least what the top means at least, so that a single request is no mountain */
  constructor(least) {
    this.#least = least;
    this.frame.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.frame.setAttribute("preserveAspectRatio", "none");
    this.frame.setAttribute("aria-hidden", "true");
    this.frame.setAttribute("class", "chart");
    this.#area.setAttribute("class", "area");
    this.#line.setAttribute("class", "line");
    this.frame.append(this.#area, this.#line);
  }

  /** @param {number | null} value null: nothing is known of this second */
  push(value) {
    this.#values.push(value);
    if (this.#values.length > NUM_POINTS) this.#values.shift();
    this.#draw();
  }

  #draw() {
    const known = this.#values.map((value) => value ?? 0);
    const top = Math.max(this.#least, ...known);
    const step = WIDTH / (NUM_POINTS - 1);
    const first = WIDTH - (known.length - 1) * step;
    const points = known.map((value, at) => `${(first + at * step).toFixed(1)} ${(HEIGHT - 2 - (value / top) * (HEIGHT - 4)).toFixed(1)}`);
    const line = `M${points.join("L")}`;
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", `${line}V${HEIGHT}H${first.toFixed(1)}Z`);
  }
}

/** Numbers and times as people read them. */

const PLAIN = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];

/** @param {number} value @returns {string} three digits that count: 0.42, 3.1, 41.3, 1,250 */
export function figure(value) {
  if (value !== 0 && Math.abs(value) < 1) return value.toFixed(2);
  return Math.abs(value) < 100 && !Number.isInteger(value) ? value.toFixed(1) : PLAIN.format(value);
}

/** @param {number} bytes */
export function bytesInWords(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${figure(value).replace(/\.0+$/, "")} ${UNITS[unit]}`;
}

/** @param {number} ms */
export function durationInWords(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${figure(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

/** @param {number} count @param {string} one @param {string} [many] */
export function counted(count, one, many = `${one}s`) {
  return `${PLAIN.format(count)} ${count === 1 ? one : many}`;
}

/** The part of a conversation list that a time belongs to. @param {number} timeS Unix seconds @param {Date} now */
export function dayGroup(timeS, now) {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime() / 1000;
  if (timeS >= midnight) return "Today";
  if (timeS >= midnight - 86400) return "Yesterday";
  if (timeS >= midnight - 7 * 86400) return "The last seven days";
  if (timeS >= midnight - 30 * 86400) return "The last thirty days";
  return "Earlier";
}

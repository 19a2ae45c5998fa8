/** Waiting between two tries: twice as long each time, and no longer than until the network is back. */

const FIRST_MS = 300;
const LONGEST_MS = 5000;

/** @param {number} numFailures from 1 @returns {number} milliseconds */
export const delayAfter = (numFailures) => Math.min(LONGEST_MS, FIRST_MS * 2 ** (numFailures - 1));

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} rejects with the signal's reason */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      removeEventListener("online", go);
      signal.removeEventListener("abort", stop);
    };
    const go = () => {
      leave();
      resolve();
    };
    const stop = () => {
      leave();
      reject(signal.reason);
    };
    const timer = setTimeout(go, ms);
    addEventListener("online", go);
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
  });
}

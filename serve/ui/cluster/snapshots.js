/** The cluster's state once a second, over a connection that is opened again whenever it breaks. */

import { ApiError, isAbort, request } from "../shared/api.js";
import { readEvents } from "../shared/event_stream.js";
import { delayAfter, pause } from "../shared/pause.js";

/** A snapshot comes once a second. */
const LONGEST_SILENCE_MS = 5000;

/**
 * @typedef {{compute: number, communicate: number, wait: number}} Load
 * @typedef {{
 *   rank: number, stage: number, tensor: number, node: string, node_id?: string, pid: number, device: string, threads: number | null,
 *   units: {heads: number, mlp: number, vocab: number}, layers: [number, number] | null, weight_bytes: number, kv_bytes: number,
 *   load: Load, seconds: Load & {bubble?: number}, links: {peer: number | string, sent_bytes: number, received_bytes: number}[], heartbeat_age_s: number | null,
 * }} Rank
 * @typedef {{blocks: number, used: number, cached: number, free: number, block_tokens: number}} KvUse
 * @typedef {{
 *   name: string, state: "loading" | "ready" | "failed", mesh: {tensor: number, pipeline: number} | null, max_model_len: number | null, kv: KvUse | null,
 *   running: number, waiting: number, requests_total: number, requests_per_s: number, prompt_tokens_per_s: number, generation_tokens_per_s: number,
 *   ttft_p50_ms: number | null, itl_p50_ms: number | null, recoveries: {count: number, last_s: number | null}, bubble_s: number, ranks: Rank[],
 * }} Model
 * @typedef {{id?: string, name: string, address: string, cpus: number, memory_bytes: number, is_alive: boolean}} Node
 * @typedef {{time: number, version: string, uptime_s: number, nodes: Node[], models: Model[]}} Snapshot
 */

/**
 * @param {AbortSignal} signal @param {(trouble: string) => void} whenLost
 * @returns {AsyncGenerator<Snapshot>} ApiError for what asking again does not help
 */
export async function* snapshots(signal, whenLost) {
  for (let numFailures = 0; ; ) {
    try {
      const response = await request("GET", "/api/cluster/events", { signal });
      for await (const { event, data } of readEvents(response, LONGEST_SILENCE_MS)) {
        if (event !== "snapshot") continue;
        numFailures = 0;
        yield JSON.parse(data);
      }
    } catch (error) {
      if (isAbort(error) || signal.aborted) return;
      if (error instanceof ApiError && !error.isPassing) throw error;
    }
    numFailures += 1;
    whenLost("The connection is lost. Trying again …");
    await pause(delayAfter(numFailures), signal);
  }
}

// Clients that come and go all the time: on the exports, and at the second monitor.

import { NbdClient } from "../../nbd/client.ts";
import { errorMessage } from "../../src/base/errors.ts";
import type { Prng } from "../../src/base/prng.ts";
import { KiB } from "../../src/base/units.ts";
import { QmpClient } from "../../src/cli/qmp-client.ts";
import type { Counts } from "./counts.ts";
import type { SoakedDaemon } from "./soaked-daemon.ts";

const REST_MS_MAX = 200;
const READ_BYTES = 64 * KiB;
const QUERIES_PER_VISIT = 40;

const QUERIES: readonly (readonly [command: string, args?: Record<string, unknown>])[] = [
  ["query-jobs"],
  ["query-block-jobs"],
  ["query-named-block-nodes", { flat: true }],
  ["query-named-block-nodes"],
  ["query-block-exports"],
  ["query-chardev"],
  ["query-version"],
  ["x-strata-query-devices"],
];

export class Visitors {
  /** Set while faults may reach a visitor. */
  mayFail = false;
  readonly #daemon: SoakedDaemon;
  readonly #exports: readonly string[];
  readonly #prng: Prng;
  readonly #counts: Counts;
  readonly #wrong: (what: string) => void;
  #stopping = false;
  #visiting: Promise<unknown> = Promise.resolve();

  constructor(settings: {
    daemon: SoakedDaemon;
    exports: readonly string[];
    prng: Prng;
    counts: Counts;
    wrong: (what: string) => void;
  }) {
    this.#daemon = settings.daemon;
    this.#exports = settings.exports;
    this.#prng = settings.prng;
    this.#counts = settings.counts;
    this.#wrong = settings.wrong;
  }

  begin(): void {
    this.#stopping = false;
    const kinds = [() => this.#visitDisk(), () => this.#visitMonitor()];
    this.#visiting = Promise.all(kinds.map((visit) => this.#again(visit)));
  }

  /** They have all gone when it is done. */
  async end(): Promise<void> {
    this.#stopping = true;
    await this.#visiting;
  }

  async #again(visit: () => Promise<void>): Promise<void> {
    while (!this.#stopping) {
      try {
        await visit();
      } catch (error) {
        if (!this.mayFail && !this.#stopping) this.#wrong(`a visitor: ${errorMessage(error)}`);
      }
      await rest(this.#prng.next() * REST_MS_MAX);
    }
  }

  async #visitDisk(): Promise<void> {
    const uri = this.#daemon.uri(this.#prng.pick(this.#exports));
    const client = await NbdClient.connect(uri, { contexts: ["base:allocation"] });
    try {
      const offset = this.#prng.below(client.size - READ_BYTES);
      const reading = client.read(offset, READ_BYTES);
      // Some go without waiting for what they asked for.
      if (this.#prng.chance(0.2)) reading.catch(() => undefined);
      else await reading;
      await client.blockStatus(offset, READ_BYTES);
      this.#counts.visits++;
      if (this.#prng.chance(0.5)) await client.disconnect();
    } finally {
      client.destroy();
    }
  }

  async #visitMonitor(): Promise<void> {
    const client = await QmpClient.connect(this.#daemon.watchSocket);
    try {
      for (let query = 0; query < QUERIES_PER_VISIT && !this.#stopping; query++) {
        await client.execute(...this.#prng.pick(QUERIES));
        this.#counts.queries++;
        await rest(this.#prng.next() * REST_MS_MAX);
      }
    } finally {
      client.close();
    }
  }
}

function rest(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

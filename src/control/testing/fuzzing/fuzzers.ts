import { NbdFuzz } from "../../../../nbd/testing/nbd-fuzz.ts";
import { ImageFuzz } from "../image-fuzz.ts";
import { JsonFuzz } from "../json-fuzz.ts";
import { HmpFuzz, QmpFuzz } from "../monitor-fuzz.ts";

/** Something that tries one case after the other; a case follows from its seed. */
export interface Fuzzer {
  /**
   * One case. Where a fuzzer is guided, `further` are seeds of what is broken on top of the case of `seed`.
   * @throws Error that says what went wrong
   */
  run(seed: number, further?: readonly number[]): Promise<void>;
  close?(): void;
}

/** By the names that `scripts/fuzz` takes; how long one case may take before it counts as stuck. */
export const FUZZERS: Readonly<Record<string, { make: () => Fuzzer; stuckMs: number; guided?: true }>> = {
  image: { make: () => new ImageFuzz(), stuckMs: 60_000, guided: true },
  nbd: { make: () => new NbdFuzz(), stuckMs: 30_000 },
  qmp: { make: () => new QmpFuzz(), stuckMs: 90_000 },
  hmp: { make: () => new HmpFuzz(), stuckMs: 90_000 },
  json: { make: () => new JsonFuzz(), stuckMs: 30_000 },
};

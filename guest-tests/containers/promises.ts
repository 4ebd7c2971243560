// A writer in a container whose promises can be counted: a number is in its log only after qemu-io has
// written the piece of that number, flushed, and gone.

import { readFileSync } from "node:fs";
import { run } from "../harness/tool.ts";

const PROMISE_BYTES = 64 * 1024;
const PROMISES_MAX = 1000;

/**
 * Lines for a shell that write one piece after the other from `offset` on, and log each when it is durable.
 */
export function promisesScript(uri: string, offset: number, log: string): string {
  const write = `write -q -P $((k % 250 + 1)) $((${offset} + k * ${PROMISE_BYTES})) ${PROMISE_BYTES}`;
  return [
    "k=0",
    `while [ $k -lt ${PROMISES_MAX} ]; do`,
    `  qemu-io -f raw -c "${write}" -c flush ${uri} || exit 1`,
    `  echo $k >> ${log}`,
    "  k=$((k + 1))",
    "done",
  ].join("\n");
}

/** How many pieces have been promised so far. */
export function promisesIn(log: string): number {
  try {
    return readFileSync(log, "utf8").split("\n").length - 1;
  } catch {
    return 0;
  }
}

/** @throws when a promised piece is not in the image */
export async function checkPromises(image: string, offset: number, count: number): Promise<void> {
  const reads = Array.from({ length: count }, (_, k) => [
    "-c",
    `read -q -P ${(k % 250) + 1} ${offset + k * PROMISE_BYTES} ${PROMISE_BYTES}`,
  ]);
  const said = await run("qemu-io", "-r", "-f", "qcow2", ...reads.flat(), image);
  if (/verification failed|error/i.test(said)) throw new Error(`a flushed write is lost: ${said}`);
}

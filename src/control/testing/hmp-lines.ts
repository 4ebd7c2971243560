import type { Prng } from "../../base/prng.ts";
import type { Words } from "./schema-values.ts";

const COMMANDS = [
  "help",
  "info",
  "info block",
  "info block-jobs",
  "info jobs",
  "info chain",
  "info named-block-nodes",
  "block_stream",
  "block_job_set_speed",
  "block_job_cancel",
  "block_job_pause",
  "block_job_resume",
  "snapshot_blkdev",
  "quit-not",
  "?",
  "block_resize",
  "nbd_server_stop",
  "change",
];
const ODD = [
  "-f",
  "-n",
  "--",
  "-",
  '""',
  '"',
  "\\",
  '"\\x"',
  "0",
  "-1",
  "1M",
  "99999999999999999999",
  "x".repeat(5000),
];

/** A line for people, or what no person would type; without its end. */
export function hmpLine(prng: Prng, words: Words): Buffer {
  const kind = prng.below(10);
  if (kind === 0) return withoutNewlines(prng.fill(Buffer.alloc(prng.below(200))));
  if (kind === 1)
    return Buffer.alloc(prng.pick([65_535, 65_536, 65_537, 200_000]), prng.pick(["x", " ", '"', "é"]));
  const parts = [prng.pick(COMMANDS)];
  for (let count = prng.below(5); count > 0; count--) {
    parts.push(prng.chance(0.7) ? prng.pick(words).replaceAll("\0", "") : prng.pick(ODD));
  }
  return Buffer.from(parts.join(prng.pick([" ", "  ", "\t"])));
}

function withoutNewlines(bytes: Buffer): Buffer {
  for (let at = 0; at < bytes.length; at++) if (bytes[at] === 0x0a) bytes[at] = 0x20;
  return bytes;
}

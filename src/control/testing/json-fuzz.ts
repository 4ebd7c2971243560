// Broken and sound JSON by seed: what comes out does not depend on the pieces that it came in, what is sound
// is read as everybody reads it, and only errors of the world come out.

import { BlockError } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { JsonStream } from "../json-stream.ts";
import { JsonFloat, type JsonValue } from "../json-value.ts";

const WORDS = ["execute", "a", "", "\u0000", "\\", '"', "é", "\u2028", "😀", "x".repeat(300), "__proto__x"];
const MARKS = [
  "{",
  "}",
  "[",
  "]",
  ",",
  ":",
  '"',
  "'",
  "\\",
  "-",
  ".",
  "e",
  "0",
  "\0",
  "\x7f",
  "\xfe",
  "\xff",
];

export class JsonFuzz {
  values = 0;

  async run(seed: number): Promise<void> {
    const prng = new Prng(seed);
    const sound = someValue(prng, 0);
    const text = Buffer.from(JSON.stringify(sound));
    const [read] = outcome(text, () => text.length);
    if (JSON.stringify(plain(read as JsonValue)) !== JSON.stringify(sound)) {
      throw new Error(`${text.toString().slice(0, 200)} was read as something else`);
    }
    this.values++;
    const broken = breakText(text, prng);
    const whole = outcome(broken, () => broken.length);
    const pieces = outcome(broken, () => prng.between(1, 20));
    if (JSON.stringify(whole.map(shown)) !== JSON.stringify(pieces.map(shown))) {
      throw new Error(`in pieces it is something else: ${broken.toString("latin1").slice(0, 200)}`);
    }
  }
}

function outcome(bytes: Buffer, pieceBytes: () => number): (JsonValue | BlockError)[] {
  const out: (JsonValue | BlockError)[] = [];
  const stream = new JsonStream({
    value: (value) => out.push(value),
    error: (error) => {
      if (!(error instanceof BlockError)) throw error;
      out.push(error);
    },
  });
  for (let at = 0; at < bytes.length; ) {
    const next = Math.min(bytes.length, at + pieceBytes());
    stream.feed(bytes.subarray(at, next));
    at = next;
  }
  stream.end();
  return out;
}

function shown(value: JsonValue | BlockError): unknown {
  return value instanceof BlockError ? value.message : plain(value);
}

function plain(value: JsonValue): unknown {
  if (value instanceof JsonFloat) return Number(value.text);
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, plain(member)]));
}

function someValue(prng: Prng, depth: number): unknown {
  const kind = prng.below(depth < 5 ? 8 : 5);
  if (kind === 0) return prng.pick([null, true, false]);
  if (kind <= 2) return prng.pick([0, 1, -1, 1.5, 2 ** 53, -(2 ** 62), 1e300, 5e-324, prng.below(1e9)]);
  if (kind <= 4) return prng.pick(WORDS);
  if (kind === 5) return Array.from({ length: prng.below(6) }, () => someValue(prng, depth + 1));
  // Names must differ, and a name that is a number would change the order.
  const names = new Set(Array.from({ length: prng.below(5) }, () => prng.pick(WORDS)));
  return Object.fromEntries([...names].map((name) => [name, someValue(prng, depth + 1)]));
}

function breakText(text: Buffer, prng: Prng): Buffer {
  const parts = [text, text];
  for (let count = prng.between(1, 6); count > 0; count--) {
    const index = prng.below(parts.length);
    const part = parts[index]!;
    const at = prng.below(part.length + 1);
    const mark = prng.chance(0.8) ? Buffer.from(prng.pick(MARKS), "latin1") : prng.fill(Buffer.alloc(3));
    const kind = prng.below(4);
    if (kind < 2) parts[index] = Buffer.concat([part.subarray(0, at), mark, part.subarray(at)]);
    else if (kind === 2) parts[index] = Buffer.concat([part.subarray(0, at), part.subarray(at + 1)]);
    else parts.splice(index, 0, mark);
  }
  return Buffer.concat(parts);
}

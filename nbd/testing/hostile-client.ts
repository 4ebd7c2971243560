// Conversations that go wrong, by seed: every option and command, with lengths at each limit, broken fields,
// broken bytes, parts that are missing, doubled or in another order.

import type { Prng } from "../../src/base/prng.ts";
import { concat, OPTS, option, str, u16, u32, u64 } from "./peer.ts";

const KNOWN_OPTIONS = Object.values(OPTS);
const NAMES = ["", "wide", "missing", "n".repeat(4096), "n".repeat(4097), "\0", "\xff", "é"];
const QUERIES = [
  "base:allocation",
  "base:",
  "qemu:allocation-depth",
  "qemu:",
  "x:y",
  "",
  ":",
  "q".repeat(4097),
];
const EDGES = [0, 1, 2, 3, 7, 8, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 65_537];
const LENGTHS = [...EDGES, 1 << 20, (1 << 25) - 1, 1 << 25, (1 << 25) + 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1];
const WIDE_LENGTHS = [
  ...LENGTHS.map(BigInt),
  2n ** 32n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 63n,
  2n ** 64n - 1n,
];

/** The parts of one conversation, as the client sends them. */
export function hostileParts(prng: Prng): Buffer[] {
  const style = prng.below(3);
  const parts = [u32(prng.chance(0.95) ? prng.pick([3, 3, 3, 1]) : prng.pick([0, 2, 4, 0xffffffff]))];
  for (let count = prng.below(6); count > 0; count--) parts.push(someOption(prng));
  if (style > 0) parts.push(option(style === 2 ? OPTS.EXTENDED : OPTS.STRUCTURED));
  if (style > 0 && prng.chance(0.7)) parts.push(contextOption(prng, OPTS.SET_META, true));
  parts.push(entry(prng));
  for (let count = prng.below(12); count > 0; count--) parts.push(someRequest(prng, style === 2));
  if (prng.chance(0.3)) parts.push(request(prng, { type: 2, wide: style === 2, bytes: 0n, offset: 0n }));
  mutate(parts, prng);
  return parts;
}

function entry(prng: Prng): Buffer {
  const name = prng.chance(0.9) ? prng.pick(["", "wide"]) : prng.pick(NAMES);
  if (prng.chance(0.1)) return option(OPTS.EXPORT_NAME, Buffer.from(name));
  return option(OPTS.GO, str(name), u16(2), u16(1), u16(3));
}

function someOption(prng: Prng): Buffer {
  const code = prng.chance(0.9) ? prng.pick(KNOWN_OPTIONS) : prng.below(2 ** 32);
  switch (code) {
    case OPTS.INFO: {
      const infos = Array.from({ length: prng.below(5) }, () => u16(prng.below(6)));
      return option(code, str(prng.pick(NAMES)), u16(infos.length), ...infos);
    }
    case OPTS.LIST_META:
    case OPTS.SET_META:
      return contextOption(prng, code, prng.chance(0.5));
    case OPTS.EXPORT_NAME:
    case OPTS.ABORT:
    case OPTS.GO:
      // These end the negotiation: seldom, so that most conversations get further.
      return prng.chance(0.2) ? option(code, str(prng.pick(NAMES)), u16(0)) : option(OPTS.LIST);
    default: {
      const bytes = prng.chance(0.7) ? 0 : prng.pick([1, 4, 4096, 70_000]);
      return option(code, Buffer.alloc(bytes, prng.below(256)));
    }
  }
}

function contextOption(prng: Prng, code: number, plain: boolean): Buffer {
  const queries = Array.from({ length: plain ? 2 : prng.below(8) }, (_, index) =>
    str(plain ? QUERIES[index * 2]! : prng.pick(QUERIES)),
  );
  const count = prng.chance(0.95) ? queries.length : prng.pick([0, 1, 1000, 2 ** 32 - 1]);
  return option(code, str(plain ? prng.pick(["", "wide"]) : prng.pick(NAMES)), u32(count), ...queries);
}

interface RequestFields {
  readonly type: number;
  readonly wide: boolean;
  readonly bytes: bigint;
  readonly offset: bigint;
  readonly flags?: number;
  readonly payload?: Buffer;
}

/** Cookies are all different, so that replies can be told apart. */
function request(prng: Prng, { type, wide, bytes, offset, flags = 0, payload }: RequestFields): Buffer {
  const head = [u32(wide ? 0x21e41c71 : 0x25609513), u16(flags), u16(type)];
  const cookie = [u32(prng.below(2 ** 32)), u32(prng.below(2 ** 32))];
  const length = wide ? u64(bytes) : u32(Number(BigInt.asUintN(32, bytes)));
  return concat(...head, ...cookie, u64(offset), length, ...(payload === undefined ? [] : [payload]));
}

function someRequest(prng: Prng, wide: boolean): Buffer {
  const type = prng.chance(0.97) ? prng.pick([0, 1, 3, 4, 5, 6, 7]) : prng.below(65536);
  const flags = prng.chance(0.7) ? 0 : prng.chance(0.5) ? prng.below(64) : prng.below(65536);
  const offset = someOffset(prng);
  if (type === 1) {
    const payload = Buffer.alloc(prng.chance(0.9) ? prng.pick(EDGES) : prng.pick([300_000, 1 << 20]), 0x77);
    const bytes = prng.chance(0.97) ? BigInt(payload.length) : prng.pick(WIDE_LENGTHS);
    return request(prng, { type, wide, bytes, offset, flags: wide ? flags | 32 : flags, payload });
  }
  if (type === 7 && wide && prng.chance(0.3)) {
    const ids = Array.from({ length: prng.below(4) }, () => u32(prng.below(4)));
    const payload = concat(u64(prng.pick(WIDE_LENGTHS)), ...ids);
    return request(prng, { type, wide, bytes: BigInt(payload.length), offset, flags: flags | 32, payload });
  }
  const bytes = prng.chance(0.8) ? BigInt(prng.pick(EDGES)) : prng.pick(WIDE_LENGTHS);
  return request(prng, { type, wide, bytes, offset, flags });
}

function someOffset(prng: Prng): bigint {
  if (prng.chance(0.85)) return BigInt(prng.below(1 << 20));
  const size = 2n ** 20n;
  return prng.pick([size - 1n, size, size + 1n, 2n ** 32n, 2n ** 40n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]);
}

// --- what goes wrong ---------------------------------------------------------------------------------------

function mutate(parts: Buffer[], prng: Prng): void {
  if (prng.chance(0.3)) return;
  for (let count = prng.between(1, 4); count > 0; count--) {
    const at = prng.below(parts.length);
    switch (prng.below(8)) {
      case 0:
        parts.splice(at, 1);
        if (parts.length === 0) parts.push(Buffer.alloc(0));
        break;
      case 1:
        parts.splice(at, 0, parts[prng.below(parts.length)]!);
        break;
      case 2: {
        const other = prng.below(parts.length);
        [parts[at], parts[other]] = [parts[other]!, parts[at]!];
        break;
      }
      case 3:
        parts[at] = parts[at]!.subarray(0, prng.below(parts[at]!.length + 1));
        break;
      case 4:
        parts.splice(at, 0, prng.fill(Buffer.alloc(prng.between(1, 600))));
        break;
      default:
        breakBytes(parts, at, prng);
    }
  }
}

function breakBytes(parts: Buffer[], index: number, prng: Prng): void {
  const part = Buffer.from(parts[index]!);
  parts[index] = part;
  if (part.length === 0) return;
  const at = prng.chance(0.8) ? prng.below(Math.min(40, part.length)) : prng.below(part.length);
  const kind = prng.below(4);
  if (kind === 0) part[at] = prng.pick([0, 1, 0x7f, 0x80, 0xff]);
  else if (kind === 1) part[at]! ^= 1 << prng.below(8);
  else if (at + 4 <= part.length) part.writeUInt32BE(prng.pick(LENGTHS), at);
}

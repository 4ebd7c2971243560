// What a server refuses before it asks the backend. A pure function of the request and the terms of the
// session.

import { NbdErrno } from "../src/base/errors.ts";
import { Cmd, CmdFlags, COMMAND_NAMES, type RequestHeader, Style } from "./protocol.ts";

/** What the answer depends on beside the request. */
export interface Terms {
  readonly style: Style;
  readonly size: number;
  readonly readOnly: boolean;
  /** Offsets and lengths must be multiples of this power of two. */
  readonly blockMinimum: number;
  readonly payloadMax: number;
  /** How many meta contexts were selected. */
  readonly contextCount: number;
}

export interface Refusal {
  readonly errno: number;
  readonly message: string;
}

const { FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN } = CmdFlags;

/** Flags that each command knows, by type. FUA is accepted on all, as the protocol wants. */
const FLAGS_KNOWN: readonly number[] = [
  FUA | DF,
  FUA,
  FUA,
  FUA,
  FUA,
  FUA,
  FUA | NO_HOLE | FAST_ZERO,
  FUA | REQ_ONE,
];
/** Commands that take a payload on an extended session. */
const TAKES_PAYLOAD: readonly boolean[] = [false, true, false, false, false, false, false, true];
const WRITES: readonly boolean[] = [false, true, false, false, true, false, true, false];
/** Whether the length field names a range of the export. */
const HAS_RANGE: readonly boolean[] = [true, true, false, false, true, true, true, true];

/**
 * How many payload bytes follow the header; `Infinity` for 2**53 and more. A WRITE always has a payload: QEMU
 * 10 as a client leaves the payload flag out on extended sessions, and data must never be taken for requests.
 */
export function payloadBytesOf(request: RequestHeader, style: Style): number {
  if (request.type === Cmd.WRITE) return request.bytes;
  return style === Style.EXTENDED && (request.flags & PAYLOAD_LEN) !== 0 ? request.bytes : 0;
}

/** Why the request is refused; undefined when the backend may see it. */
export function refusalOf(request: RequestHeader, terms: Terms): Refusal | undefined {
  const { type, flags } = request;
  if (type >= FLAGS_KNOWN.length) return invalid(`command ${type} is not known`);
  let known = FLAGS_KNOWN[type]!;
  if (terms.style === Style.EXTENDED && TAKES_PAYLOAD[type]) known |= PAYLOAD_LEN;
  if (terms.style === Style.SIMPLE) known &= ~DF;
  if ((flags & ~known) !== 0) return badFlags(request, flags & ~known);
  if (WRITES[type] && terms.readOnly) {
    return { errno: NbdErrno.EPERM, message: `${nameOf(request)} refused: the export is read-only` };
  }
  if (!HAS_RANGE[type]) return undefined;
  if (type === Cmd.BLOCK_STATUS && (flags & PAYLOAD_LEN) !== 0) return filterRefusalOf(request.bytes, terms);
  return rangeRefusalOf(request, request.bytes, terms);
}

/** Why the range [request.offset, +bytes) is refused. */
export function rangeRefusalOf(request: RequestHeader, bytes: number, terms: Terms): Refusal | undefined {
  const { type, offset } = request;
  // Also false where the sum would wrap on the wire: 2**53 and more were decoded as Infinity.
  if (!(offset + bytes <= terms.size)) {
    const errno = type === Cmd.WRITE || type === Cmd.WRITE_ZEROES ? NbdErrno.ENOSPC : NbdErrno.EINVAL;
    const range = `${bytes} bytes at offset ${offset}`;
    return { errno, message: `${nameOf(request)} of ${range} ends past the export's ${terms.size} bytes` };
  }
  const mask = terms.blockMinimum;
  if (mask > 1 && (offset % mask !== 0 || bytes % mask !== 0)) {
    return invalid(`${nameOf(request)} must be aligned to ${mask} bytes`);
  }
  if (type === Cmd.READ && bytes > terms.payloadMax) {
    return invalid(`READ of ${bytes} bytes is above the maximum payload of ${terms.payloadMax} bytes`);
  }
  if (type === Cmd.BLOCK_STATUS) {
    if (terms.contextCount === 0) return invalid("BLOCK_STATUS without a selected meta context");
    if (bytes === 0) return invalid("BLOCK_STATUS needs a length above zero");
  }
  return undefined;
}

export function nameOf(request: RequestHeader): string {
  return COMMAND_NAMES[request.type] ?? `command ${request.type}`;
}

/**
 * A BLOCK_STATUS payload is a range length and one to all context ids; its range is checked when it is here.
 */
function filterRefusalOf(payloadBytes: number, terms: Terms): Refusal | undefined {
  const idCount = (payloadBytes - 8) / 4;
  if (idCount >= 1 && idCount <= terms.contextCount && Number.isInteger(idCount)) return undefined;
  return invalid(
    `BLOCK_STATUS payload of ${payloadBytes} bytes does not name 1 to ${terms.contextCount} contexts`,
  );
}

function badFlags(request: RequestHeader, flags: number): Refusal {
  return invalid(`${nameOf(request)} does not know the flags 0x${flags.toString(16)}`);
}

function invalid(message: string): Refusal {
  return { errno: NbdErrno.EINVAL, message };
}

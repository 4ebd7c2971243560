// The NBD wire format: every number and every byte layout of the protocol, each written once next to its
// decode. Source: NetworkBlockDevice/nbd doc/proto.md and its extended-headers branch. Names are the
// protocol's. All integers are big-endian. 64-bit values travel as two 32-bit halves: no BigInt on the hot
// path.

import { readU64OrInfinity, writeU64 } from "../src/base/bytes.ts";
import { KiB, MiB } from "../src/base/units.ts";

/** "NBDMAGIC" and "IHAVEOPT" as halves. */
export const NBD_MAGIC = [0x4e42444d, 0x41474943] as const;
export const OPTION_MAGIC = [0x49484156, 0x454f5054] as const;
export const OPTION_REPLY_MAGIC = [0x0003e889, 0x045565a9] as const;

/** Handshake flags of the server, and the client's answer to them: the same bits. */
export const HandshakeFlags = { FIXED_NEWSTYLE: 1, NO_ZEROES: 2 } as const;
export const HANDSHAKE_FLAGS_KNOWN = HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES;

export const Opt = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

const REP_ERROR = 0x8000_0000;
export const Rep = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: REP_ERROR + 1,
  ERR_POLICY: REP_ERROR + 2,
  ERR_INVALID: REP_ERROR + 3,
  ERR_PLATFORM: REP_ERROR + 4,
  ERR_TLS_REQD: REP_ERROR + 5,
  ERR_UNKNOWN: REP_ERROR + 6,
  ERR_SHUTDOWN: REP_ERROR + 7,
  ERR_BLOCK_SIZE_REQD: REP_ERROR + 8,
  ERR_TOO_BIG: REP_ERROR + 9,
  ERR_EXT_HEADER_REQD: REP_ERROR + 10,
} as const;

export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

export const TransmissionFlags = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

export const Cmd = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;
export const COMMAND_NAMES = [
  "READ",
  "WRITE",
  "DISC",
  "FLUSH",
  "TRIM",
  "CACHE",
  "WRITE_ZEROES",
  "BLOCK_STATUS",
] as const;

export const CmdFlags = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

export const CHUNK_DONE = 1;
export const Chunk = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;
/** Set in every chunk type that is an error. */
export const CHUNK_ERROR_BIT = 0x8000;

/**
 * What requests and replies look like, as agreed in the handshake. Ordered: each style can do what those
 * below can.
 */
export const Style = { SIMPLE: 0, STRUCTURED: 1, EXTENDED: 2 } as const;
export type Style = (typeof Style)[keyof typeof Style];

export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

export const COMPACT_REQUEST_BYTES = 28;
export const EXTENDED_REQUEST_BYTES = 32;
export const SIMPLE_REPLY_BYTES = 16;
export const STRUCTURED_CHUNK_BYTES = 20;
export const EXTENDED_CHUNK_BYTES = 32;
export const OPTION_HEADER_BYTES = 16;
export const OPTION_REPLY_BYTES = 20;

/** Longest string of the protocol: names, descriptions, queries, messages. */
export const STRING_BYTES_MAX = 4096;
/**
 * Largest payload of a request or of a data chunk that this server takes or makes; what it advertises at
 * most.
 */
export const PAYLOAD_BYTES_MAX = 32 * MiB;
/** A structured read of this size with DF may never be refused for its size. */
export const DF_BYTES_ALWAYS = 64 * KiB;

/** One decoded request header; reused for every request of a session. */
export class RequestHeader {
  magicOk = false;
  flags = 0;
  type = 0;
  /** The cookie's halves as signed 32-bit integers: only ever echoed, so the sign does not matter. */
  cookieHigh = 0;
  cookieLow = 0;
  /** Offset as sent, for the echo in extended replies. */
  offsetHigh = 0;
  offsetLow = 0;
  /** `Infinity` when 2**53 or more. */
  offset = 0;
  /** Length field: of the payload if there is one, else of the range; `Infinity` when 2**53 or more. */
  bytes = 0;

  copyFrom(other: RequestHeader): void {
    this.flags = other.flags;
    this.type = other.type;
    this.cookieHigh = other.cookieHigh;
    this.cookieLow = other.cookieLow;
    this.offsetHigh = other.offsetHigh;
    this.offsetLow = other.offsetLow;
    this.offset = other.offset;
    this.bytes = other.bytes;
  }
}

export function requestBytes(style: Style): number {
  return style === Style.EXTENDED ? EXTENDED_REQUEST_BYTES : COMPACT_REQUEST_BYTES;
}

// Request:  0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 offset u64
//           24 length (compact u32, extended u64)
export function decodeRequest(buffer: Buffer, at: number, style: Style, into: RequestHeader): void {
  const extended = style === Style.EXTENDED;
  into.magicOk = buffer.readInt32BE(at) === (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
  into.flags = buffer.readUInt16BE(at + 4);
  into.type = buffer.readUInt16BE(at + 6);
  into.cookieHigh = buffer.readInt32BE(at + 8);
  into.cookieLow = buffer.readInt32BE(at + 12);
  into.offsetHigh = buffer.readInt32BE(at + 16);
  into.offsetLow = buffer.readInt32BE(at + 20);
  into.offset = readU64OrInfinity(buffer, at + 16);
  into.bytes = extended ? readU64OrInfinity(buffer, at + 24) : buffer.readUInt32BE(at + 24);
}

/** Writes a request header; returns its length. Cookies are below 2**53. */
export function encodeRequest(
  buffer: Buffer,
  at: number,
  style: Style,
  request: { flags: number; type: number; cookie: number; offset: number; bytes: number },
): number {
  const extended = style === Style.EXTENDED;
  buffer.writeInt32BE(extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC, at);
  buffer.writeUInt16BE(request.flags, at + 4);
  buffer.writeUInt16BE(request.type, at + 6);
  writeU64(buffer, request.cookie, at + 8);
  writeU64(buffer, request.offset, at + 16);
  if (extended) writeU64(buffer, request.bytes, at + 24);
  else buffer.writeUInt32BE(request.bytes, at + 24);
  return requestBytes(style);
}

// Simple reply:  0 magic u32 | 4 error u32 | 8 cookie u64, then the data of a successful READ
export function encodeSimpleReply(buffer: Buffer, at: number, error: number, request: RequestHeader): void {
  buffer.writeInt32BE(SIMPLE_REPLY_MAGIC, at);
  buffer.writeInt32BE(error, at + 4);
  buffer.writeInt32BE(request.cookieHigh, at + 8);
  buffer.writeInt32BE(request.cookieLow, at + 12);
}

// Structured chunk:  0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 payload length u32
// Extended chunk:    0 magic u32 | 4 flags u16 | 6 type u16 | 8 cookie u64 | 16 request's offset u64 | 24 u64
/** Writes a chunk header; returns its length. The style is not SIMPLE; `payloadBytes` is below 2**32. */
export function encodeChunk(
  buffer: Buffer,
  at: number,
  style: Style,
  request: RequestHeader,
  chunk: number,
  done: boolean,
  payloadBytes: number,
): number {
  const extended = style === Style.EXTENDED;
  buffer.writeInt32BE(extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC, at);
  buffer.writeUInt16BE(done ? CHUNK_DONE : 0, at + 4);
  buffer.writeUInt16BE(chunk, at + 6);
  buffer.writeInt32BE(request.cookieHigh, at + 8);
  buffer.writeInt32BE(request.cookieLow, at + 12);
  if (!extended) {
    buffer.writeUInt32BE(payloadBytes, at + 16);
    return STRUCTURED_CHUNK_BYTES;
  }
  buffer.writeInt32BE(request.offsetHigh, at + 16);
  buffer.writeInt32BE(request.offsetLow, at + 20);
  buffer.writeInt32BE(0, at + 24);
  buffer.writeUInt32BE(payloadBytes, at + 28);
  return EXTENDED_CHUNK_BYTES;
}

export function chunkBytes(style: Style): number {
  return style === Style.EXTENDED ? EXTENDED_CHUNK_BYTES : STRUCTURED_CHUNK_BYTES;
}

/** One decoded reply header, simple reply or chunk; what the client side reads. */
export class ReplyHeader {
  magic = 0;
  /** Simple replies only. */
  error = 0;
  done = false;
  chunk = 0;
  cookie = 0;
  payloadBytes = 0;
}

/** Length of the reply header that begins with `magic`, or undefined when `style` knows no such magic. */
export function replyBytes(magic: number, style: Style): number | undefined {
  if (magic === EXTENDED_REPLY_MAGIC && style === Style.EXTENDED) return EXTENDED_CHUNK_BYTES;
  if (magic === STRUCTURED_REPLY_MAGIC && style === Style.STRUCTURED) return STRUCTURED_CHUNK_BYTES;
  return magic === SIMPLE_REPLY_MAGIC && style !== Style.EXTENDED ? SIMPLE_REPLY_BYTES : undefined;
}

/** Decodes the header whose magic {@link replyBytes} knew. */
export function decodeReply(buffer: Buffer, at: number, into: ReplyHeader): void {
  into.magic = buffer.readInt32BE(at);
  into.cookie = readU64OrInfinity(buffer, at + 8);
  if (into.magic === SIMPLE_REPLY_MAGIC) {
    into.error = buffer.readUInt32BE(at + 4);
    into.done = true;
    into.chunk = Chunk.NONE;
    into.payloadBytes = 0;
    return;
  }
  into.error = 0;
  into.done = (buffer.readUInt16BE(at + 4) & CHUNK_DONE) !== 0;
  into.chunk = buffer.readUInt16BE(at + 6);
  into.payloadBytes =
    into.magic === EXTENDED_REPLY_MAGIC ? readU64OrInfinity(buffer, at + 24) : buffer.readUInt32BE(at + 16);
}

// Option:  0 magic u64 | 8 option u32 | 12 data length u32 | 16 data
export function encodeOption(option: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(OPTION_HEADER_BYTES);
  header.writeUInt32BE(OPTION_MAGIC[0], 0);
  header.writeUInt32BE(OPTION_MAGIC[1], 4);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

// Option reply:  0 magic u64 | 8 option u32 | 12 reply type u32 | 16 data length u32 | 20 data
export function encodeOptionReply(option: number, reply: number, data: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(OPTION_REPLY_BYTES);
  header.writeUInt32BE(OPTION_REPLY_MAGIC[0], 0);
  header.writeUInt32BE(OPTION_REPLY_MAGIC[1], 4);
  header.writeUInt32BE(option, 8);
  header.writeUInt32BE(reply, 12);
  header.writeUInt32BE(data.length, 16);
  return Buffer.concat([header, data]);
}

/** A string with its 32-bit length before it, as LIST replies and queries carry it. */
export function encodeString32(text: string | Buffer): Buffer {
  const bytes = typeof text === "string" ? Buffer.from(text) : text;
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}

/**
 * `text` as UTF-8 of at most `bytesMax` bytes, cut between characters, without NUL: what the protocol calls a
 * string.
 */
export function boundedUtf8(text: string, bytesMax: number = STRING_BYTES_MAX): Buffer {
  const bytes = Buffer.from(text.replaceAll("\0", " "));
  if (bytes.length <= bytesMax) return bytes;
  let end = bytesMax;
  while (end > 0 && (bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

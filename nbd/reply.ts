// Builds the replies of one session in its agreed style, in the outgoing queue.

import { writeU64 } from "../src/base/bytes.ts";
import { NbdErrno } from "../src/base/errors.ts";
import type { LentData } from "./backend.ts";
import type { ExtentList, ReadPiece } from "./extent-list.ts";
import type { HeldBuffer } from "./held-buffer.ts";
import type { Outgoing } from "./outgoing.ts";
import {
  boundedUtf8,
  Chunk,
  Cmd,
  CmdFlags,
  chunkBytes,
  encodeChunk,
  encodeSimpleReply,
  type RequestHeader,
  SIMPLE_REPLY_BYTES,
  Style,
} from "./protocol.ts";

/** Error messages are for people: a few lines, whatever the backend wrote. */
const MESSAGE_BYTES_MAX = 512;

export class Replies {
  readonly #out: Outgoing;
  readonly #style: Style;
  readonly #chunkBytes: number;
  /** What precedes the data of a READ reply that is one piece. */
  readonly readHeadBytes: number;

  constructor(out: Outgoing, style: Style) {
    this.#out = out;
    this.#style = style;
    this.#chunkBytes = chunkBytes(style);
    this.readHeadBytes = style === Style.SIMPLE ? SIMPLE_REPLY_BYTES : this.#chunkBytes + 8;
  }

  /** Success of anything but a READ with data. */
  ok(request: RequestHeader): void {
    const simple =
      this.#style === Style.SIMPLE || (this.#style === Style.STRUCTURED && request.type !== Cmd.READ);
    if (!simple) {
      this.#chunk(request, Chunk.NONE, true, 0);
      return;
    }
    const block = this.#out.reserve(SIMPLE_REPLY_BYTES);
    encodeSimpleReply(block.buffer, this.#out.at, 0, request);
    this.#out.commit(SIMPLE_REPLY_BYTES);
  }

  error(request: RequestHeader, errno: number, message: string): void {
    const code = errnoFor(request, errno);
    if (this.#style === Style.SIMPLE) {
      const block = this.#out.reserve(SIMPLE_REPLY_BYTES);
      encodeSimpleReply(block.buffer, this.#out.at, code, request);
      this.#out.commit(SIMPLE_REPLY_BYTES);
      return;
    }
    // Error chunk:  0 error u32 | 4 message length u16 | 6 message
    const text = boundedUtf8(message, MESSAGE_BYTES_MAX);
    this.#chunk(request, Chunk.ERROR, true, 6 + text.length);
    const block = this.#out.reserve(6 + text.length);
    block.buffer.writeUInt32BE(code, this.#out.at);
    block.buffer.writeUInt16BE(text.length, this.#out.at + 4);
    text.copy(block.buffer, this.#out.at + 6);
    this.#out.commit(6 + text.length);
  }

  /** Writes the {@link readHeadBytes} before data of `request.bytes` bytes. */
  encodeReadHead(buffer: Buffer, at: number, request: RequestHeader): void {
    if (this.#style === Style.SIMPLE) {
      encodeSimpleReply(buffer, at, 0, request);
      return;
    }
    this.#encodeDataHead(buffer, at, request, 0, request.bytes, true);
  }

  /** Queues a READ reply whose data is in a block of its own; the caller's hold passes on. */
  readFrom(request: RequestHeader, block: HeldBuffer, at: number): void {
    const head = this.#out.reserve(this.readHeadBytes);
    this.encodeReadHead(head.buffer, this.#out.at, request);
    this.#out.commit(this.readHeadBytes);
    this.#out.append(block, at, request.bytes);
  }

  /** Queues a READ reply whose data is lent. */
  readLent(request: RequestHeader, lent: LentData): void {
    const head = this.#out.reserve(this.readHeadBytes);
    this.encodeReadHead(head.buffer, this.#out.at, request);
    this.#out.commit(this.readHeadBytes);
    this.#out.appendLent(lent);
  }

  /** Queues a READ reply in pieces; `block` holds the data at its place and the caller's hold passes on. */
  readPieces(request: RequestHeader, block: HeldBuffer | undefined, pieces: readonly ReadPiece[]): void {
    const last = pieces.at(-1);
    for (const piece of pieces) {
      if (piece.hole) {
        this.#hole(request, piece, piece === last);
        continue;
      }
      const head = this.#out.reserve(this.readHeadBytes);
      this.#encodeDataHead(head.buffer, this.#out.at, request, piece.at, piece.bytes, piece === last);
      this.#out.commit(this.readHeadBytes);
      this.#out.append(block!.hold(), piece.at, piece.bytes);
    }
    block?.release();
  }

  // Block status chunk:     0 context id u32 | 4 { length u32, flags u32 } ...
  // Extended status chunk:  0 context id u32 | 4 count u32 | 8 { length u64, flags u64 } ...
  status(request: RequestHeader, contextId: number, extents: ExtentList, done: boolean): void {
    const extended = this.#style === Style.EXTENDED;
    const bytes = extended ? 8 + 16 * extents.count : 4 + 8 * extents.count;
    this.#chunk(request, extended ? Chunk.BLOCK_STATUS_EXT : Chunk.BLOCK_STATUS, done, bytes);
    const { buffer } = this.#out.reserve(bytes);
    let at = this.#out.at;
    buffer.writeUInt32BE(contextId, at);
    if (extended) buffer.writeUInt32BE(extents.count, at + 4);
    at += extended ? 8 : 4;
    for (let i = 0; i < extents.count; i++) {
      if (extended) {
        writeU64(buffer, extents.lengths[i]!, at);
        writeU64(buffer, extents.flags[i]!, at + 8);
        at += 16;
      } else {
        buffer.writeUInt32BE(extents.lengths[i]!, at);
        buffer.writeUInt32BE(extents.flags[i]!, at + 4);
        at += 8;
      }
    }
    this.#out.commit(bytes);
  }

  // Offset data chunk:  0 offset u64 | 8 data
  #encodeDataHead(
    buffer: Buffer,
    at: number,
    request: RequestHeader,
    from: number,
    bytes: number,
    done: boolean,
  ): void {
    encodeChunk(buffer, at, this.#style, request, Chunk.OFFSET_DATA, done, 8 + bytes);
    writeU64(buffer, request.offset + from, at + this.#chunkBytes);
  }

  // Offset hole chunk:  0 offset u64 | 8 length u32
  #hole(request: RequestHeader, piece: ReadPiece, done: boolean): void {
    this.#chunk(request, Chunk.OFFSET_HOLE, done, 12);
    const { buffer } = this.#out.reserve(12);
    writeU64(buffer, request.offset + piece.at, this.#out.at);
    buffer.writeUInt32BE(piece.bytes, this.#out.at + 8);
    this.#out.commit(12);
  }

  #chunk(request: RequestHeader, chunk: number, done: boolean, payloadBytes: number): void {
    const block = this.#out.reserve(this.#chunkBytes);
    encodeChunk(block.buffer, this.#out.at, this.#style, request, chunk, done, payloadBytes);
    this.#out.commit(this.#chunkBytes);
  }
}

const ERRNOS: ReadonlySet<number> = new Set(Object.values(NbdErrno));

/** Keeps to the protocol: its eight errnos only, ENOTSUP for FAST_ZERO and EOVERFLOW for DF only. */
function errnoFor(request: RequestHeader, errno: number): number {
  if (!ERRNOS.has(errno)) return NbdErrno.EIO;
  if (errno === NbdErrno.ENOTSUP && (request.flags & CmdFlags.FAST_ZERO) === 0) return NbdErrno.EINVAL;
  if (errno === NbdErrno.EOVERFLOW && (request.flags & CmdFlags.DF) === 0) return NbdErrno.EINVAL;
  return errno;
}

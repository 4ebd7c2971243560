// The client's side of transmission: bytes in, chunks out, data straight into the buffers of the requests.

import { readU64OrInfinity } from "../src/base/bytes.ts";
import { BlockError } from "../src/base/errors.ts";
import { MiB } from "../src/base/units.ts";
import {
  CHUNK_ERROR_BIT,
  Chunk,
  decodeReply,
  EXTENDED_CHUNK_BYTES,
  ReplyHeader,
  replyBytes,
  SIMPLE_REPLY_MAGIC,
  type Style,
} from "./protocol.ts";

/** Payload of a status or error chunk that a client takes: 512 Ki extents. */
const GATHERED_BYTES_MAX = 8 * MiB;

/** One request on the client's side, as the parser sees it. */
export interface ReplySlot {
  /** READ: where the data goes; the request's range is [offset, offset + bytes). */
  readonly buffer: Buffer | undefined;
  readonly at: number;
  readonly offset: number;
  readonly bytes: number;
  /** READ: bytes that came so far. */
  filledBytes: number;
}

export interface ReplyEvents<Slot extends ReplySlot> {
  /** The request with this cookie, or undefined when there is none. */
  slot(cookie: number): Slot | undefined;
  /** A status chunk; `data` is valid during the call. */
  status(slot: Slot, chunk: number, data: Buffer): void;
  /** An error of the server. */
  error(slot: Slot, errno: number, message: string): void;
  /** The last part of the reply is here. */
  done(slot: Slot, cookie: number): void;
}

export class ReplyParser<Slot extends ReplySlot> {
  readonly #style: Style;
  readonly #events: ReplyEvents<Slot>;
  readonly #header = new ReplyHeader();
  readonly #head = Buffer.alloc(EXTENDED_CHUNK_BYTES);
  #headBytes = 0;
  #headWanted = 4;
  #slot: Slot | undefined;
  /** Payload that is gathered before it is looked at: status, errors, the start of data and hole chunks. */
  #gathered: Buffer = Buffer.alloc(0);
  #gatheredBytes = 0;
  /** Data on its way to the request's buffer. */
  #dataAt = 0;
  #dataBytes = 0;

  constructor(style: Style, events: ReplyEvents<Slot>) {
    this.#style = style;
    this.#events = events;
  }

  /** Where the rest of a large piece of data should land. */
  target(): Buffer | undefined {
    if (this.#dataBytes === 0) return undefined;
    return this.#slot!.buffer!.subarray(this.#dataAt, this.#dataAt + this.#dataBytes);
  }

  filled(bytes: number): void {
    this.#dataAt += bytes;
    this.#dataBytes -= bytes;
    if (this.#dataBytes === 0) this.#chunkComplete();
  }

  /** Takes bytes [at, end). @throws BlockError EINVAL when the server breaks the protocol. */
  consume(buffer: Buffer, at: number, end: number): void {
    let next = at;
    while (next < end) {
      if (this.#dataBytes > 0) {
        const taken = Math.min(end - next, this.#dataBytes);
        buffer.copy(this.#slot!.buffer!, this.#dataAt, next, next + taken);
        next += taken;
        this.filled(taken);
      } else if (this.#gatheredBytes < this.#gathered.length) {
        const taken = Math.min(end - next, this.#gathered.length - this.#gatheredBytes);
        buffer.copy(this.#gathered, this.#gatheredBytes, next, next + taken);
        next += taken;
        this.#gatheredBytes += taken;
        if (this.#gatheredBytes === this.#gathered.length) this.#gatheredComplete();
      } else {
        const taken = Math.min(end - next, this.#headWanted - this.#headBytes);
        buffer.copy(this.#head, this.#headBytes, next, next + taken);
        next += taken;
        this.#headBytes += taken;
        if (this.#headBytes === this.#headWanted) this.#headComplete();
      }
    }
  }

  #headComplete(): void {
    const bytes = replyBytes(this.#head.readInt32BE(0), this.#style);
    if (bytes === undefined) throw broken("a reply without a magic that was agreed on");
    if (this.#headBytes < bytes) {
      this.#headWanted = bytes;
      return;
    }
    this.#headBytes = 0;
    this.#headWanted = 4;
    const header = this.#header;
    decodeReply(this.#head, 0, header);
    const slot = this.#events.slot(header.cookie);
    if (slot === undefined) throw broken("a reply to a request that was not made");
    this.#slot = slot;
    if (header.magic === SIMPLE_REPLY_MAGIC) this.#simpleReply(slot);
    else this.#beginChunk(slot);
  }

  #simpleReply(slot: Slot): void {
    if (this.#header.error !== 0) this.#events.error(slot, this.#header.error, "");
    else if (slot.buffer !== undefined) this.#expectData(slot, 0, slot.bytes);
    if (this.#dataBytes === 0) this.#chunkComplete();
  }

  #beginChunk(slot: Slot): void {
    const { chunk, payloadBytes } = this.#header;
    let gather = payloadBytes;
    if (chunk === Chunk.OFFSET_DATA) {
      if (slot.buffer === undefined || payloadBytes < 9) throw broken("data that was not asked for");
      gather = 8;
    } else if (chunk === Chunk.OFFSET_HOLE && (slot.buffer === undefined || payloadBytes !== 12)) {
      throw broken("a hole chunk of a wrong form");
    }
    if (gather > GATHERED_BYTES_MAX) throw broken(`a chunk of ${payloadBytes} bytes`);
    this.#gathered = Buffer.allocUnsafe(gather);
    this.#gatheredBytes = 0;
    if (gather === 0) this.#gatheredComplete();
  }

  #gatheredComplete(): void {
    const slot = this.#slot!;
    const { chunk, payloadBytes } = this.#header;
    const data = this.#gathered;
    this.#gathered = data.subarray(0, 0);
    this.#gatheredBytes = 0;
    if (chunk === Chunk.OFFSET_DATA) {
      this.#expectData(slot, readU64OrInfinity(data, 0) - slot.offset, payloadBytes - 8);
      return;
    }
    if (chunk === Chunk.OFFSET_HOLE) this.#hole(slot, readU64OrInfinity(data, 0), data.readUInt32BE(8));
    else if ((chunk & CHUNK_ERROR_BIT) !== 0) this.#error(slot, data);
    else if (chunk === Chunk.BLOCK_STATUS || chunk === Chunk.BLOCK_STATUS_EXT) {
      this.#events.status(slot, chunk, data);
    } else if (chunk !== Chunk.NONE) throw broken(`a chunk of unknown type ${chunk}`);
    this.#chunkComplete();
  }

  #hole(slot: Slot, offset: number, bytes: number): void {
    this.#expectData(slot, offset - slot.offset, bytes);
    slot.buffer!.fill(0, this.#dataAt, this.#dataAt + this.#dataBytes);
    this.#dataBytes = 0;
  }

  #error(slot: Slot, data: Buffer): void {
    if (data.length < 6) throw broken("an error chunk that is too short");
    const text = data.toString("utf8", 6, Math.min(data.length, 6 + data.readUInt16BE(4)));
    this.#events.error(slot, data.readUInt32BE(0), text);
  }

  /** Data for [from, from + bytes) of the request; `from` counts from its start. */
  #expectData(slot: Slot, from: number, bytes: number): void {
    if (!(from >= 0 && from + bytes <= slot.bytes) || slot.filledBytes + bytes > slot.bytes) {
      throw broken("data outside of the range that was asked for, or twice");
    }
    slot.filledBytes += bytes;
    this.#dataAt = slot.at + from;
    this.#dataBytes = bytes;
  }

  #chunkComplete(): void {
    const slot = this.#slot!;
    this.#slot = undefined;
    if (this.#header.done) this.#events.done(slot, this.#header.cookie);
  }
}

function broken(what: string): BlockError {
  return new BlockError("EINVAL", `the NBD server broke the protocol: ${what}`);
}

// Carries out the requests of one session that passed the checks.
//   1. A backend that finishes at once is answered at once: no object, closure or promise is made.
//   2. A backend that hands up a promise gets a pooled PendingRequest, which owns what the backend borrowed
//      and ends exactly once: by `completed` or by `failed`.
//   3. What ends after the connection is gone gives its buffers back and says nothing.

import type { Completion } from "../src/base/completion.ts";
import { settleAll } from "../src/base/completion.ts";
import { errorMessage, NbdErrno } from "../src/base/errors.ts";
import { KiB } from "../src/base/units.ts";
import type { LentData, NbdBackend } from "./backend.ts";
import {
  type ExtentList,
  giveExtentList,
  type ReadPiece,
  readPieces,
  STATUS_EXTENTS_MAX,
  takeExtentList,
} from "./extent-list.ts";
import { HeldBuffer } from "./held-buffer.ts";
import type { Outgoing } from "./outgoing.ts";
import { Cmd, CmdFlags, type RequestHeader, Style } from "./protocol.ts";
import type { Replies } from "./reply.ts";
import { giveRequest, type PendingRequest, type RequestOwner, takeRequest } from "./request.ts";
import { nameOf } from "./request-check.ts";

/** Reads up to this size are built in the arena, behind their head; larger ones get a buffer of their own. */
const ARENA_READ_BYTES_MAX = 32 * KiB;
/**
 * Pending reads that may keep an arena block each; bounds what slow reads pin (16 * 256 KiB per connection).
 */
const DETACHED_READS_MAX = 16;
/** Pending writes that may keep a receive block each; more are copied first. */
const IN_PLACE_WRITES_MAX = 16;
/** Structured reads from this size on are looked at for holes. */
const HOLE_READ_BYTES_MIN = 64 * KiB;
/** Reads from this size on may be answered with lent data. */
const LENT_READ_BYTES_MIN = 64 * KiB;
/** Pieces of one read; beyond them the rest is sent as data. */
const READ_EXTENTS_MAX = 16;
/** A backend whose status needed a promise is not asked again for this many large reads. */
const SLOW_STATUS_PAUSE = 256;

/** Options of writeZeroes by the three flags that make them: FUA, NO_HOLE, FAST_ZERO. */
const ZERO_OPTIONS = Array.from({ length: 8 }, (_, bits) => ({
  fua: (bits & 1) !== 0,
  mayUnmap: (bits & 2) === 0,
  fastOnly: (bits & 4) !== 0,
}));

export type FailureListener = (request: RequestHeader, error: unknown) => void;

export class Commands implements RequestOwner {
  /** Requests that wait for a promise, and the payload bytes that they borrow or own. */
  inFlight = 0;
  inFlightBytes = 0;
  /** The connection is gone: end silently. */
  gone = false;
  readonly #backend: NbdBackend;
  readonly #contexts: readonly string[];
  readonly #allContextIds: readonly number[];
  readonly #out: Outgoing;
  readonly #replies: Replies;
  readonly #findHoles: boolean;
  readonly #ended: () => void;
  readonly #failed: FailureListener;
  readonly #mayLend: () => boolean;
  #detachedReads = 0;
  #inPlaceWrites = 0;
  #statusPause = 0;

  /**
   * `contexts` are the selected ones; a context's id is its index. `ended` is called when a pending request
   * ended, `failed` when the backend failed one; `mayLend` is asked whether a reply may be lent data.
   */
  constructor(
    backend: NbdBackend,
    contexts: readonly string[],
    style: Style,
    io: {
      out: Outgoing;
      replies: Replies;
      ended: () => void;
      failed: FailureListener;
      mayLend: () => boolean;
    },
  ) {
    this.#backend = backend;
    this.#contexts = contexts;
    this.#allContextIds = contexts.map((_, id) => id);
    this.#out = io.out;
    this.#replies = io.replies;
    this.#ended = io.ended;
    this.#failed = io.failed;
    this.#mayLend = io.mayLend;
    this.#findHoles = style !== Style.SIMPLE;
  }

  /**
   * Carries out a request. A WRITE's payload lies at `at` in `payload`, which the caller holds during the
   * call; `inPlace` says that it is a receive block.
   */
  start(request: RequestHeader, payload: HeldBuffer | undefined, at: number, inPlace: boolean): void {
    try {
      this.#start(request, payload, at, inPlace);
    } catch (error) {
      this.#replyError(request, error);
    }
  }

  /** BLOCK_STATUS of the contexts with these ids; undefined: of all. */
  startStatus(request: RequestHeader, bytes: number, contextIds: readonly number[] | undefined): void {
    const ids = contextIds ?? this.#allContextIds;
    const lists: ExtentList[] = [];
    try {
      const completion = this.#collectStatus(request, bytes, ids, lists);
      if (completion === undefined) {
        this.#replyStatus(request, ids, lists);
        return;
      }
      const pending = this.#later(request, completion, 0);
      pending.extents = lists;
      pending.contextIds = ids;
    } catch (error) {
      this.#replyError(request, error);
    }
  }

  completed(request: PendingRequest): void {
    this.#settle(request);
    if (this.gone) {
      request.block?.release();
      request.lent?.release();
    } else this.#replyLate(request);
    this.#end(request);
  }

  failed(request: PendingRequest, error: unknown): void {
    this.#settle(request);
    request.block?.release();
    if (!this.gone) this.#replyError(request, error);
    this.#end(request);
  }

  #start(request: RequestHeader, payload: HeldBuffer | undefined, at: number, inPlace: boolean): void {
    const backend = this.#backend;
    const { offset, bytes, flags } = request;
    if (bytes === 0 && request.type !== Cmd.FLUSH) {
      this.#replies.ok(request);
      return;
    }
    const fua = (flags & CmdFlags.FUA) !== 0;
    switch (request.type) {
      case Cmd.READ:
        this.#read(request);
        return;
      case Cmd.WRITE:
        this.#write(request, payload!, at, inPlace);
        return;
      case Cmd.FLUSH:
        this.#finish(request, backend.flush());
        return;
      case Cmd.TRIM:
        this.#finish(request, backend.trim(offset, bytes, fua));
        return;
      case Cmd.CACHE:
        this.#finish(request, backend.cache(offset, bytes));
        return;
      case Cmd.WRITE_ZEROES: {
        const noHole = (flags & CmdFlags.NO_HOLE) !== 0 ? 2 : 0;
        const fast = (flags & CmdFlags.FAST_ZERO) !== 0 ? 4 : 0;
        const options = ZERO_OPTIONS[(fua ? 1 : 0) | noHole | fast]!;
        this.#finish(request, backend.writeZeroes(offset, bytes, options));
        return;
      }
      default:
        this.startStatus(request, bytes, undefined);
        return;
    }
  }

  #finish(request: RequestHeader, completion: Completion): void {
    if (completion === undefined) this.#replies.ok(request);
    else this.#later(request, completion, 0);
  }

  #read(request: RequestHeader): void {
    if (request.bytes > ARENA_READ_BYTES_MAX) {
      this.#readLarge(request);
      return;
    }
    if (this.#detachedReads >= DETACHED_READS_MAX) {
      this.#readOwn(request);
      return;
    }
    const { bytes } = request;
    const head = this.#replies.readHeadBytes;
    const block = this.#out.reserve(head + bytes);
    const at = this.#out.at;
    const completion = this.#backend.read(request.offset, bytes, block.buffer, at + head);
    if (completion === undefined) {
      this.#replies.encodeReadHead(block.buffer, at, request);
      this.#out.commit(head + bytes);
      return;
    }
    const pending = this.#later(request, completion, bytes);
    pending.block = this.#out.detach(head + bytes);
    pending.headAt = at;
    pending.detached = true;
    this.#detachedReads++;
  }

  /** A small read into a block of its own, head included. */
  #readOwn(request: RequestHeader): void {
    const head = this.#replies.readHeadBytes;
    const block = HeldBuffer.take(head + request.bytes);
    const completion = this.#readInto(request, block, head);
    if (completion === undefined) {
      this.#replies.encodeReadHead(block.buffer, 0, request);
      this.#out.append(block, 0, head + request.bytes);
      return;
    }
    const pending = this.#later(request, completion, request.bytes);
    pending.block = block;
    pending.headAt = 0;
  }

  #readLarge(request: RequestHeader): void {
    const pieces = this.#piecesOf(request);
    if (pieces !== undefined) {
      this.#readPieces(request, pieces);
      return;
    }
    const lent = this.#lend(request);
    if (lent instanceof Promise) {
      this.#readLent(request, lent);
      return;
    }
    if (lent !== undefined) {
      this.#replies.readLent(request, lent);
      return;
    }
    const block = HeldBuffer.take(request.bytes);
    const completion = this.#readInto(request, block, 0);
    if (completion === undefined) {
      this.#replies.readFrom(request, block, 0);
      return;
    }
    this.#later(request, completion, request.bytes).block = block;
  }

  #lend(request: RequestHeader): LentData | undefined | Promise<LentData | undefined> {
    const { offset, bytes } = request;
    if (bytes < LENT_READ_BYTES_MIN || this.#backend.lend === undefined || !this.#mayLend()) return undefined;
    return this.#backend.lend(offset, bytes);
  }

  /** Data that is being taken up; it is read if that fails. */
  #readLent(request: RequestHeader, lending: Promise<LentData | undefined>): void {
    const read = async () => {
      const lent = await lending;
      if (lent !== undefined) {
        pending.lent = lent;
        return;
      }
      pending.block = HeldBuffer.take(pending.bytes);
      await this.#backend.read(pending.offset, pending.bytes, pending.block.buffer, 0);
    };
    const pending = this.#later(request, read(), request.bytes);
  }

  #readInto(request: RequestHeader, block: HeldBuffer, at: number): Completion {
    try {
      return this.#backend.read(request.offset, request.bytes, block.buffer, at);
    } catch (error) {
      block.release();
      throw error;
    }
  }

  /**
   * Data and holes of a large structured read, if there are holes and the backend knows them without waiting.
   * The status and the reads start in one turn, so no write of this process comes between them.
   */
  #piecesOf(request: RequestHeader): ReadPiece[] | undefined {
    if (!this.#findHoles || request.bytes < HOLE_READ_BYTES_MIN) return undefined;
    if ((request.flags & CmdFlags.DF) !== 0) return undefined;
    if (this.#statusPause > 0) {
      this.#statusPause--;
      return undefined;
    }
    const list = takeExtentList().reset(request.bytes, READ_EXTENTS_MAX);
    let completion: Completion;
    try {
      completion = this.#backend.status("base:allocation", request.offset, request.bytes, list.sink);
    } catch {
      return undefined; // The read will say what is wrong, if it matters to it.
    }
    if (completion !== undefined) {
      this.#statusPause = SLOW_STATUS_PAUSE;
      completion.catch(() => {}); // The list is left to it; the plain read answers.
      return undefined;
    }
    const pieces = readPieces(list, request.bytes);
    giveExtentList(list);
    return pieces;
  }

  #readPieces(request: RequestHeader, pieces: ReadPiece[]): void {
    if (pieces.length === 1) {
      this.#replies.readPieces(request, undefined, pieces);
      return;
    }
    const block = HeldBuffer.take(request.bytes);
    const waits: Promise<void>[] = [];
    for (const piece of pieces) {
      if (piece.hole) continue;
      try {
        const { at, bytes } = piece;
        const completion = this.#backend.read(request.offset + at, bytes, block.buffer, at);
        if (completion !== undefined) waits.push(completion);
      } catch (error) {
        waits.push(Promise.reject(error));
      }
    }
    if (waits.length === 0) {
      this.#replies.readPieces(request, block, pieces);
      return;
    }
    const pending = this.#later(request, settleAll(waits), request.bytes);
    pending.block = block;
    pending.pieces = pieces;
  }

  #write(request: RequestHeader, payload: HeldBuffer, at: number, inPlace: boolean): void {
    if (!inPlace || this.#inPlaceWrites < IN_PLACE_WRITES_MAX) {
      this.#writeFrom(request, payload, at, inPlace);
      return;
    }
    const copy = HeldBuffer.take(request.bytes);
    payload.buffer.copy(copy.buffer, 0, at, at + request.bytes);
    try {
      this.#writeFrom(request, copy, 0, false);
    } finally {
      copy.release();
    }
  }

  #writeFrom(request: RequestHeader, payload: HeldBuffer, at: number, inPlace: boolean): void {
    const fua = (request.flags & CmdFlags.FUA) !== 0;
    const completion = this.#backend.write(request.offset, request.bytes, payload.buffer, at, fua);
    if (completion === undefined) {
      this.#replies.ok(request);
      return;
    }
    const pending = this.#later(request, completion, request.bytes);
    pending.block = payload.hold();
    pending.inPlace = inPlace;
    if (inPlace) this.#inPlaceWrites++;
  }

  #collectStatus(
    request: RequestHeader,
    bytes: number,
    ids: readonly number[],
    lists: ExtentList[],
  ): Completion {
    const countMax = (request.flags & CmdFlags.REQ_ONE) !== 0 ? 1 : STATUS_EXTENTS_MAX;
    const waits: Promise<void>[] = [];
    for (const id of ids) {
      const list = takeExtentList().reset(bytes, countMax);
      lists.push(list);
      try {
        const completion = this.#backend.status(this.#contexts[id]!, request.offset, bytes, list.sink);
        if (completion !== undefined) waits.push(completion);
      } catch (error) {
        waits.push(Promise.reject(error));
      }
    }
    return waits.length === 0 ? undefined : settleAll(waits);
  }

  #replyStatus(request: RequestHeader, ids: readonly number[], lists: ExtentList[]): void {
    if (lists.some((list) => list.count === 0)) {
      this.#replies.error(request, NbdErrno.EIO, "the export told no status for this range");
    } else {
      lists.forEach((list, index) => {
        this.#replies.status(request, ids[index]!, list, index === lists.length - 1);
      });
    }
    lists.forEach(giveExtentList);
  }

  #replyLate(request: PendingRequest): void {
    const { block, lent } = request;
    if (lent !== undefined) {
      this.#replies.readLent(request, lent);
    } else if (request.extents !== undefined) {
      this.#replyStatus(request, request.contextIds!, request.extents);
    } else if (request.pieces !== undefined) {
      this.#replies.readPieces(request, block, request.pieces);
    } else if (block === undefined || request.type === Cmd.WRITE) {
      block?.release();
      this.#replies.ok(request);
    } else if (request.headAt < 0) {
      this.#replies.readFrom(request, block, 0);
    } else {
      this.#replies.encodeReadHead(block.buffer, request.headAt, request);
      this.#out.append(block, request.headAt, this.#replies.readHeadBytes + request.bytes);
    }
  }

  #replyError(request: RequestHeader, error: unknown): void {
    const errno = this.#backend.errno(error);
    this.#failed(request, error);
    this.#replies.error(request, errno, `${nameOf(request)} failed: ${errorMessage(error)}`);
  }

  #later(request: RequestHeader, completion: Promise<void>, payloadBytes: number): PendingRequest {
    const pending = takeRequest(this, request);
    this.inFlight++;
    this.inFlightBytes += payloadBytes;
    pending.payloadBytes = payloadBytes;
    completion.then(pending.done, pending.fail);
    return pending;
  }

  #settle(request: PendingRequest): void {
    this.inFlight--;
    this.inFlightBytes -= request.payloadBytes;
    if (request.detached) this.#detachedReads--;
    if (request.inPlace) this.#inPlaceWrites--;
  }

  #end(request: PendingRequest): void {
    giveRequest(request);
    this.#ended();
  }
}

// The transmission phase of one connection: bytes in, requests started, replies queued.
//
//   socket read --> consume: header, header+payload, header ... --> Commands --> Outgoing --> one write
//
//   1. Everything that one read brought is started before anything is sent, unless that takes long: then what
//      is ready leaves in between, and the client works on it meanwhile.
//   2. A payload that is complete in the receive block is used there; a larger one is gathered into a pooled
//      buffer, the rest of it straight from the socket (`target`, `filled`).
//   3. The payload of a refused request is skipped, never parsed and never kept.
//   4. At a limit no further header is looked at: the connection stops reading until requests end or replies
//      leave.
//   5. After DISC, a protocol error or the peer's end no further request is started; those under way are
//      carried out.

import { readU64OrInfinity } from "../src/base/bytes.ts";
import type { Clock } from "../src/base/clock.ts";
import { NbdErrno } from "../src/base/errors.ts";
import { KiB, MiB } from "../src/base/units.ts";
import type { NbdBackend } from "./backend.ts";
import { Commands } from "./commands.ts";
import { HeldBuffer } from "./held-buffer.ts";
import type { Outgoing } from "./outgoing.ts";
import {
  Cmd,
  decodeRequest,
  EXTENDED_REQUEST_BYTES,
  PAYLOAD_BYTES_MAX,
  RequestHeader,
  requestBytes,
  type Style,
} from "./protocol.ts";
import { Replies } from "./reply.ts";
import { payloadBytesOf, type Refusal, rangeRefusalOf, refusalOf, type Terms } from "./request-check.ts";

/** Requests of one connection that wait for the backend; at the limit the socket is not read. */
export const REQUESTS_IN_FLIGHT_MAX = 8192;
/**
 * Their payload bytes; one more request may begin just below the limit, so the peak is this plus one payload.
 */
export const IN_FLIGHT_BYTES_MAX = 32 * MiB;
/** Reply bytes that the peer has not taken; the peak is this plus what was in flight when it was reached. */
export const UNSENT_BYTES_MAX = 8 * MiB;

/**
 * From this size on the rest of a payload is read to its place; below, a read that brings more requests saves
 * more.
 */
const DIRECT_BYTES_MIN = 32 * KiB;

/** How long replies wait for the requests behind them: several times what sending costs. */
const SEND_AFTER_MS = 0.2;

/** What the handshake settled. */
export interface Agreement {
  readonly style: Style;
  /** Selected meta contexts; the index is the id. */
  readonly contexts: readonly string[];
}

/** What a session tells its connection. */
export interface SessionHost {
  readonly clock: Clock;
  /** The backend failed a request. */
  requestFailed(request: RequestHeader, error: unknown): void;
  /** Whether a reply may be lent data. */
  mayLend(): boolean;
  /** A pending request ended: there may be replies to send and room for more requests. */
  requestEnded(): void;
  /** No request will be started any more and all have ended. */
  drained(): void;
}

const SHUTTING_DOWN: Refusal = {
  errno: NbdErrno.ESHUTDOWN,
  message: "the server is shutting down, or the export is being removed",
};

export class Session implements Terms {
  readonly style: Style;
  readonly contextCount: number;
  /** What the handshake told; asked once, since a backend may build its answer anew each time. */
  readonly blockMinimum: number;
  readonly payloadMax: number;
  readonly #backend: NbdBackend;
  readonly #out: Outgoing;
  readonly #host: SessionHost;
  readonly #replies: Replies;
  readonly #commands: Commands;
  readonly #header = new RequestHeader();
  readonly #headerBytes: number;
  /** A header that came in pieces. */
  readonly #partial = Buffer.alloc(EXTENDED_REQUEST_BYTES);
  #partialBytes = 0;
  /** The payload of `#header` under way. */
  #payload: HeldBuffer | undefined;
  #payloadAt = 0;
  /** Payload bytes of the refused `#header` still to skip, and why it was refused. */
  #skipBytes = 0;
  #refusal: Refusal | undefined;
  /** Headers handled so far. */
  requestCount = 0;
  #stopped = false;
  #shuttingDown = false;
  #drainedTold = false;

  constructor(backend: NbdBackend, agreement: Agreement, out: Outgoing, host: SessionHost) {
    this.style = agreement.style;
    this.contextCount = agreement.contexts.length;
    const { minimum, maximum } = backend.blockSize;
    this.blockMinimum = minimum;
    this.payloadMax = Math.min(maximum, PAYLOAD_BYTES_MAX);
    this.#backend = backend;
    this.#out = out;
    this.#host = host;
    this.#replies = new Replies(out, agreement.style);
    this.#headerBytes = requestBytes(agreement.style);
    const ended = () => this.#requestEnded();
    this.#commands = new Commands(backend, agreement.contexts, agreement.style, {
      out,
      replies: this.#replies,
      ended,
      failed: (request, error) => host.requestFailed(request, error),
      mayLend: () => host.mayLend(),
    });
  }

  get size(): number {
    return this.#backend.size;
  }

  get readOnly(): boolean {
    return this.#backend.readOnly;
  }

  /** Requests under way at the backend. */
  get inFlight(): number {
    return this.#commands.inFlight;
  }

  /** Whether another request may begin. */
  get hasRoom(): boolean {
    const { inFlight, inFlightBytes } = this.#commands;
    return (
      inFlight < REQUESTS_IN_FLIGHT_MAX &&
      inFlightBytes < IN_FLIGHT_BYTES_MAX &&
      this.#out.unsentBytes < UNSENT_BYTES_MAX
    );
  }

  /** Where the rest of a payload should land, while that is much. */
  get target(): Buffer | undefined {
    if (this.#payload === undefined || this.#stopped) return undefined;
    if (this.#header.bytes - this.#payloadAt < DIRECT_BYTES_MIN) return undefined;
    return this.#payload.buffer.subarray(this.#payloadAt, this.#header.bytes);
  }

  /** `bytes` bytes landed in {@link target}. */
  filled(bytes: number): void {
    if (this.#stopped) return;
    this.#payloadAt += bytes;
    if (this.#payloadAt === this.#header.bytes) this.#startGathered();
  }

  /** Takes bytes [at, end); returns where it stopped, which is below `end` only at a limit. */
  consume(block: HeldBuffer, at: number, end: number): number {
    const { buffer } = block;
    const { clock } = this.#host;
    let next = at;
    let sentMs = clock.nowMs();
    while (next < end && !this.#stopped) {
      if (this.#payload !== undefined) {
        next += this.#gather(buffer, next, end);
      } else if (this.#skipBytes > 0) {
        next += this.#skip(end - next);
      } else if (!this.hasRoom) {
        return next;
      } else if (this.#partialBytes === 0 && end - next >= this.#headerBytes) {
        decodeRequest(buffer, next, this.style, this.#header);
        next = this.#begin(block, next + this.#headerBytes, end);
      } else {
        next += this.#gatherHeader(buffer, next, end);
        if (this.#partialBytes === this.#headerBytes) {
          this.#partialBytes = 0;
          decodeRequest(this.#partial, 0, this.style, this.#header);
          next = this.#begin(block, next, end);
        }
      }
      const nowMs = clock.nowMs();
      if (nowMs - sentMs < SEND_AFTER_MS) continue;
      sentMs = nowMs;
      this.#out.flush();
    }
    return end;
  }

  /** Starts no request any more; the host is told when all have ended. */
  stop(): void {
    this.#stopped = true;
    this.#tellDrained();
  }

  /** Lets requests under way end and refuses others with ESHUTDOWN, then stops. */
  shutDown(): void {
    this.#shuttingDown = true;
    if (this.inFlight === 0) this.stop();
  }

  /** The socket is closed: what ends from now on ends silently. */
  connectionClosed(): void {
    this.#commands.gone = true;
    this.#payload?.release();
    this.#payload = undefined;
    this.stop();
  }

  /**
   * Handles the decoded header; its payload, if any, begins at `at`. Returns where the next request begins.
   */
  #begin(block: HeldBuffer, at: number, end: number): number {
    const header = this.#header;
    this.requestCount++;
    if (!header.magicOk || header.type === Cmd.DISC) {
      this.stop();
      return end;
    }
    const refusal = this.#shuttingDown ? SHUTTING_DOWN : refusalOf(header, this);
    const payloadBytes = payloadBytesOf(header, this.style);
    if (refusal === undefined && payloadBytes === 0) {
      this.#commands.start(header, undefined, 0, false);
      return at;
    }
    if (payloadBytes > this.payloadMax) return this.#refuseAndStop(refusal, end);
    if (refusal !== undefined) return this.#refuse(refusal, payloadBytes, at);
    if (end - at >= payloadBytes) {
      this.#startWithPayload(block, at, true);
      return at + payloadBytes;
    }
    this.#payload = HeldBuffer.take(payloadBytes);
    this.#payloadAt = 0;
    return at;
  }

  #refuseAndStop(refusal: Refusal | undefined, end: number): number {
    const message = `a payload of ${this.#header.bytes} bytes is above the maximum, ${this.payloadMax}`;
    const { errno, message: reason } = refusal ?? { errno: NbdErrno.EINVAL, message };
    this.#replies.error(this.#header, errno, `${reason}; the connection ends`);
    this.stop();
    return end;
  }

  /** Answers once the payload is skipped, as a client that sends before it reads expects. */
  #refuse(refusal: Refusal, payloadBytes: number, at: number): number {
    if (payloadBytes === 0) {
      this.#replies.error(this.#header, refusal.errno, refusal.message);
    } else {
      this.#refusal = refusal;
      this.#skipBytes = payloadBytes;
    }
    return at;
  }

  #skip(available: number): number {
    const skipped = Math.min(available, this.#skipBytes);
    this.#skipBytes -= skipped;
    if (this.#skipBytes === 0) {
      this.#replies.error(this.#header, this.#refusal!.errno, this.#refusal!.message);
    }
    return skipped;
  }

  #gather(buffer: Buffer, at: number, end: number): number {
    const taken = Math.min(end - at, this.#header.bytes - this.#payloadAt);
    buffer.copy(this.#payload!.buffer, this.#payloadAt, at, at + taken);
    this.#payloadAt += taken;
    if (this.#payloadAt === this.#header.bytes) this.#startGathered();
    return taken;
  }

  #startGathered(): void {
    const payload = this.#payload!;
    this.#payload = undefined;
    this.#startWithPayload(payload, 0, false);
    payload.release();
  }

  #startWithPayload(payload: HeldBuffer, at: number, inPlace: boolean): void {
    if (this.#shuttingDown) {
      this.#replies.error(this.#header, SHUTTING_DOWN.errno, SHUTTING_DOWN.message);
    } else if (this.#header.type === Cmd.WRITE) {
      this.#commands.start(this.#header, payload, at, inPlace);
    } else {
      this.#startFilteredStatus(payload.buffer, at);
    }
  }

  // BLOCK_STATUS payload:  0 length of the range u64 | 8 context id u32 ...
  #startFilteredStatus(buffer: Buffer, at: number): void {
    const header = this.#header;
    const ids: number[] = [];
    for (let from = at + 8; from < at + header.bytes; from += 4) ids.push(buffer.readUInt32BE(from));
    if (new Set(ids).size !== ids.length || ids.some((id) => id >= this.contextCount)) {
      const message = "BLOCK_STATUS names a context twice or an unknown one";
      this.#replies.error(header, NbdErrno.EINVAL, message);
      return;
    }
    const bytes = readU64OrInfinity(buffer, at);
    const refusal = rangeRefusalOf(header, bytes, this);
    if (refusal !== undefined) {
      this.#replies.error(header, refusal.errno, refusal.message);
      return;
    }
    this.#commands.startStatus(header, bytes, ids);
  }

  #gatherHeader(buffer: Buffer, at: number, end: number): number {
    const taken = Math.min(end - at, this.#headerBytes - this.#partialBytes);
    buffer.copy(this.#partial, this.#partialBytes, at, at + taken);
    this.#partialBytes += taken;
    return taken;
  }

  #requestEnded(): void {
    if (this.#shuttingDown && this.inFlight === 0) this.#stopped = true;
    this.#host.requestEnded();
    if (this.#stopped) this.#tellDrained();
  }

  #tellDrained(): void {
    if (this.inFlight > 0 || this.#drainedTold) return;
    this.#drainedTold = true;
    this.#host.drained();
  }
}

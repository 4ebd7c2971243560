// One accepted socket: handshake first, then a session; the pacing of both; its end.
//
//   NEGOTIATING --GO--> SERVING --DISC, garbage, peer's end, shutdown--> ENDING --> CLOSED
//        \-------------------ABORT, bad option, deadline------------------^
//
//   On a server that wants TLS: NEGOTIATING in the clear --STARTTLS--> TLS handshake --> NEGOTIATING
//
//   1. Input that may not be handled yet is kept where it lies (its receive block is held), and the socket is
//      paused.
//   2. ENDING begins when no request is under way; what is queued is still sent. Later input is read and
//      dropped, so that closing does not reset the connection under the peer's last replies.
//   3. Buffers go back when the socket has closed, never while the system may still touch them.
//   4. Behind a read that brought very many requests the others come first.
//   5. What a client sends behind STARTTLS before it has the answer is not obeyed: it may be somebody else's.
//   6. `left` is told once when the backend sees no more of this client, `gone` once when the socket is
//      closed too.

import type net from "node:net";
import type { Clock } from "../src/base/clock.ts";
import type { LentData } from "./backend.ts";
import type { BusyPoll } from "./busy-poll.ts";
import type { ExportDirectory, NbdExport } from "./export.ts";
import type { FailureLog } from "./failure-log.ts";
import { type Flushable, flushAtEndOfTurn } from "./flush-turn.ts";
import { Handshake } from "./handshake.ts";
import type { HeldBuffer } from "./held-buffer.ts";
import { Outgoing } from "./outgoing.ts";
import type { RequestHeader } from "./protocol.ts";
import { type ReceiveSink, receiveAccepted, receiveByEvents } from "./receive.ts";
import { nameOf } from "./request-check.ts";
import { localDescriptorOf, sendNow } from "./send.ts";
import { sendLent } from "./send-lent.ts";
import { Session, type SessionHost, UNSENT_BYTES_MAX } from "./session.ts";
import type { TlsAcceptor } from "./tls.ts";
import { Unread, type UnreadWatch } from "./unread.ts";

/** How long an ended connection may take to accept its last replies and to close its side. */
const LINGER_MS = 5_000;
/** The same when the server ends: images are closed only after its last connection. */
const LINGER_AT_SHUTDOWN_MS = 1_000;
/** A read that brought more requests than this is a flood: other connections come before the next one. */
const REQUESTS_PER_READ_MAX = 512;

/** What a connection tells its server. */
export interface ConnectionHost extends ExportDirectory {
  readonly clock: Clock;
  readonly busyPoll: BusyPoll;
  readonly failures: FailureLog;
  /** 0: no deadline. */
  readonly handshakeMs: number;
  /** Where there is one, no client gets anything in the clear. */
  readonly tls?: TlsAcceptor | undefined;
  entered(connection: Connection, offered: NbdExport): void;
  left(connection: Connection, offered: NbdExport): void;
  /** Closed, and nothing under way at a backend. */
  gone(connection: Connection): void;
  note(message: string): void;
  /** Watches what the client of a unix socket reads; undefined: nobody can, and nothing is lent. */
  watchLocalClient(descriptor: number): UnreadWatch | undefined;
}

export class Connection implements ReceiveSink, SessionHost, Flushable {
  flushPending = false;
  readonly #host: ConnectionHost;
  #socket: net.Socket;
  readonly #out: Outgoing;
  #handshake: Handshake | undefined;
  #session: Session | undefined;
  #offered: NbdExport | undefined;
  #stalled: { block: HeldBuffer; at: number; end: number } | undefined;
  #cancelTimer: () => void = () => {};
  #inputEnded = false;
  readonly #onEnd = () => this.#peerEnded();
  readonly #onClose = () => this.#socketClosed();
  /** Ends reading in the clear, on a server that wants TLS. */
  #stopReading: () => void = () => {};
  /** STARTTLS was accepted: the client gets the answer, then TLS begins. */
  #securing: "answering" | "handshake" | undefined;
  #ending = false;
  #closed = false;
  /** Where data may be lent; undefined: not asked yet. */
  #unread: Unread | false | undefined;

  constructor(accepted: net.Socket, host: ConnectionHost) {
    this.#host = host;
    this.#handshake = new Handshake(host, host.tls !== undefined);
    this.#out = new Outgoing(
      (pieces, bytes, written, lent) => this.#write(pieces, bytes, written, lent),
      () => this.#written(),
      (bytes, lent) => this.#sent(bytes, lent),
    );
    this.#socket = host.tls === undefined ? receiveAccepted(accepted, this) : accepted;
    this.#socket.setNoDelay(true);
    if (host.tls !== undefined) this.#stopReading = receiveByEvents(accepted, this);
    this.#watch();
    if (host.handshakeMs > 0) this.#cancelTimer = host.clock.after(host.handshakeMs, () => this.destroy());
    this.#handshakeMoved();
    this.#out.flush();
  }

  get clock(): Clock {
    return this.#host.clock;
  }

  /** The export that this client is in. */
  get offered(): NbdExport | undefined {
    return this.#offered;
  }

  /** Lets requests under way end, sends their replies, closes. */
  shutDown(): void {
    if (this.#session === undefined) this.#end();
    else this.#session.shutDown();
    if (this.#ending) this.#linger();
    this.#out.flush();
  }

  /** Closes at once. Requests under way end silently; `gone` is told after them. */
  destroy(): void {
    this.#socket.destroy();
  }

  target(): Buffer | undefined {
    return this.#session?.target;
  }

  filled(bytes: number): void {
    this.#look();
    this.#session!.filled(bytes);
    this.#out.flush();
    this.#host.busyPoll.served();
  }

  received(block: HeldBuffer, bytes: number): void {
    const before = this.#session?.requestCount ?? 0;
    this.#look();
    this.#feed(block, 0, bytes);
    this.#out.flush();
    this.#host.busyPoll.served();
    if (this.#session !== undefined && this.#session.requestCount - before > REQUESTS_PER_READ_MAX) {
      this.#letOthersCome();
    }
  }

  requestFailed(request: RequestHeader, error: unknown): void {
    const command = nameOf(request);
    const where = `${command} of ${request.bytes} bytes at offset ${request.offset}`;
    this.#host.failures.tell(this.#offered!.name, command, where, error);
  }

  requestEnded(): void {
    flushAtEndOfTurn(this);
    this.#resumeInput();
  }

  mayLend(): boolean {
    if (this.#unread !== undefined) return this.#unread !== false;
    const descriptor = localDescriptorOf(this.#socket);
    const watch = descriptor < 0 ? undefined : this.#host.watchLocalClient(descriptor);
    this.#unread = watch === undefined ? false : new Unread(watch, this.#host.clock);
    return watch !== undefined;
  }

  flushNow(): void {
    this.#out.flush();
  }

  drained(): void {
    if (this.#offered !== undefined) this.#host.left(this, this.#offered);
    if (this.#closed) this.#host.gone(this);
    else this.#end();
  }

  #watch(): void {
    this.#socket.on("end", this.#onEnd);
    this.#socket.on("error", (error) => {
      this.#host.note(`a client's connection failed: ${error.message}`);
      // A secure socket tells of a record that is not right, and lives on.
      this.destroy();
    });
    this.#socket.on("close", this.#onClose);
  }

  #feed(block: HeldBuffer, at: number, end: number): void {
    let next = at;
    while (next < end && !this.#ending) {
      if (this.#session !== undefined) {
        next = this.#session.consume(block, next, end);
        if (next < end) {
          this.#stall(block, next, end);
          return;
        }
      } else if (this.#out.unsentBytes >= UNSENT_BYTES_MAX) {
        this.#stall(block, next, end);
        return;
      } else {
        next = this.#handshake!.consume(block.buffer, next, end);
        this.#handshakeMoved();
        if (this.#securing !== undefined) {
          if (next < end) this.#refuse("bytes behind STARTTLS in the clear");
          return;
        }
      }
    }
  }

  #handshakeMoved(): void {
    const handshake = this.#handshake!;
    for (const reply of handshake.replies) this.#out.copy(reply);
    handshake.replies.length = 0;
    const { outcome } = handshake;
    if (outcome?.kind === "close") {
      this.#host.note(`a client's handshake ended: ${outcome.reason}`);
      this.#end();
    } else if (outcome?.kind === "tls") {
      this.#securing = "answering";
      this.#stopReading();
    } else if (outcome?.kind === "enter") {
      this.#cancelTimer();
      this.#handshake = undefined;
      this.#offered = outcome.offered;
      this.#session = new Session(outcome.offered.backend, outcome.agreement, this.#out, this);
      this.#host.entered(this, outcome.offered);
    }
  }

  /** The client has the answer to STARTTLS. */
  #secure(): void {
    this.#securing = "handshake";
    // Not while the plain socket is still busy with the read that brought STARTTLS.
    setImmediate(() => {
      if (this.#closed || this.#socket.destroyed) return;
      const failed = (reason: string) => this.#refuse(reason);
      this.#host.tls!.secure(this.#socket, { secured: (socket) => this.#secured(socket), failed });
    });
  }

  #secured(socket: net.Socket): void {
    this.#securing = undefined;
    this.#socket.off("close", this.#onClose);
    this.#socket = socket;
    this.#handshake!.secured();
    this.#watch();
    receiveByEvents(socket, this);
  }

  #refuse(reason: string): void {
    this.#host.note(`a client's handshake ended: ${reason}`);
    this.destroy();
  }

  #stall(block: HeldBuffer, at: number, end: number): void {
    this.#stalled = { block: block.hold(), at, end };
    this.#socket.pause();
  }

  /** Goes on with kept input if there is room now. */
  #resumeInput(): void {
    const stalled = this.#stalled;
    if (stalled === undefined || this.#closed) return;
    const room = this.#session?.hasRoom ?? this.#out.unsentBytes < UNSENT_BYTES_MAX;
    if (!room && !this.#ending) return;
    this.#stalled = undefined;
    this.#feed(stalled.block, stalled.at, stalled.end);
    stalled.block.release();
    if (this.#stalled !== undefined) return;
    if (this.#inputEnded) this.#peerEnded();
    else this.#socket.resume();
  }

  #letOthersCome(): void {
    this.#socket.pause();
    setImmediate(() => {
      if (this.#stalled === undefined && !this.#closed) this.#socket.resume();
    });
  }

  /** The client sent something: it may have read something. */
  #look(): void {
    if (this.#unread) this.#unread.look();
  }

  #sent(bytes: number, lent: LentData | undefined): void {
    if (this.#unread) this.#unread.sent(bytes, lent);
  }

  #write(pieces: readonly Buffer[], bytes: number, written: () => void, lent: LentData | undefined): boolean {
    if (lent === undefined) return this.#writePieces(pieces, bytes, written);
    const socket = this.#socket;
    const behind = () => {
      if (!socket.destroyed && sendLent(socket, lent, written)) written();
    };
    return this.#writePieces(pieces, bytes, behind) && sendLent(socket, lent, written);
  }

  #writePieces(pieces: readonly Buffer[], bytes: number, written: () => void): boolean {
    const socket = this.#socket;
    let skip = sendNow(socket, pieces);
    if (skip === bytes) return true;
    let first = 0;
    while (skip >= pieces[first]!.length) skip -= pieces[first++]!.length;
    const last = pieces.length - 1;
    socket.cork();
    for (let i = first; i <= last; i++) {
      const piece = i === first && skip > 0 ? pieces[i]!.subarray(skip) : pieces[i]!;
      if (i < last) socket.write(piece);
      else socket.write(piece, written);
    }
    socket.uncork();
    return false;
  }

  #written(): void {
    this.#resumeInput();
    this.#out.flush();
    if (!this.#out.idle) return;
    if (this.#ending) this.#socket.end();
    else if (this.#securing === "answering") this.#secure();
  }

  #peerEnded(): void {
    // A stream may tell its end while input is still kept: what was sent before it counts.
    this.#inputEnded = true;
    if (this.#stalled !== undefined) return;
    if (this.#session === undefined) this.#end();
    else this.#session.stop();
    this.#out.flush();
  }

  #end(): void {
    if (this.#ending) return;
    this.#ending = true;
    if (this.#securing !== undefined) {
      this.destroy();
      return;
    }
    this.#linger();
    this.#resumeInput();
    if (this.#out.idle) this.#socket.end();
  }

  /** Gives the peer time to take its last replies and to close its side. */
  #linger(): void {
    this.#cancelTimer();
    const lingerMs = this.#host.closing ? LINGER_AT_SHUTDOWN_MS : LINGER_MS;
    this.#cancelTimer = this.#host.clock.after(lingerMs, () => this.destroy());
  }

  #socketClosed(): void {
    this.#closed = true;
    this.#cancelTimer();
    this.#out.dispose();
    if (this.#unread) this.#unread.socketClosed();
    this.#stalled?.block.release();
    this.#stalled = undefined;
    if (this.#session === undefined) {
      this.#host.gone(this);
      return;
    }
    const wasDrained = this.#ending;
    this.#session.connectionClosed();
    // A session that was drained before does not tell again.
    if (wasDrained) this.#host.gone(this);
  }
}

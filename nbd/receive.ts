// Bytes of a socket, straight into buffers that are reused.
//
// Node has no public way to set `onread` on an accepted socket, but a new socket around the accepted one's
// handle takes it. That made 1 MiB writes four times as fast as `data` events, which allocate a buffer per
// read. It is in this file only. Where a Node lacks the handle, `data` events do the same work; a test tells
// which one is in use.
//   1. Bytes land in the sink's target if it has one (the rest of a large payload), else in a receive block.
//   2. Bytes in a receive block are the sink's until `received` returns. To keep them longer it holds the
//      block; the receiver then lets go of it and goes on with another.
//   3. The place of the next read is settled when `received` or `filled` returns and may be written to until
//      the next of these calls or until the socket has closed; the sink gives a target back no earlier.

import net from "node:net";
import { KiB } from "../src/base/units.ts";
import { HeldBuffer } from "./held-buffer.ts";

/** A unix socket hands over about 200 KiB at a time. */
const RECEIVE_BYTES = 256 * KiB;

/**
 * Behind a large payload there is likely to be another one. Its header is read with little of it, so that the
 * rest lands in its own buffer without a copy; a read that fills this window goes on at once.
 */
const NARROW_BYTES = 4 * KiB;

export interface ReceiveSink {
  /** Where the next bytes should land, or undefined for a receive block. */
  target(): Buffer | undefined;
  /** `bytes` bytes landed in the target. */
  filled(bytes: number): void;
  /** `bytes` bytes landed at the start of `block`. */
  received(block: HeldBuffer, bytes: number): void;
}

/** Receives with `onread`; see the head of the file. */
class DirectReceiver {
  readonly #sink: ReceiveSink;
  #block: HeldBuffer | undefined;
  #target: Buffer | undefined;
  #narrow = false;

  constructor(sink: ReceiveSink) {
    this.#sink = sink;
  }

  readonly onread = {
    buffer: (): Buffer => {
      this.#target = this.#sink.target();
      if (this.#target !== undefined) return this.#target;
      this.#block ??= HeldBuffer.take(RECEIVE_BYTES);
      return this.#narrow ? this.#block.buffer.subarray(0, NARROW_BYTES) : this.#block.buffer;
    },
    callback: (bytes: number): boolean => {
      if (this.#target !== undefined) {
        this.#sink.filled(bytes);
        this.#narrow = true;
        return true;
      }
      this.#narrow = false;
      const block = this.#block!;
      this.#sink.received(block, bytes);
      if (block.shared) {
        block.release();
        this.#block = undefined;
      }
      return true;
    },
  };

  closed(): void {
    this.#block?.release();
    this.#block = undefined;
  }
}

interface WithHandle {
  _handle: unknown;
}

/** Whether sockets receive through `onread` here. */
export function receivesDirectly(socket: net.Socket): boolean {
  const { _handle: handle } = socket as unknown as WithHandle;
  return typeof (handle as { useUserBuffer?: unknown } | null)?.useUserBuffer === "function";
}

/**
 * Takes over an accepted socket that has not begun to read (`pauseOnConnect`) and starts reading into `sink`.
 * The socket to use from now on is the one returned; it is half-open: the peer's end does not end it.
 */
export function receiveAccepted(accepted: net.Socket, sink: ReceiveSink): net.Socket {
  if (!receivesDirectly(accepted)) {
    receiveByEvents(accepted, sink);
    return accepted;
  }
  const { _handle: handle } = accepted as unknown as WithHandle;
  (accepted as unknown as WithHandle)._handle = null;
  accepted.destroy();
  const receiver = new DirectReceiver(sink);
  const options = { handle, onread: receiver.onread, allowHalfOpen: true };
  const socket = new net.Socket(options as net.SocketConstructorOpts);
  socket.once("close", () => receiver.closed());
  return socket;
}

/** Connects and receives into `sink`. */
export function receiveConnected(target: net.NetConnectOpts, sink: ReceiveSink): net.Socket {
  const receiver = new DirectReceiver(sink);
  const socket = net.connect({ ...target, onread: receiver.onread });
  socket.once("close", () => receiver.closed());
  return socket;
}

/**
 * The fallback, and the way for sockets that TLS takes over. Starts reading; what it returns stops it, and
 * leaves what has come and was not told for whoever reads next.
 */
export function receiveByEvents(socket: net.Socket, sink: ReceiveSink): () => void {
  const told = (chunk: Buffer) => sink.received(HeldBuffer.around(chunk), chunk.length);
  socket.on("data", told);
  socket.resume();
  return () => {
    socket.off("data", told);
    socket.pause();
  };
}

// An eventfd that the event loop watches: the kernel wakes the loop through it, no thread waits.
//
//   Node watches descriptors of pipes, sockets and terminals only. So a pipe is handed to a net.Socket, and
//   before the loop has looked at it the eventfd takes the place of its descriptor (dup3). From then on it is
//   a stream of which each piece is the eventfd's counter, 8 bytes: reading it sets it back to zero.
//
// This leans on libuv, which asks the kernel about a descriptor only when the loop next waits. Whoever uses
// a watch makes sure with an event of his own that it wakes, before anything depends on it.

import { closeSync } from "node:fs";
import { Socket } from "node:net";
import type { ForeignFunction, Koffi } from "./load-koffi.ts";
import { pipeCalls } from "./pipe-calls.ts";

// sys/eventfd.h, linux/fcntl.h
const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const O_CLOEXEC = 0o2000000;
const COUNTER_BYTES = 8;
/** Of a pipe that nothing goes through: the least. */
const PIPE_BYTES = 4096;

export interface EventWatchHandlers {
  /** One or more events. */
  woken(): void;
  /** No event will be seen any more. */
  lost(): void;
}

export class EventWatch {
  readonly fd: number;
  readonly #stream: Socket;

  private constructor(fd: number, stream: Socket) {
    this.fd = fd;
    this.#stream = stream;
  }

  /** @throws Error where the system or Node does not go along */
  static open(koffi: Koffi, handlers: EventWatchHandlers): EventWatch {
    const library = koffi.load(null);
    const eventfd = library.func("eventfd", "int", ["uint", "int"]);
    const dup3 = library.func("dup3", "int", ["int", "int", "int"]);
    const ends = pipeCalls()?.open(PIPE_BYTES);
    if (ends === undefined) throw new Error("no pipe");
    const { from, to } = ends;
    let stream: Socket | undefined;
    try {
      stream = streamOf(from, handlers);
      replace(from, eventfd, dup3);
      stream.resume();
      stream.unref();
      return new EventWatch(from, stream);
    } catch (error) {
      if (stream === undefined) closeSync(from);
      else stream.destroy();
      throw error;
    } finally {
      closeSync(to);
    }
  }

  /** Keeps the process alive until `release`. */
  hold(): void {
    this.#stream.ref();
  }

  release(): void {
    this.#stream.unref();
  }

  close(): void {
    this.#stream.removeAllListeners("close").destroy();
  }
}

function streamOf(fd: number, handlers: EventWatchHandlers): Socket {
  const onread = {
    buffer: Buffer.alloc(COUNTER_BYTES),
    callback: () => {
      handlers.woken();
      return true;
    },
  };
  // `manualStart` and `onread` beside `fd` are Node's own, though its types know `onread` alone.
  const options = { fd, readable: true, writable: false, manualStart: true, onread };
  const stream = new Socket(options as ConstructorParameters<typeof Socket>[0]);
  stream.on("error", () => {}); // "close" follows.
  stream.on("close", () => handlers.lost());
  return stream;
}

function replace(fd: number, eventfd: ForeignFunction, dup3: ForeignFunction): void {
  const event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (event < 0) throw new Error("no eventfd");
  const result = dup3(event, fd, O_CLOEXEC);
  closeSync(event);
  if (result < 0) throw new Error("dup3 failed");
}

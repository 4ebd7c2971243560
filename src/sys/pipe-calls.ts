// Pipes of the kernel through koffi: data of a file on its way to a socket that nobody copies.
//
//   file --splice--> pipe (holds pages of the page cache) --splice--> socket --> the peer's own memory
//
// errno is read right after the call that failed; EINTR is repeated. In the thread pool errno is lost.

import { closeSync, readSync } from "node:fs";
import { setOffset } from "./file-offset.ts";
import { Errno } from "./host-error.ts";
import { type ForeignFunction, type Koffi, loadKoffi } from "./load-koffi.ts";

// linux/fcntl.h, linux/splice.h
const O_NONBLOCK = 0o4000;
const O_CLOEXEC = 0o2000000;
const F_SETPIPE_SZ = 1031;
const SPLICE_F_NONBLOCK = 2;

/** Both ends of a pipe, and how many bytes it takes (in whole pages). */
export interface PipeEnds {
  readonly from: number;
  readonly to: number;
  readonly capacity: number;
}

export interface PipeCalls {
  /** A pipe for `bytes` bytes, a power of two; for less where the kernel grants no more, or none. */
  open(bytes: number): PipeEnds | undefined;
  close(ends: PipeEnds): void;
  /** Fills `pipe` from a file: bytes moved, 0 at the file's end, or -errno. */
  fill(fd: number, offset: number, pipe: PipeEnds, bytes: number): number;
  /** The same in the thread pool; below zero it failed, for a reason that is not known. */
  fillInPool(fd: number, offset: number, pipe: PipeEnds, bytes: number): Promise<number>;
  /** Moves bytes on to a socket: as many as it takes now, or -errno. */
  empty(pipe: PipeEnds, socket: number, bytes: number): number;
  /** Copies the next bytes out; how many. @throws what the system says */
  read(pipe: PipeEnds, buffer: Buffer, at: number, bytes: number): number;
}

let loaded: PipeCalls | undefined;
let tried = false;

/** The calls; undefined where there are none. */
export function pipeCalls(): PipeCalls | undefined {
  if (tried) return loaded;
  tried = true;
  const koffi = loadKoffi();
  if (typeof koffi === "string") return undefined;
  try {
    loaded = new LibcPipes(koffi);
  } catch {
    // A C library without them: data is copied.
  }
  return loaded;
}

class LibcPipes implements PipeCalls {
  readonly #koffi: Koffi;
  readonly #pipe2: ForeignFunction;
  readonly #fcntl: ForeignFunction;
  readonly #splice: ForeignFunction;
  /** What the one call that runs points to: two descriptors, or an offset. */
  readonly #ends = new Uint32Array(new ArrayBuffer(8));
  readonly #endsAddress: number;
  readonly #offset = new Uint32Array(new ArrayBuffer(8));
  readonly #offsetAddress: number;

  constructor(koffi: Koffi) {
    const library = koffi.load(null);
    this.#koffi = koffi;
    this.#pipe2 = library.func("pipe2", "int", ["uintptr", "int"]);
    this.#fcntl = library.func("fcntl", "int", ["int", "int", "uintptr"]);
    const parameters = ["int", "uintptr", "int", "uintptr", "size_t", "uint"];
    this.#splice = library.func("splice", "int64", parameters);
    this.#endsAddress = Number(koffi.address(this.#ends));
    this.#offsetAddress = Number(koffi.address(this.#offset));
  }

  open(bytes: number): PipeEnds | undefined {
    if (this.#pipe2(this.#endsAddress, O_NONBLOCK | O_CLOEXEC) < 0) return undefined;
    const [from, to] = [this.#ends[0]!, this.#ends[1]!];
    // pipe(7): what a user without privileges may have in pipes is bounded; beyond, this fails.
    const capacity = this.#fcntl(from, F_SETPIPE_SZ, bytes);
    const ends = { from, to, capacity };
    if (capacity > 0) return ends;
    this.close(ends);
    return undefined;
  }

  close({ from, to }: PipeEnds): void {
    closeSync(from);
    closeSync(to);
  }

  fill(fd: number, offset: number, pipe: PipeEnds, bytes: number): number {
    for (;;) {
      setOffset(this.#offset, 0, offset);
      const moved = this.#splice(fd, this.#offsetAddress, pipe.to, 0, bytes, SPLICE_F_NONBLOCK);
      if (moved >= 0) return moved;
      const errno = this.#koffi.errno();
      if (errno !== Errno.EINTR) return -errno;
    }
  }

  fillInPool(fd: number, offset: number, pipe: PipeEnds, bytes: number): Promise<number> {
    const own = new Uint32Array(new ArrayBuffer(8));
    setOffset(own, 0, offset);
    const address = Number(this.#koffi.address(own));
    return new Promise((resolve) => {
      this.#splice.async(fd, address, pipe.to, 0, bytes, SPLICE_F_NONBLOCK, (error, moved) => {
        // Named here, the memory of the offset lives until the call has ended.
        resolve(error !== null || own.length === 0 ? -Errno.EIO : moved);
      });
    });
  }

  empty(pipe: PipeEnds, socket: number, bytes: number): number {
    for (;;) {
      const moved = this.#splice(pipe.from, 0, socket, 0, bytes, SPLICE_F_NONBLOCK);
      if (moved >= 0) return moved;
      const errno = this.#koffi.errno();
      if (errno !== Errno.EINTR) return -errno;
    }
  }

  read(pipe: PipeEnds, buffer: Buffer, at: number, bytes: number): number {
    return readSync(pipe.from, buffer, at, bytes, null);
  }
}

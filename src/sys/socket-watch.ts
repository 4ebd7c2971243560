// What the peer of a unix socket has not read yet: the kernel counts it until the peer has its own copy of
// the bytes, also behind the end of the connection.

import { closeSync } from "node:fs";
import { type ForeignFunction, type Koffi, loadKoffi } from "./load-koffi.ts";

// linux/fcntl.h, linux/sockios.h, sys/socket.h
const F_DUPFD_CLOEXEC = 1030;
const SIOCOUTQ = 0x5411;
const SHUT_RDWR = 2;

/** Watches one socket with a descriptor of its own, so that it can go on when the socket was closed. */
export interface SocketWatch {
  /** Bytes at the least that the peer has not read, the kernel's own for each piece included; 0: none. */
  unreadBytes(): number;
  /** The socket was closed: the peer sees its end, though this watch goes on. */
  socketClosed(): void;
  close(): void;
}

interface Calls {
  readonly koffi: Koffi;
  readonly fcntl: ForeignFunction;
  readonly ioctl: ForeignFunction;
  readonly shutdown: ForeignFunction;
}

let calls: Calls | undefined;

/**
 * A watch on the unix socket `fd`; undefined where the system has none to give. STRATA_NO_LENDING=1 goes
 * without, so that all clients get copies.
 */
export function watchSocket(fd: number): SocketWatch | undefined {
  if (process.env["STRATA_NO_LENDING"] === "1") return undefined;
  calls ??= load();
  if (calls === undefined) return undefined;
  const own = calls.fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return own < 0 ? undefined : new DescriptorWatch(own, calls);
}

function load(): Calls | undefined {
  const koffi = loadKoffi();
  if (typeof koffi === "string") return undefined;
  try {
    const library = koffi.load(null);
    return {
      koffi,
      fcntl: library.func("fcntl", "int", ["int", "int", "uintptr"]),
      ioctl: library.func("ioctl", "int", ["int", "ulong", "uintptr"]),
      shutdown: library.func("shutdown", "int", ["int", "int"]),
    };
  } catch {
    return undefined;
  }
}

class DescriptorWatch implements SocketWatch {
  readonly #fd: number;
  readonly #calls: Calls;
  readonly #answer = new Uint32Array(new ArrayBuffer(4));
  readonly #answerAddress: number;

  constructor(fd: number, calls: Calls) {
    this.#fd = fd;
    this.#calls = calls;
    this.#answerAddress = Number(calls.koffi.address(this.#answer));
  }

  unreadBytes(): number {
    const result = this.#calls.ioctl(this.#fd, SIOCOUTQ, this.#answerAddress);
    return result < 0 ? Number.MAX_SAFE_INTEGER : this.#answer[0]!;
  }

  socketClosed(): void {
    this.#calls.shutdown(this.#fd, SHUT_RDWR);
  }

  close(): void {
    closeSync(this.#fd);
  }
}

// How much the kernel keeps of what was sent to a unix socket's peer. By default that is 208 KiB: a reply of
// 1 MiB then takes five rounds of waiting for room, each with a sleep on both sides. Where one fits as a
// whole, reads of 1 MiB get 1.6 times as much done. For TCP the kernel adapts it by itself.

import { MiB } from "../base/units.ts";
import { loadKoffi } from "./load-koffi.ts";

// asm-generic/socket.h
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;

/** The kernel doubles it, to count its own structures, and bounds it by net.core.wmem_max. */
const SEND_BUFFER_BYTES = 1 * MiB;

type SetSendBuffer = (fd: number, bytes: number) => void;

let setSendBuffer: SetSendBuffer | undefined;

/** Asks the kernel for 2 MiB behind the socket `fd`; it gives what it allows (net.core.wmem_max). */
export function growSendBuffer(fd: number): void {
  setSendBuffer ??= load() ?? (() => {});
  setSendBuffer(fd, SEND_BUFFER_BYTES);
}

function load(): SetSendBuffer | undefined {
  const koffi = loadKoffi();
  if (typeof koffi === "string") return undefined;
  try {
    const library = koffi.load(null);
    const setsockopt = library.func("setsockopt", "int", ["int", "int", "int", "uintptr", "uint32"]);
    const memory = new Uint32Array(new ArrayBuffer(4));
    const address = Number(koffi.address(memory));
    return (fd, bytes) => {
      memory[0] = bytes;
      setsockopt(fd, SOL_SOCKET, SO_SNDBUF, address, memory.byteLength);
    };
  } catch {
    // A C library without it: sockets stay as they are.
    return undefined;
  }
}

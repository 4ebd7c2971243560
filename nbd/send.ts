// Replies straight to the descriptor of a socket, past Node's stream.
//
// A write through the stream costs 10 us in ticks and request objects, as much as all else that a small
// request needs, and ends only when the loop has come round. Here it has ended when the call returns. What
// the system does not take at once goes to the stream, which waits for room and tells of errors; until that
// has written it, nothing may come past it.

import { writeSync, writevSync } from "node:fs";
import type net from "node:net";

/** The kernel's IOV_MAX. */
const PIECES_MAX = 1024;

interface WithHandle {
  readonly _handle: { readonly fd?: unknown; readonly constructor: { readonly name: string } } | null;
}

/** The descriptor behind a plain socket; -1 where there is none: closed, wrapped in TLS, another Node. */
export function descriptorOf(socket: net.Socket): number {
  const { _handle: handle } = socket as unknown as WithHandle;
  if (handle === null || handle === undefined) return -1;
  const { name } = handle.constructor;
  return (name === "Pipe" || name === "TCP") && typeof handle.fd === "number" ? handle.fd : -1;
}

/** The same for a unix socket; -1 for all others. */
export function localDescriptorOf(socket: net.Socket): number {
  const { _handle: handle } = socket as unknown as WithHandle;
  return handle?.constructor.name === "Pipe" ? descriptorOf(socket) : -1;
}

/**
 * Bytes of `pieces` that the system took at once; 0 also after an error, which the stream will meet and tell.
 * The socket's stream must have nothing to write.
 */
export function sendNow(socket: net.Socket, pieces: readonly Buffer[]): number {
  const fd = descriptorOf(socket);
  if (fd < 0 || socket.writableLength > 0) return 0;
  try {
    if (pieces.length === 1) return writeSync(fd, pieces[0]!);
    return writevSync(fd, pieces.length > PIECES_MAX ? pieces.slice(0, PIECES_MAX) : pieces);
  } catch {
    return 0;
  }
}

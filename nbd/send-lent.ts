// Lent data into a unix socket. What the socket does not take at once waits for room: a little of it goes
// through Node's stream, which knows when there is room again, and the rest follows behind it. Where the
// system cannot move it at all, all of it goes that way.

import type net from "node:net";
import type { LentData } from "./backend.ts";
import { localDescriptorOf } from "./send.ts";

/** What is copied to wait for room: a page. */
const WAITING_BYTES = 4096;

/**
 * Moves all of `lent` to the socket. True: the system has it. False: `written` is called when it has, or when
 * the socket has failed. Nothing else is written to the socket meanwhile.
 */
export function sendLent(socket: net.Socket, lent: LentData, written: () => void): boolean {
  let moved = 0;
  if (socket.writableLength === 0) {
    const descriptor = localDescriptorOf(socket);
    do moved = descriptor < 0 ? -1 : lent.moveTo(descriptor);
    while (moved > 0 && lent.bytes > 0);
  }
  if (lent.bytes === 0) return true;
  const part = Buffer.allocUnsafe(moved < 0 ? lent.bytes : Math.min(lent.bytes, WAITING_BYTES));
  try {
    lent.take(part);
  } catch (error) {
    // The head of the reply is sent: there is no other way left to tell the client.
    socket.destroy(error as Error);
    return false;
  }
  socket.write(part, (error) => {
    // A socket that is closed has let go of the data.
    if (error || socket.destroyed) return;
    if (lent.bytes === 0 || sendLent(socket, lent, written)) written();
  });
  return false;
}

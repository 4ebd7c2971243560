// For tests of the transmission phase: numbers of the protocol, a disk to talk to, and exchanges of bytes.

import { expect } from "vitest";
import { NbdErrno } from "../../src/base/errors.ts";
import { MemoryBackend, type MemoryBackendOptions, type Pace } from "./memory-backend.ts";
import { type Peer, startServer } from "./peer.ts";

export const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] = [0, 1, 2, 3, 4, 5, 6, 7];
export const [FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN] = [1, 2, 4, 8, 16, 32];
export const [NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, STATUS_EXT, ERROR] = [0, 1, 2, 5, 6, 0x8001];
export const { EPERM, EIO, EINVAL, ENOSPC, ENOTSUP } = NbdErrno;
export const SIZE = 1 << 20;
export const BASE = "base:allocation";
export const DEPTH = "qemu:allocation-depth";

/** Both ways in which a backend may finish. */
export const paces: [string, Pace][] = [
  ["at once", (operation) => operation()],
  ["later", (operation) => Promise.resolve().then(operation)],
];

export async function serve(options: Partial<MemoryBackendOptions> = {}) {
  const backend = new MemoryBackend({ size: SIZE, ...options });
  const { server, path } = await startServer();
  server.addExport({ name: "", backend });
  return { server, path, backend };
}

export function filled(bytes: number, value = 0xaa): Buffer {
  return Buffer.alloc(bytes, value);
}

/** Sends a request and expects exactly this answer. */
export async function exchange(peer: Peer, request: Buffer, answer: Buffer): Promise<void> {
  peer.send(request);
  expect((await peer.read(answer.length)).toString("hex")).toBe(answer.toString("hex"));
}

/** Reads one chunk. */
export async function chunk(peer: Peer, isExtended = false) {
  const head = await peer.read(isExtended ? 32 : 20);
  const bytes = isExtended ? Number(head.readBigUInt64BE(24)) : head.readUInt32BE(16);
  const payload = await peer.read(bytes);
  return {
    done: head.readUInt16BE(4) === 1,
    type: head.readUInt16BE(6),
    cookie: head.readBigUInt64BE(8),
    payload,
  };
}

/** Expects an error chunk with this errno and a message that is UTF-8; returns the message. */
export async function errorChunk(peer: Peer, errno: number, isExtended = false): Promise<string> {
  const { done, type, payload } = await chunk(peer, isExtended);
  expect({ done, type, errno: payload.readUInt32BE(0) }).toEqual({ done: true, type: ERROR, errno });
  expect(payload.readUInt16BE(4)).toBe(payload.length - 6);
  return new TextDecoder("utf-8", { fatal: true }).decode(payload.subarray(6));
}

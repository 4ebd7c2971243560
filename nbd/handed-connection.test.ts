import { readSync, writeSync } from "node:fs";
import { setImmediate as turn } from "node:timers/promises";
import { afterEach, expect, it } from "vitest";
import { connectForHandOver } from "./handed-connection.ts";
import { Cmd, encodeRequest, requestBytes, Style, TransmissionFlags } from "./protocol.ts";
import { MemoryBackend } from "./testing/memory-backend.ts";
import { cleanUp, startServer } from "./testing/peer.ts";

afterEach(cleanUp);

async function serve() {
  const backend = new MemoryBackend({ size: 4096 });
  const { server, path } = await startServer();
  server.addExport({ name: "disk", backend });
  return { server, target: { address: { path }, exportName: "disk" } };
}

/** A blocking read of a socket that does not block; other things go on meanwhile. */
async function readFully(fd: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes);
  for (let done = 0; done < bytes; ) {
    try {
      done += readSync(fd, buffer, done, bytes - done, null);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      await turn();
    }
  }
  return buffer;
}

it("leaves all that comes after the handshake to whoever goes on with the descriptor", async () => {
  const { target } = await serve();
  const connection = await connectForHandOver(target);
  expect(connection.details.size).toBe(4096);
  expect(connection.details.flags & TransmissionFlags.CAN_MULTI_CONN).not.toBe(0);
  const request = Buffer.alloc(requestBytes(Style.SIMPLE));
  encodeRequest(request, 0, Style.SIMPLE, { type: Cmd.READ, flags: 0, cookie: 7, offset: 0, bytes: 1024 });
  for (let round = 0; round < 20; round++) {
    writeSync(connection.descriptor, request);
    // Time in which our own stream could take the reply.
    for (let turns = 0; turns < 20; turns++) await turn();
    const reply = await readFully(connection.descriptor, 16 + 1024);
    expect(reply.readUInt32BE(0)).toBe(0x67446698);
    expect(reply.readUInt32BE(4)).toBe(0);
  }
  connection.release();
});

it("ends the connection when nobody took it over", async () => {
  const { server, target } = await serve();
  const connection = await connectForHandOver(target);
  expect(server.connectionCount).toBe(1);
  connection.release();
  while (server.connectionCount > 0) await turn();
});

it("says what the server refused, and leaves no connection", async () => {
  const { server, target } = await serve();
  await expect(connectForHandOver({ ...target, exportName: "other" })).rejects.toThrow(
    /refused NBD export 'other'/,
  );
  while (server.connectionCount > 0) await turn();
});

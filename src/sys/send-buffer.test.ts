import { writeSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { expect, it } from "vitest";
import { KiB } from "../base/units.ts";
import { growSendBuffer } from "./send-buffer.ts";
import { LIBC, temporaryDirectory } from "./testing/places.ts";

/** What the kernel takes for a peer that does not read. */
async function takenFor(prepare: (fd: number) => void): Promise<number> {
  const directory = temporaryDirectory();
  const name = path.join(directory.path, "socket");
  const accepted: net.Socket[] = [];
  const server = net.createServer({ pauseOnConnect: true }, (socket) => accepted.push(socket));
  await new Promise<void>((resolve) => server.listen(name, resolve));
  const client = net.connect({ path: name });
  client.pause();
  await new Promise<void>((resolve) => client.once("connect", resolve));
  while (accepted.length === 0) await new Promise(setImmediate);
  const { fd } = (accepted[0] as unknown as { _handle: { fd: number } })._handle;
  prepare(fd);
  let taken = 0;
  try {
    for (;;) taken += writeSync(fd, Buffer.alloc(4 * KiB));
  } catch (error) {
    expect((error as NodeJS.ErrnoException).code).toBe("EAGAIN");
  }
  client.destroy();
  accepted[0]!.destroy();
  await new Promise((resolve) => server.close(resolve));
  directory.remove();
  return taken;
}

it.skipIf(LIBC === undefined)("a client's socket takes more at once", async () => {
  const before = await takenFor(() => {});
  expect(await takenFor(growSendBuffer)).toBeGreaterThan(1.5 * before);
});

it("a descriptor that is none is left alone", () => {
  growSendBuffer(1_000_000);
});

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { watchSocket } from "./socket-watch.ts";
import { LIBC } from "./testing/places.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

/** Both ends of a unix socket, and the descriptor of the first. */
async function connection() {
  const folder = mkdtempSync(join(tmpdir(), "strata-watch-"));
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
  const server = net.createServer({ pauseOnConnect: true }).listen(join(folder, "socket"));
  cleanups.push(() => void server.close());
  const accepted = once(server, "connection");
  const client = net.connect(join(folder, "socket"));
  const [own] = (await accepted) as [net.Socket];
  cleanups.push(() => {
    own.destroy();
    client.destroy();
  });
  const { fd } = (own as unknown as { _handle: { fd: number } })._handle;
  return { own, client, fd };
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

describe.skipIf(LIBC === undefined)("a watch on a unix socket", () => {
  it("knows what the peer has not read, also when the socket is closed, and the peer sees its end", async () => {
    const { own, client, fd } = await connection();
    client.pause();
    const watch = watchSocket(fd)!;
    expect(watch.unreadBytes()).toBe(0);
    own.write(Buffer.alloc(100_000));
    await until(() => own.writableLength === 0);
    own.destroy();
    await once(own, "close");
    watch.socketClosed();
    let got = 0;
    let ended = false;
    expect(watch.unreadBytes()).toBeGreaterThan(0);
    client.on("end", () => {
      ended = true;
    });
    client.on("data", (chunk) => {
      got += chunk.length;
    });
    client.resume();
    await until(() => ended);
    expect([got, watch.unreadBytes()]).toEqual([100_000, 0]);
    watch.close();
  });

  it("is not there where lending is not wanted, or for what is no descriptor", async () => {
    const { fd } = await connection();
    process.env["STRATA_NO_LENDING"] = "1";
    try {
      expect(watchSocket(fd)).toBeUndefined();
    } finally {
      delete process.env["STRATA_NO_LENDING"];
    }
    expect(watchSocket(-1)).toBeUndefined();
  });
});

import { readdirSync } from "node:fs";
import net from "node:net";
import { dirname } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { heldBufferCount } from "./held-buffer.ts";
import { NbdServer } from "./server.ts";
import { MemoryBackend, type Pace } from "./testing/memory-backend.ts";
import {
  cleanUp,
  compact,
  entered,
  greeted,
  OPTS,
  onCleanUp,
  option,
  optionReply,
  Peer,
  repError,
  simpleReply,
  startServer,
  str,
  u16,
} from "./testing/peer.ts";

afterEach(cleanUp);

const FLUSH = compact({ type: 3, cookie: 1 });

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

/** A backend whose operations end when told to. */
function gated(size = 1 << 20) {
  const waiting: (() => void)[] = [];
  const pace: Pace = (operation) =>
    new Promise<void>((resolve, reject) => {
      waiting.push(() => {
        try {
          resolve(operation());
        } catch (error) {
          reject(error);
        }
      });
    });
  const backend = new MemoryBackend({ size, pace });
  const release = () => {
    for (const go of waiting.splice(0)) go();
  };
  return { backend, waiting, release };
}

async function isAlive(peer: Peer): Promise<boolean> {
  peer.send(FLUSH);
  return (await peer.read(16)).equals(simpleReply(1));
}

describe("exports", () => {
  it("offers several on one listener, by name, each with its own disk", async () => {
    const { server, path } = await startServer();
    const disks = ["a", "b"].map((name) => ({ name, backend: new MemoryBackend({ size: 512 }) }));
    for (const disk of disks) server.addExport(disk);
    disks[1]!.backend.bytes.fill(7);
    const peer = await greeted(path);
    peer.send(option(OPTS.GO, str("b"), u16(0)));
    await peer.read(52);
    peer.send(compact({ type: 0, length: 1 }));
    expect((await peer.read(17))[16]).toBe(7);
    expect([server.clientCount("a"), server.clientCount("b")]).toEqual([0, 1]);
    expect(server.exportNames()).toEqual(["a", "b"]);
  });

  it("gives the default export to who asks for the empty name", async () => {
    const { server, path } = await startServer({ defaultExport: "main" });
    server.addExport({ name: "main", backend: new MemoryBackend({ size: 512 }) });
    await entered(path);
    expect(server.clientCount("main")).toBe(1);
  });

  it("refuses a name that is taken and what the protocol does not allow", async () => {
    const { server } = await startServer();
    const backend = new MemoryBackend({ size: 512 });
    server.addExport({ name: "x", backend });
    expect(() => server.addExport({ name: "x", backend })).toThrow(/already has export named 'x'/);
    expect(() => server.addExport({ name: "a\0", backend })).toThrow(/NUL/);
    expect(() => server.addExport({ name: "é".repeat(2049), backend })).toThrow(/4096/);
    for (const blockMinimum of [0, 3, 1 << 17]) {
      const odd = new MemoryBackend({ size: 512, blockMinimum });
      expect(() => server.addExport({ name: "y", backend: odd })).toThrow(/power of two/);
    }
  });

  it("removes safely only without clients, and tells when the last one left", async () => {
    const { server, path } = await startServer();
    let left = 0;
    server.addExport(
      { name: "", backend: new MemoryBackend({ size: 512 }) },
      { onLastClientLeft: () => left++ },
    );
    const first = await entered(path);
    const second = await entered(path);
    await expect(server.removeExport("", "safe")).rejects.toThrow(/in use by 2 client/);
    first.destroy();
    await until(() => server.clientCount("") === 1);
    expect(left).toBe(0);
    second.send(compact({ type: 2 }));
    await second.rest();
    expect(left).toBe(1);
    await server.removeExport("", "safe");
    await expect(server.removeExport("", "safe")).rejects.toThrow(/no export named/);
    const late = await greeted(path);
    late.send(option(OPTS.GO, str(""), u16(0)));
    expect((await late.read(20)).readUInt32BE(12)).toBe(repError(6));
  });

  it("removes hard: drops the clients, waits for their requests, leaves other exports alone", async () => {
    const { server, path } = await startServer();
    const { backend, waiting, release } = gated();
    server.addExport({ name: "", backend });
    server.addExport({ name: "other", backend: new MemoryBackend({ size: 512 }) });
    const peer = await entered(path);
    const other = await greeted(path);
    other.send(option(OPTS.GO, str("other"), u16(0)));
    await other.read(52);
    peer.send(compact({ type: 1, length: 4, payload: Buffer.from("keep") }));
    await until(() => waiting.length === 1);
    let removed = false;
    const removal = server.removeExport("", "hard").then(() => {
      removed = true;
    });
    expect((await peer.rest()).length).toBe(0);
    expect(await isAlive(other)).toBe(true);
    expect(removed).toBe(false);
    release();
    await removal;
    expect(backend.bytes.toString("latin1", 0, 4)).toBe("keep");
    expect(server.exportNames()).toEqual(["other"]);
  });
});

describe("limits", () => {
  it("closes connections above the cap, and takes new ones when some have left", async () => {
    const { server, path } = await startServer({ maxConnections: 3 });
    server.addExport({ name: "", backend: new MemoryBackend({ size: 512 }) });
    const peers = [await entered(path), await entered(path), await greeted(path)];
    const refused = await Peer.connect(path);
    expect((await refused.rest()).length).toBe(0);
    peers[2]!.destroy();
    await until(() => server.connectionCount === 2);
    expect(await isAlive(await entered(path))).toBe(true);
    server.setMaxConnections(0);
    for (let i = 0; i < 120; i++) await entered(path);
    expect(server.connectionCount).toBe(123);
  });

  it("drops a client that does not negotiate in time, and nobody else", async () => {
    const clock = new ManualClock();
    const { server, path } = await startServer({ clock, handshakeMs: 10_000 });
    server.addExport({ name: "", backend: new MemoryBackend({ size: 512 }) });
    const silent = await Peer.connect(path);
    const slow = await greeted(path);
    slow.send(option(OPTS.LIST), Buffer.from("IHAVE"));
    const served = await entered(path);
    await slow.read(20);
    clock.advance(9_999);
    expect(await isAlive(served)).toBe(true);
    clock.advance(1);
    expect((await silent.rest()).length).toBe(18);
    await slow.rest();
    expect(await isAlive(served)).toBe(true);
  });

  it("has no deadline when it is 0", async () => {
    const clock = new ManualClock();
    const { path } = await startServer({ clock, handshakeMs: 0 });
    const silent = await greeted(path);
    clock.advance(1e9);
    silent.send(option(OPTS.LIST));
    expect(await silent.read(20)).toEqual(optionReply(OPTS.LIST, 1));
  });

  it("leaves no descriptor and no buffer behind after 200 connects and drops", async () => {
    const descriptors = () => readdirSync("/proc/self/fd").length;
    const { server, path } = await startServer({ maxConnections: 0 });
    server.addExport({ name: "", backend: new MemoryBackend({ size: 512 }) });
    (await entered(path)).destroy();
    await until(() => server.connectionCount === 0);
    const [files, buffers] = [descriptors(), heldBufferCount()];
    for (let i = 0; i < 200; i++) {
      const peer =
        i % 3 === 0 ? await Peer.connect(path) : i % 3 === 1 ? await greeted(path) : await entered(path);
      peer.destroy();
    }
    await until(() => server.connectionCount === 0);
    expect(descriptors()).toBeLessThanOrEqual(files);
    expect(heldBufferCount()).toBe(buffers);
  });
});

describe("shutdown", () => {
  it("lets requests under way end, refuses later ones with ESHUTDOWN, then closes", async () => {
    const { server, path } = await startServer();
    const { backend, waiting, release } = gated();
    server.addExport({ name: "", backend });
    const peer = await entered(path);
    const idle = await entered(path);
    const negotiating = await greeted(path);
    peer.send(compact({ type: 1, cookie: 5, length: 4, payload: Buffer.from("last") }));
    await until(() => waiting.length === 1);
    const closed = server.close(60_000);
    expect((await idle.rest()).length).toBe(0);
    expect((await negotiating.rest()).length).toBe(0);
    peer.send(
      compact({ type: 3, cookie: 6 }),
      compact({ type: 1, cookie: 7, length: 9, payload: Buffer.alloc(9) }),
    );
    expect(await peer.read(32)).toEqual(Buffer.concat([simpleReply(6, 108), simpleReply(7, 108)]));
    release();
    expect(await peer.rest()).toEqual(simpleReply(5));
    expect(await closed).toBe(true);
    expect(backend.calls).toEqual({ write: 1 });
    await expect(Peer.connect(path)).rejects.toThrow();
  });

  it("waits a second for peers that neither read nor close, also where their end had begun before", async () => {
    const clock = new ManualClock();
    const { server, path } = await startServer({ clock });
    server.addExport({ name: "", backend: new MemoryBackend({ size: 1 << 20 }) });
    const idle = await entered(path);
    const leaving = await entered(path);
    for (const peer of [idle, leaving]) peer.socket.allowHalfOpen = true;
    leaving.send(compact({ type: 2, cookie: 1 }));
    await until(() => server.clientCount("") === 1);
    let over = false;
    void server.close(60_000).then(() => {
      over = true;
    });
    clock.advance(999);
    for (let turn = 0; turn < 10; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(over).toBe(false);
    clock.advance(1);
    await until(() => over);
    expect(server.connectionCount).toBe(0);
  });

  it("is over in bounded time though a backend hangs, and says so", async () => {
    const clock = new ManualClock();
    const { server, path } = await startServer({ clock });
    const { backend, waiting, release } = gated();
    server.addExport({ name: "", backend });
    const peer = await entered(path);
    peer.send(FLUSH);
    await until(() => waiting.length === 1);
    const closed = server.close(1_000);
    let result: boolean | undefined;
    void closed.then((value) => {
      result = value;
    });
    while (result === undefined) {
      clock.advance(500);
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(result).toBe(false);
    await peer.rest();
    release();
    await until(() => server.connectionCount === 0);
  });
});

describe("listening", () => {
  it("listens on unix and TCP sockets at once and tells the port it took", async () => {
    const { server } = await startServer();
    server.addExport({ name: "", backend: new MemoryBackend({ size: 512 }) });
    const address = await server.listen({ host: "127.0.0.1", port: 0 });
    if (!("port" in address)) throw new Error("no port");
    expect(address.port).toBeGreaterThan(0);
    const socket = net.connect(address.port, "127.0.0.1");
    const peer = new Peer(socket);
    expect((await peer.read(18)).toString("latin1", 0, 8)).toBe("NBDMAGIC");
    peer.destroy();
    const second = new NbdServer();
    onCleanUp(() => void second.close(0));
    await expect(second.listen(address)).rejects.toMatchObject({ code: "EADDRINUSE" });
  });

  it("has a unix socket's name cleared before it listens there, and never takes a live one", async () => {
    const { path } = await startServer();
    const cleared: string[] = [];
    const second = new NbdServer({ clearStaleSocket: async (name) => void cleared.push(name) });
    await expect(second.listen({ path })).rejects.toMatchObject({ code: "EADDRINUSE" });
    expect(cleared).toEqual([path]);
    await second.listen({ path: `${path}-2` });
    await second.close(0);
    expect(readdirSync(dirname(path))).toEqual(["socket"]);
  });

  it("says where it cannot listen", async () => {
    const server = new NbdServer();
    await expect(server.listen({ path: "/nonexistent/dir/socket" })).rejects.toThrow(
      /nonexistent\/dir\/socket/,
    );
  });
});

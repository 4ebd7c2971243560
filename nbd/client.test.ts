import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { contextsOf, detailsOf, exportsOf, NbdClient } from "./client.ts";
import { Style } from "./protocol.ts";
import { MemoryBackend, noSpace } from "./testing/memory-backend.ts";
import {
  cleanUp,
  concat,
  OPTS,
  onCleanUp,
  optionReply,
  startServer,
  structuredChunk,
  u16,
  u64,
} from "./testing/peer.ts";
import { formatNbdUri } from "./uri.ts";

afterEach(cleanUp);

async function serve(size = 1 << 20) {
  const backend = new MemoryBackend({ size, description: "for the client" });
  const { server, path } = await startServer();
  server.addExport({ name: "disk", backend });
  return { server, backend, target: { address: { path }, exportName: "disk" } };
}

describe("looking at a server", () => {
  it("lists exports, tells details and contexts, and leaves politely", async () => {
    const { server, target } = await serve();
    expect(await exportsOf(target.address)).toEqual([{ name: "disk", description: "for the client" }]);
    expect(await detailsOf(target)).toEqual({
      size: 1 << 20,
      flags: expect.any(Number),
      name: "disk",
      description: "for the client",
      blockSize: { minimum: 1, preferred: 4096, maximum: 32 << 20 },
    });
    expect(await contextsOf(target)).toEqual(["base:allocation", "qemu:allocation-depth"]);
    expect(await contextsOf(target, ["base:"])).toEqual(["base:allocation"]);
    while (server.connectionCount > 0) await new Promise((resolve) => setImmediate(resolve));
  });

  it("says what the server refused, and where nobody answers", async () => {
    const { target } = await serve();
    const missing = { ...target, exportName: "missing" };
    await expect(NbdClient.connect(missing)).rejects.toThrow(
      /refused NBD export 'missing': no export of this name/,
    );
    await expect(detailsOf(missing)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(NbdClient.connect("nbd+unix:///?socket=/nonexistent")).rejects.toThrow(
      /cannot connect to .*nonexistent/,
    );
  });
});

describe.each([
  ["simple", Style.SIMPLE],
  ["structured", Style.STRUCTURED],
  ["extended", Style.EXTENDED],
])("%s replies", (_, style) => {
  it("carry out every command", async () => {
    const { backend, target } = await serve();
    const client = await NbdClient.connect(formatNbdUri(target), { style, contexts: ["base:allocation"] });
    expect([client.style, client.size, client.contexts.size]).toEqual([
      style,
      1 << 20,
      style === Style.SIMPLE ? 0 : 1,
    ]);
    await client.write(10, Buffer.from("hello"), { fua: true });
    expect((await client.read(9, 7)).toString("latin1")).toBe("\0hello\0");
    await client.writeZeroes(11, 3, { noHole: true, fastZero: true });
    await client.trim(0, 4096);
    await client.cache(0, 1 << 20);
    await client.flush();
    expect(backend.calls).toMatchObject({ fua: 1, fastOnly: 1, trim: 1, cache: 1, flush: 1 });
    await client.disconnect();
    await expect(client.read(0, 1)).rejects.toMatchObject({ code: "EIO" });
  });

  it("fail one request with the server's error and go on", async () => {
    const { backend, target } = await serve();
    const client = await NbdClient.connect(target, { style });
    backend.failNext = { operation: "write", error: noSpace() };
    const failed = client.write(0, Buffer.alloc(10));
    await expect(failed).rejects.toMatchObject({ code: "ENOSPC" });
    if (style !== Style.SIMPLE) await expect(failed).rejects.toThrow(/cluster 7/);
    await expect(client.read(1 << 20, 1)).rejects.toMatchObject({ code: "EINVAL" });
    await client.write(0, Buffer.alloc(10));
    client.destroy();
  });

  it("pass more than the maximum payload in several requests", async () => {
    const { backend, target } = await serve(80 << 20);
    const client = await NbdClient.connect(target, { style });
    const data = Buffer.alloc(70 << 20, 0x5a);
    await client.write(5, data);
    expect(backend.count("write")).toBe(3);
    const back = Buffer.alloc(data.length + 2);
    await client.readInto({ offset: 5, bytes: data.length, buffer: back, at: 1 });
    expect(back.subarray(1, -1).equals(data)).toBe(true);
    expect([back[0], back.at(-1)]).toEqual([0, 0]);
    await client.disconnect();
  });
});

it("works over TCP", async () => {
  const { server } = await serve();
  const address = await server.listen({ host: "127.0.0.1", port: 0 });
  const client = await NbdClient.connect(formatNbdUri({ address, exportName: "disk" }));
  const data = Buffer.alloc(3_000_000, 0x42);
  await Promise.all([client.write(1, data.subarray(0, 900_000)), client.write(900_001, data.subarray(0, 9))]);
  expect(
    (await client.read(0, 900_011)).equals(
      Buffer.concat([Buffer.alloc(1), data.subarray(0, 900_009), Buffer.alloc(1)]),
    ),
  ).toBe(true);
  await client.disconnect();
});

it("asks for the status of some of the selected contexts", async () => {
  const { target } = await serve();
  const contexts = ["base:allocation", "qemu:allocation-depth", "x:unknown"];
  const client = await NbdClient.connect(target, { contexts });
  expect([...client.contexts.keys()]).toEqual(contexts.slice(0, 2));
  await client.write(0, Buffer.alloc(4096));
  const all = await client.blockStatus(0, 1 << 20);
  expect(all.get("base:allocation")).toEqual([
    { bytes: 4096, flags: 0 },
    { bytes: (1 << 20) - 4096, flags: 3 },
  ]);
  const one = await client.blockStatus(0, 1 << 20, { contexts: ["qemu:allocation-depth"], reqOne: true });
  expect([...one]).toEqual([["qemu:allocation-depth", [{ bytes: 4096, flags: 1 }]]]);
  client.destroy();
});

it("fails everything in flight when the connection is lost", async () => {
  const { server, backend, target } = await serve();
  backend.pace = () => new Promise<void>(() => {});
  const client = await NbdClient.connect(target);
  const lost = Promise.allSettled([client.read(0, 1), client.flush()]);
  while (backend.underWay < 2) await new Promise((resolve) => setImmediate(resolve));
  void server.removeExport("disk", "hard");
  expect((await lost).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  expect(client.inFlight).toBe(0);
});

describe("a server that breaks the protocol", () => {
  /** A server that negotiates structured replies properly and then sends `bytes` to whatever it is asked. */
  async function liar(bytes: Buffer): Promise<NbdClient> {
    const directory = mkdtempSync(join(tmpdir(), "nbd-liar-"));
    const path = join(directory, "socket");
    const answers = [
      optionReply(OPTS.STRUCTURED, 1),
      concat(optionReply(OPTS.GO, 3, u16(0), u64(4096), u16(1)), optionReply(OPTS.GO, 1)),
      bytes,
    ];
    const server = net.createServer((socket) => {
      socket.on("error", () => {});
      socket.write(concat(Buffer.from("NBDMAGICIHAVEOPT"), u16(3)));
      socket.on("data", () => void (answers.length > 0 && socket.write(answers.shift()!)));
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    onCleanUp(() => {
      server.close();
      rmSync(directory, { recursive: true });
    });
    return NbdClient.connect({ address: { path }, exportName: "" }, { style: Style.STRUCTURED });
  }

  const data = (at: number, bytes: number) => concat(u64(at), Buffer.alloc(bytes));
  it.each([
    ["a bad magic", Buffer.alloc(20, 9)],
    ["a cookie that was not used", structuredChunk({ type: 0, cookie: 77 })],
    ["data before the range", structuredChunk({ type: 1, payload: data(99, 4) })],
    ["data past the range", structuredChunk({ type: 1, payload: data(100, 11) })],
    ["an offset of 2^63", structuredChunk({ type: 1, payload: concat(u64(2n ** 63n), Buffer.alloc(4)) })],
    [
      "the same data twice",
      concat(
        structuredChunk({ done: false, type: 1, payload: data(100, 6) }),
        structuredChunk({ done: false, type: 1, payload: data(100, 6) }),
      ),
    ],
    ["an unknown chunk", structuredChunk({ type: 99 })],
    ["a hole of a wrong form", structuredChunk({ type: 2, payload: u64(100) })],
    ["an error without a code", structuredChunk({ type: 0x8001, payload: u16(1) })],
  ])("is left on %s", async (_, bytes) => {
    const client = await liar(bytes);
    await expect(client.read(100, 10)).rejects.toThrow(/broke the protocol/);
    await expect(client.flush()).rejects.toThrow(/broke the protocol/);
  });

  it("fails a read whose data is not all there", async () => {
    const client = await liar(structuredChunk({ type: 1, payload: data(102, 8) }));
    await expect(client.read(100, 10)).rejects.toThrow(/left out/);
    client.destroy();
  });
});

import net from "node:net";
import { connect, type TLSSocket } from "node:tls";
import { afterEach, describe, expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { heldBufferCount } from "./held-buffer.ts";
import { MemoryBackend } from "./testing/memory-backend.ts";
import {
  ACK,
  cleanUp,
  compact,
  greeted,
  OPTS,
  onCleanUp,
  option,
  optionReply,
  type Peer,
  repError,
  simpleReply,
  startServer,
  str,
  u16,
  u32,
} from "./testing/peer.ts";
import { answered, KEY, pskPolicy, secured, USER } from "./testing/tls-peer.ts";

afterEach(async () => {
  await cleanUp();
  await expect.poll(heldBufferCount).toBe(0);
});

const SIZE = 8 << 20;
const TLS_REQD = repError(5);

async function serve(policy = pskPolicy(), options: { clock?: ManualClock; handshakeMs?: number } = {}) {
  const backend = new MemoryBackend({ size: SIZE });
  const { server, path } = await startServer({ tls: policy, ...options });
  server.addExport({ name: "", backend });
  return { server, path, backend };
}

async function enter(peer: Peer): Promise<void> {
  peer.send(option(OPTS.GO, str(""), u16(0)));
  await peer.read(20 + 12 + 20);
}

async function errorType(peer: Peer): Promise<number> {
  const head = await peer.read(20);
  await peer.read(head.readUInt32BE(16));
  return head.readUInt32BE(12);
}

const startTls = option(OPTS.STARTTLS);
const startTlsAck = optionReply(OPTS.STARTTLS, ACK);

describe("before TLS", () => {
  it("every option but STARTTLS and ABORT is refused, known or not", async () => {
    const { path } = await serve();
    const peer = await greeted(path);
    const query = [str(""), u32(1), str("base:allocation")];
    peer.send(option(OPTS.LIST), option(OPTS.INFO, str(""), u16(0)), option(OPTS.GO, str(""), u16(0)));
    peer.send(option(OPTS.STRUCTURED), option(OPTS.EXTENDED), option(OPTS.LIST_META, ...query));
    peer.send(option(OPTS.SET_META, ...query), option(77, Buffer.from("data")), option(4));
    for (let n = 0; n < 9; n++) expect(await errorType(peer)).toBe(TLS_REQD);
    peer.send(option(OPTS.ABORT));
    expect(await peer.rest()).toEqual(optionReply(OPTS.ABORT, ACK));
  });

  it("EXPORT_NAME hangs up", async () => {
    const { path } = await serve();
    const peer = await greeted(path);
    expect((await peer.send(option(OPTS.EXPORT_NAME)).rest()).length).toBe(0);
  });

  it("STARTTLS with data is refused, and one without it works afterwards", async () => {
    const { path } = await serve();
    const peer = await greeted(path);
    peer.send(option(OPTS.STARTTLS, Buffer.from("x")));
    expect(await errorType(peer)).toBe(repError(3));
    peer.send(startTls);
    expect(await peer.read(20)).toEqual(startTlsAck);
  });
});

describe("in TLS", () => {
  it("requests of all sizes are answered", async () => {
    const { path, backend } = await serve();
    const peer = await secured(path);
    await enter(peer);
    const data = Buffer.alloc(3 << 20, 0xa5);
    peer.send(compact({ type: 1, cookie: 7, offset: 12345, length: data.length, payload: data }));
    expect(await peer.read(16)).toEqual(simpleReply(7));
    expect(backend.bytes.subarray(12345, 12345 + data.length).equals(data)).toBe(true);
    const reads = [1, 512, 16384, 16385, 1 << 20, SIZE];
    reads.forEach((length, index) => void peer.send(compact({ type: 0, cookie: index, length })));
    for (const length of reads) {
      await peer.read(16);
      expect((await peer.read(length)).equals(backend.bytes.subarray(0, length))).toBe(true);
    }
    peer.send(compact({ type: 2 }));
    expect((await peer.rest()).length).toBe(0);
  });

  it("many requests in one piece are answered in one", async () => {
    const { path } = await serve();
    const peer = await secured(path);
    await enter(peer);
    const flushes = Array.from({ length: 2000 }, (_, cookie) => compact({ type: 3, cookie }));
    peer.send(...flushes);
    const replies = flushes.map((_, cookie) => simpleReply(cookie));
    expect((await peer.read(16 * 2000)).equals(Buffer.concat(replies))).toBe(true);
  });

  it("a second STARTTLS is refused", async () => {
    const { path } = await serve();
    const peer = await secured(path);
    expect(await errorType(peer.send(startTls))).toBe(repError(3));
    await enter(peer);
  });

  it("nothing agreed in the clear counts: replies are simple until asked for again", async () => {
    const { path } = await serve();
    const refused = optionReply(
      OPTS.STRUCTURED,
      TLS_REQD,
      Buffer.from("this server wants TLS: start it with STARTTLS"),
    );
    const peer = await secured(path, { before: [option(OPTS.STRUCTURED), refused] });
    await enter(peer);
    peer.send(compact({ type: 0, cookie: 5, length: 8 }));
    expect(await peer.read(24)).toEqual(simpleReply(5, 0, Buffer.alloc(8)));
    const other = await secured(path, { before: [option(OPTS.STRUCTURED), refused] });
    other.send(option(OPTS.STRUCTURED));
    expect(await other.read(20)).toEqual(optionReply(OPTS.STRUCTURED, ACK));
  });

  it("a client that ends its side first still gets its replies", async () => {
    const { path, server } = await serve();
    const peer = await secured(path);
    await enter(peer);
    for (let n = 0; n < 4; n++) peer.send(compact({ type: 0, cookie: n, length: 1 << 20 }));
    peer.socket.end();
    expect((await peer.rest()).length).toBe(4 * (16 + (1 << 20)));
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it("the policy turns a client away whose handshake was right", async () => {
    const { path, server } = await serve(pskPolicy(() => "not today"));
    const peer = await secured(path).catch(() => undefined);
    if (peer !== undefined) expect((await peer.rest()).length).toBe(0);
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it("an end of the server ends clients in each phase", async () => {
    const { path, server } = await serve();
    await answered(path, startTls, startTlsAck);
    await secured(path);
    const peer = await secured(path);
    await enter(peer);
    expect(server.connectionCount).toBe(3);
    expect(await server.close(5000)).toBe(true);
    expect((await peer.rest()).length).toBe(0);
  });
});

describe("hostile peers", () => {
  it("options behind STARTTLS in one piece are not obeyed", async () => {
    const { path, server } = await serve();
    const peer = await greeted(path);
    peer.send(startTls, option(OPTS.LIST), option(OPTS.STRUCTURED));
    const answer = await peer.rest();
    expect([startTlsAck.toString("hex"), ""]).toContain(answer.toString("hex"));
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it("options sent in the clear behind the answer end the connection without being obeyed", async () => {
    const { path, server, backend } = await serve();
    const plain = await answered(path, startTls, startTlsAck);
    plain.write(Buffer.concat([option(OPTS.GO, str(""), u16(0)), compact({ type: 3 })]));
    await new Promise((resolve) => plain.once("close", resolve).resume());
    expect(backend.count("flush")).toBe(0);
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it("clear bytes before the client's hello make the handshake fail", async () => {
    const { path, server } = await serve();
    const plain = await answered(path, startTls, startTlsAck);
    plain.write(option(OPTS.STRUCTURED));
    const client = connect({
      socket: plain,
      pskCallback: () => ({ identity: USER, psk: KEY }),
      ciphers: "PSK",
    });
    await new Promise((resolve) => client.once("error", resolve).once("close", resolve));
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it.each([
    ["another user", { pskCallback: () => ({ identity: "mallory", psk: KEY }) }],
    ["another key", { pskCallback: () => ({ identity: USER, psk: Buffer.alloc(16) }) }],
    ["no key at all", { pskCallback: undefined, ciphers: undefined }],
    ["an old version", { maxVersion: "TLSv1.1", minVersion: "TLSv1", ciphers: "PSK@SECLEVEL=0" }],
  ] as const)("%s does not come in", async (_, client) => {
    const { path, server } = await serve();
    await expect(secured(path, { client: client as object })).rejects.toThrow();
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it("a client that breaks off at any byte of the TLS handshake leaves nothing behind", async () => {
    const { path, server } = await serve();
    const peer = await secured(path);
    await enter(peer);
    for (const bytes of [0, 1, 5, 6, 40, 200]) {
      const plain = await answered(path, startTls, startTlsAck);
      plain.end(Buffer.from("1603010200010001fc0303", "hex").subarray(0, bytes));
      await new Promise((resolve) => plain.once("close", resolve).resume());
    }
    await expect.poll(() => server.connectionCount).toBe(1);
    peer.send(compact({ type: 3, cookie: 9 }));
    expect(await peer.read(16)).toEqual(simpleReply(9));
  });

  it("a client that is silent instead of starting TLS is dropped at the deadline", async () => {
    const clock = new ManualClock();
    const { path, server } = await serve(pskPolicy(), { clock, handshakeMs: 1000 });
    const plain = await answered(path, startTls, startTlsAck);
    clock.advance(1000);
    await new Promise((resolve) => plain.once("close", resolve).resume());
    await expect.poll(() => server.connectionCount).toBe(0);
  });

  it("a client that never reads its replies costs bounded memory and keeps nobody waiting", async () => {
    const { path, server } = await serve();
    const deaf = await secured(path);
    await enter(deaf);
    (deaf.socket as TLSSocket).pause();
    for (let n = 0; n < 50; n++) deaf.send(compact({ type: 0, cookie: n, length: SIZE }));
    const peer = await secured(path);
    await enter(peer);
    peer.send(compact({ type: 3, cookie: 9 }));
    expect(await peer.read(16)).toEqual(simpleReply(9));
    expect(process.memoryUsage().rss).toBeLessThan(600 << 20);
    await server.removeExport("", "hard");
  });

  // Bytes 3 and 4 are the record's length: with more of it the server waits for the rest.
  it.each([0, 1, 5, 40, 1000])(
    "somebody in between who changes byte %i of a write does not get it written",
    async (at) => {
      const { path, server, backend } = await serve();
      let left = Number.POSITIVE_INFINITY;
      const between = net.createServer((client) => {
        const onward = net.connect({ path });
        client.on("data", (bytes: Buffer) => {
          if (left < bytes.length) bytes[left]! ^= 1;
          left -= bytes.length;
          onward.write(bytes);
        });
        onward.on("data", (bytes) => client.write(bytes)).on("close", () => client.destroy());
        for (const socket of [client, onward]) socket.on("error", () => {});
      });
      onCleanUp(() => void between.close());
      await new Promise<void>((resolve) => between.listen(`${path}-between`, resolve));
      const peer = await secured(`${path}-between`);
      await enter(peer);
      left = at;
      peer.send(compact({ type: 1, length: 4096, payload: Buffer.alloc(4096, 1) }));
      await peer.rest();
      await expect.poll(() => server.connectionCount).toBe(0);
      expect(backend.count("write")).toBe(0);
    },
  );

  it("an end in the middle of a payload is no write", async () => {
    const { path, server, backend } = await serve();
    const peer = await secured(path);
    await enter(peer);
    peer.send(compact({ type: 1, length: 1 << 20, payload: Buffer.alloc(300_000, 1) }));
    peer.socket.end();
    await expect.poll(() => server.connectionCount).toBe(0);
    expect(backend.count("write")).toBe(0);
  });
});

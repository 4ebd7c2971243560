import { afterEach, describe, expect, it } from "vitest";
import { cleanUp, compact, entered, onCleanUp, type Peer, startServer } from "../../nbd/testing/peer.ts";
import { ManualClock } from "../base/clock.ts";
import { Prng } from "../base/prng.ts";
import { KiB, MiB } from "../base/units.ts";
import { Graph } from "../block/graph.ts";
import type { BlockNode } from "../block/node.ts";
import { checkImage } from "../format/qcow2/check.ts";
import { createQcow2 } from "../format/qcow2/create.ts";
import { hostImageFile } from "../format/qcow2/image-file.ts";
import { fileNode, openImage, readAll, writeAll } from "../format/qcow2/testing/nodes.ts";
import { openHostFile } from "../sys/open-host-file.ts";
import { growSendBuffer } from "../sys/send-buffer.ts";
import { watchSocket } from "../sys/socket-watch.ts";
import { LIBC, PLACES, temporaryDirectory } from "../sys/testing/places.ts";
import { NbdExport } from "./nbd-export.ts";

const SIZE = 16 * MiB;
const CLUSTER = 64 * KiB;
const READ = 0;

type DiskFile = ReturnType<typeof openHostFile>;

afterEach(cleanUp);

function folder(parent: string): string {
  const { path, remove } = temporaryDirectory(parent);
  onCleanUp(remove);
  return path;
}

async function newImage(path: string): Promise<DiskFile> {
  const file = openHostFile(path, { writable: true, create: true });
  await createQcow2(hostImageFile(file), { size: SIZE, clusterSize: CLUSTER });
  return file;
}

/** Serves `node` on a unix socket. */
async function serve(node: BlockNode) {
  const graph = new Graph();
  graph.reserveName(node.name);
  graph.add(node);
  const disk = new NbdExport(graph, node, { writable: true, allocationDepth: false });
  const { server, path } = await startServer({
    onLocalClient: growSendBuffer,
    watchLocalClient: watchSocket,
  });
  server.addExport({ name: "", backend: disk });
  return { server, path };
}

/** An image of its own whose first MiB holds ones, served. */
async function servedImage(parent: string, clock = new ManualClock()) {
  const file = await newImage(`${folder(parent)}/disk`);
  const { node, driver } = await openImage(file, { clock });
  await writeAll(node, 0, Buffer.alloc(MiB, 1));
  await node.flush();
  return { file, node, driver, clock, ...(await serve(node)) };
}

/** A client that asks for the first `length` bytes and does not read the answer. */
async function idleReader(path: string, file: DiskFile, length = MiB): Promise<Peer> {
  const before = file.counters.pipedReads;
  const peer = await entered(path);
  peer.socket.pause();
  peer.send(compact({ type: READ, offset: 0, length }));
  await until(() => file.counters.pipedReads > before);
  // The answer leaves at the end of the turn.
  for (let i = 0; i < 2; i++) await new Promise((resolve) => setImmediate(resolve));
  return peer;
}

/** The answer that waits for such a client. */
async function answer(peer: Peer, length = MiB): Promise<Buffer> {
  peer.socket.resume();
  const reply = await peer.read(16 + length);
  return reply.subarray(16);
}

/** Ends when the condition holds; the test's own limit of time is the bound. */
async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

/** Gives the first MiB up and writes elsewhere, more than the file has free otherwise. */
async function reuse(node: BlockNode): Promise<void> {
  await node.discard(0, MiB);
  await node.flush();
  await writeAll(node, 4 * MiB, Buffer.alloc(8 * MiB, 2));
  await node.flush();
}

/** Content in which each sector is different, and different from those of another `tag`. */
function sectors(into: Buffer, tag: number): Buffer {
  for (let at = 0; at + 8 <= into.length; at += 512) {
    into.fill(tag, at, at + 512);
    into.writeUInt32LE(at, at);
  }
  return into;
}

const allOnes = Buffer.alloc(MiB, 1);

describe.skipIf(LIBC === undefined).each(PLACES)("data that is lent to a client, in %s", (_name, parent) => {
  it("stays what it was though its clusters are given up before the client reads", async () => {
    const { file, node, driver, path } = await servedImage(parent);
    const peer = await idleReader(path, file);
    await reuse(node);
    expect(driver.counters()["freed-clusters"]).toBe(0);
    expect((await answer(peer)).equals(allOnes)).toBe(true);
    await until(() => driver.counters()["freed-clusters"] === 16);
    await writeAll(node, 0, Buffer.alloc(MiB, 3));
    await node.setWritable(false);
    expect(await checkImage(hostImageFile(file))).toMatchObject({ corruptions: 0, leaks: 0 });
    await node.driver.close();
  });

  it("stays for a client that reads when the server has cut it off", async () => {
    const { file, node, driver, path, server } = await servedImage(parent);
    // What the kernel keeps for a client as a whole, whatever its limits.
    const peer = await idleReader(path, file, 256 * KiB);
    await server.removeExport("", "hard");
    await reuse(node);
    expect(driver.counters()["freed-clusters"]).toBe(12);
    expect((await answer(peer, 256 * KiB)).equals(allOnes.subarray(0, 256 * KiB))).toBe(true);
    await peer.rest();
    await until(() => driver.counters()["freed-clusters"] === 16);
  });

  it("is given up when the client goes without reading it", async () => {
    const { file, node, driver, path } = await servedImage(parent);
    const peer = await idleReader(path, file);
    await reuse(node);
    peer.destroy();
    await until(() => driver.counters()["freed-clusters"] === 16);
  });

  it("holds back none of the other clusters: they are freed, and settling the image waits for nobody", async () => {
    const { file, node, driver, path } = await servedImage(parent);
    await writeAll(node, 2 * MiB, Buffer.alloc(MiB, 2));
    const peer = await idleReader(path, file);
    await node.discard(2 * MiB, MiB);
    await node.discard(MiB - CLUSTER, MiB);
    await node.flush();
    await until(() => driver.counters()["freed-clusters"] === 16);
    peer.destroy();
    await until(() => driver.counters()["freed-clusters"] === 17);
    const other = await idleReader(path, file, MiB - CLUSTER);
    await writeAll(node, 2 * MiB, Buffer.alloc(MiB, 3));
    await node.discard(2 * MiB, MiB);
    await node.setWritable(false);
    expect((await answer(other, MiB - CLUSTER)).equals(allOnes.subarray(0, MiB - CLUSTER))).toBe(true);
    expect(driver.counters()).toMatchObject({ "leaked-clusters": 0, "freed-clusters": 33 });
    expect(await checkImage(hostImageFile(file))).toMatchObject({ corruptions: 0, leaks: 0 });
  });

  it("holds up no drain, and settling an image for a second only: then its clusters leak", async () => {
    const { file, node, driver, path, clock } = await servedImage(parent);
    const peer = await idleReader(path, file);
    await node.discard(0, MiB);
    await node.quiesce();
    node.resume();
    let isReadOnly = false;
    const reopened = node.setWritable(false).then(() => {
      isReadOnly = true;
    });
    let waitedMs = 0;
    await until(() => {
      if (isReadOnly) return true;
      clock.advance(100);
      waitedMs += 100;
      return false;
    });
    expect(waitedMs).toBeGreaterThanOrEqual(1000);
    await reopened;
    expect((await answer(peer)).equals(allOnes)).toBe(true);
    expect(driver.counters()).toMatchObject({ "leaked-clusters": 16, "freed-clusters": 0 });
    expect(await checkImage(hostImageFile(file))).toMatchObject({ corruptions: 0, leaks: 16 });
  });

  it("is read again for a client that asks again: what was written meanwhile is in it", async () => {
    const { node, path } = await servedImage(parent);
    const peer = await entered(path, 1);
    for (let round = 0; round < 20; round++) {
      const content = Buffer.alloc(MiB, round);
      await writeAll(node, 0, content);
      peer.send(compact({ type: READ, offset: 0, length: MiB }));
      const reply = await peer.read(28 + MiB);
      expect(reply.subarray(28).equals(content)).toBe(true);
    }
  });

  it("is that of the chain, at any offsets, from the layer that owns it", async () => {
    const prng = new Prng(7);
    const at = folder(parent);
    const model = Buffer.alloc(SIZE);
    const raw = openHostFile(`${at}/raw`, { writable: true, create: true });
    const rawBytes = SIZE - 3 * CLUSTER - 1000;
    await raw.write(0, rawBytes, sectors(model, 1), 0);
    model.fill(0, rawBytes);
    const layers = [fileNode(raw, { growable: false })];
    const files = [raw];
    for (const name of ["middle", "top"]) {
      const file = await newImage(`${at}/${name}`);
      const { node } = await openImage(file, { backing: layers.at(-1)! });
      for (let i = 0; i < 6; i++) {
        const offset = prng.below(SIZE / CLUSTER) * CLUSTER;
        const bytes = Math.min(prng.between(1, 30) * CLUSTER, SIZE - offset);
        if (prng.chance(0.2)) {
          await node.writeZeroes(offset, bytes);
          model.fill(0, offset, offset + bytes);
        } else {
          await writeAll(
            node,
            offset,
            sectors(model.subarray(offset, offset + bytes), i + 2 + 10 * layers.length),
          );
        }
      }
      layers.push(node);
      files.push(file);
    }
    const { path } = await serve(layers.at(-1)!);
    const peer = await entered(path);
    for (let i = 0; i < 60; i++) {
      const unit = prng.pick([1, 512, 4096, CLUSTER]);
      const bytes = Math.max(1, Math.floor((prng.between(64, 5 * 1024) * KiB) / unit)) * unit;
      const offset = Math.floor(prng.below(SIZE - bytes) / unit) * unit;
      peer.send(compact({ type: READ, offset, length: bytes }));
      const reply = await peer.read(16 + bytes);
      expect([i, reply.subarray(16).equals(model.subarray(offset, offset + bytes))]).toEqual([i, true]);
    }
    expect(files.every((file) => file.counters.pipedReads > 0)).toBe(true);
    expect((await readAll(layers.at(-1)!)).equals(model)).toBe(true);
  });

  it("comes in order, with small replies in between, to a client that reads late", async () => {
    const { node, path } = await servedImage(parent);
    const model = sectors(Buffer.alloc(8 * MiB), 1);
    await writeAll(node, 0, model);
    const peer = await entered(path);
    peer.socket.pause();
    const asked: [number, number][] = [];
    for (let i = 0; i < 40; i++) {
      const length = i % 3 === 0 ? 4096 : MiB - i * 4096;
      asked.push([(i % 7) * MiB, length]);
      peer.send(compact({ type: READ, cookie: i, offset: (i % 7) * MiB, length }));
    }
    peer.socket.resume();
    const got = new Set<number>();
    for (let i = 0; i < asked.length; i++) {
      const cookie = Number((await peer.read(16)).readBigUInt64BE(8));
      const [offset, length] = asked[cookie]!;
      expect((await peer.read(length)).equals(model.subarray(offset, offset + length))).toBe(true);
      got.add(cookie);
    }
    expect(got.size).toBe(asked.length);
  });
});

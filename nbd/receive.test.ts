import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { HeldBuffer, heldBufferCount } from "./held-buffer.ts";
import { type ReceiveSink, receiveAccepted, receiveByEvents, receivesDirectly } from "./receive.ts";
import { cleanUp, onCleanUp } from "./testing/peer.ts";

afterEach(cleanUp);

/** Notes what lands where. */
class Gatherer implements ReceiveSink {
  readonly blocks: { block: HeldBuffer; bytes: number }[] = [];
  readonly text: string[] = [];
  keepBlocks = false;
  wanted: Buffer | undefined;
  targetBytes = 0;

  target(): Buffer | undefined {
    return this.wanted?.subarray(this.targetBytes);
  }

  filled(bytes: number): void {
    this.targetBytes += bytes;
    if (this.targetBytes === this.wanted!.length) {
      this.text.push(`target:${this.wanted!.toString()}`);
      this.wanted = undefined;
    }
  }

  received(block: HeldBuffer, bytes: number): void {
    this.text.push(block.buffer.toString("latin1", 0, bytes));
    if (this.keepBlocks) this.blocks.push({ block: block.hold(), bytes });
  }
}

async function pair(sink: ReceiveSink, direct: boolean) {
  const directory = mkdtempSync(join(tmpdir(), "nbd-receive-"));
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true });
  server.listen(join(directory, "socket"));
  await once(server, "listening");
  const client = net.connect(join(directory, "socket"));
  const [accepted] = (await once(server, "connection")) as [net.Socket];
  const socket = direct ? receiveAccepted(accepted, sink) : accepted;
  if (!direct) {
    receiveByEvents(accepted, sink);
    accepted.resume();
  }
  onCleanUp(async () => {
    client.destroy();
    if (!socket.closed) await once(socket.destroy(), "close");
    await new Promise((resolve) => server.close(resolve));
    rmSync(directory, { recursive: true });
  });
  return { client, socket };
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

it("this Node still lets an accepted socket receive into our own buffers", async () => {
  const { socket } = await pair(new Gatherer(), true);
  // When this fails, nbd/receive.ts has fallen back to `data` events: right, but large writes are four times
  // as slow.
  expect(receivesDirectly(socket)).toBe(true);
});

describe.each([
  ["onread", true],
  ["data events", false],
])("with %s", (_, direct) => {
  it("hands over bytes in order, pauses, resumes and tells the end", async () => {
    const sink = new Gatherer();
    const { client, socket } = await pair(sink, direct);
    client.write("one");
    await until(() => sink.text.length === 1);
    socket.pause();
    client.write("two");
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    expect(sink.text).toEqual(["one"]);
    socket.resume();
    await until(() => sink.text.length === 2);
    expect(sink.text).toEqual(["one", "two"]);
    let ended = false;
    socket.on("end", () => {
      ended = true;
    });
    client.end();
    await until(() => ended);
    expect(socket.destroyed).toBe(false);
    socket.write("late");
    expect(String((await once(client, "data"))[0])).toBe("late");
  });
});

it("lands in the sink's target while it has one", async () => {
  const sink = new Gatherer();
  const { client } = await pair(sink, true);
  client.write("a");
  await until(() => sink.text.length === 1);
  sink.wanted = Buffer.alloc(4);
  client.write("b"); // Its place was settled before the target was wanted.
  await until(() => sink.text.length === 2);
  client.write("xy");
  await until(() => sink.targetBytes === 2);
  client.write("zwc");
  await until(() => sink.text.length === 4);
  expect(sink.text).toEqual(["a", "b", "target:xyzw", "c"]);
});

it("leaves a held block alone", async () => {
  const before = heldBufferCount();
  const sink = new Gatherer();
  sink.keepBlocks = true;
  const { client, socket } = await pair(sink, true);
  for (const text of ["first", "second", "third"]) {
    client.write(text);
    await until(() => sink.text.at(-1) === text);
  }
  expect(sink.blocks.map(({ block, bytes }) => block.buffer.toString("latin1", 0, bytes))).toEqual([
    "first",
    "second",
    "third",
  ]);
  socket.destroy();
  await once(socket, "close");
  for (const { block } of sink.blocks) block.release();
  expect(heldBufferCount()).toBe(before);
});

it("asserts when a block is released twice", () => {
  const block = HeldBuffer.take(10);
  block.release();
  expect(() => block.release()).toThrow(/released twice/);
  expect(() => block.hold()).toThrow(/held again/);
});

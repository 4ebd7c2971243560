import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, it } from "vitest";
import type { LentData } from "./backend.ts";
import { sendLent } from "./send-lent.ts";

const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

/** Both ends of a unix socket. */
async function connection(): Promise<{ socket: net.Socket; client: net.Socket }> {
  const folder = mkdtempSync(join(tmpdir(), "nbd-send-lent-"));
  const server = net.createServer().listen(join(folder, "socket"));
  const accepted = new Promise<net.Socket>((resolve) => server.on("connection", resolve));
  const client = net.connect(server.address() as string);
  const socket = await accepted;
  cleanups.push(() => {
    socket.destroy();
    client.destroy();
    server.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return { socket, client };
}

/**
 * Data that a system moves as `moves` says, a list of results; `taken` gets the sizes that were copied out.
 */
function lentText(text: string, moves: number[]): LentData & { taken: number[] } {
  let at = 0;
  const taken: number[] = [];
  return {
    taken,
    get bytes() {
      return text.length - at;
    },
    moveTo: () => moves.shift() ?? 0,
    take: (buffer) => {
      buffer.write(text.slice(at, at + buffer.length));
      at += buffer.length;
      taken.push(buffer.length);
    },
    release: () => {},
  };
}

async function received(client: net.Socket, bytes: number): Promise<string> {
  let text = "";
  for await (const chunk of client) {
    text += chunk;
    if (text.length >= bytes) break;
  }
  return text;
}

it.each([
  ["a page at a time where the socket has no room", [0, 0, 0], [4096, 4096, 1808]],
  ["all at once where the system cannot move it", [-22], [10_000]],
])("goes through the stream %s", async (_name, moves, taken) => {
  const { socket, client } = await connection();
  const text = Array.from({ length: 1000 }, (_, i) => `${i}`.padStart(10)).join("");
  const lent = lentText(text, moves);
  const written = new Promise<void>((resolve) => {
    expect(sendLent(socket, lent, resolve)).toBe(false);
  });
  expect(await received(client, text.length)).toBe(text);
  await written;
  expect(lent.taken).toEqual(taken);
});

it("ends the connection whose lent data cannot be had any more, and nothing else", async () => {
  const { socket } = await connection();
  const failed = new Promise((resolve) => socket.on("error", resolve));
  const lost = new Error("the page is gone");
  const lent = lentText("0123456789", []);
  lent.take = () => {
    throw lost;
  };
  const written: string[] = [];
  expect(sendLent(socket, lent, () => written.push("written"))).toBe(false);
  expect(socket.destroyed).toBe(true);
  expect(await failed).toBe(lost);
  expect(written).toEqual([]);
});

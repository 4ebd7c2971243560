import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createConnection, createServer, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { ManualClock, systemClock } from "../../base/clock.ts";
import type { Peer } from "./chardev.ts";
import type { SocketAddress } from "./socket-address.ts";
import { SocketChardev } from "./socket-chardev.ts";

let directory: string;
let address: SocketAddress & { kind: "unix" };
let ends: (() => unknown)[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "chardev-"));
  address = { kind: "unix", path: `${directory}/s` };
  ends = [];
});

afterEach(async () => {
  for (const end of ends.reverse()) await end();
  rmSync(directory, { recursive: true, force: true });
});

async function server(): Promise<SocketChardev> {
  const chardev = await SocketChardev.open({ id: "c", address, server: true, reconnectMs: 0 }, systemClock);
  ends.push(() => chardev.close());
  return chardev;
}

function dial(): Socket {
  const socket = createConnection(address.path);
  socket.on("error", () => {});
  ends.push(() => socket.destroy());
  return socket;
}

function said(socket: Socket): Promise<string> {
  return new Promise((resolve) => socket.once("data", (bytes) => resolve(String(bytes))));
}

it("has one peer at a time; the next one is seated when it has gone", async () => {
  const chardev = await server();
  let peers = 0;
  chardev.attach({
    opened(peer: Peer) {
      peer.input!.resume();
      peer.output!.write(`you are ${++peers}`);
    },
  });
  expect(chardev.filename).toBe(`disconnected:unix:${address.path},server=on`);
  const first = dial();
  expect(await said(first)).toBe("you are 1");
  expect(chardev.filename).toBe(`unix:${address.path},server=on`);
  const second = dial();
  const heard = said(second);
  first.destroy();
  expect(await heard).toBe("you are 2");
});

it("lets peers wait until somebody uses it", async () => {
  const chardev = await server();
  const early = dial();
  await chardev.firstPeer();
  const heard = said(early);
  chardev.attach({ opened: (peer: Peer) => peer.output!.write("at last") });
  expect(await heard).toBe("at last");
});

it("gives out what was written last before it closes", async () => {
  const chardev = await server();
  const peer = new Promise<Peer>((resolve) => chardev.attach({ opened: resolve }));
  const socket = dial();
  const heard = said(socket);
  (await peer).output!.write("goodbye");
  await chardev.close();
  expect(await heard).toBe("goodbye");
});

it("takes over the name of a server that is gone, not that of one that listens", async () => {
  const left: Server = createServer();
  await new Promise<void>((resolve) => left.listen(address.path, resolve));
  ends.push(() => left.close());
  await expect(server()).rejects.toThrow(`Failed to bind socket to ${address.path}: Address already in use`);
});

it("does not touch a file that is no socket", async () => {
  writeFileSync(address.path, "precious");
  await expect(server()).rejects.toThrow("Address already in use");
});

it("says what is wrong with a place where it cannot listen or connect", async () => {
  address = { kind: "unix", path: `${directory}/none/s` };
  await expect(server()).rejects.toThrow(
    `Failed to bind socket to ${address.path}: No such file or directory`,
  );
  const client = SocketChardev.open({ id: "c", address, server: false, reconnectMs: 0 }, systemClock);
  await expect(client).rejects.toThrow(`Failed to connect to '${address.path}': No such file or directory`);
});

it("tries again as a client where it was told to", async () => {
  const clock = new ManualClock();
  const chardev = await SocketChardev.open({ id: "c", address, server: false, reconnectMs: 1000 }, clock);
  ends.push(() => chardev.close());
  let opened!: () => void;
  const seated = () =>
    new Promise<void>((resolve) => {
      opened = resolve;
    });
  const first = seated();
  chardev.attach({ opened: () => opened() });
  const host = createServer((socket) => arrived(socket));
  let arrived!: (socket: Socket) => void;
  const arrival = () =>
    new Promise<Socket>((resolve) => {
      arrived = resolve;
    });
  let coming = arrival();
  await new Promise<void>((resolve) => host.listen(address.path, resolve));
  ends.push(() => host.close());
  clock.advance(1000);
  const socket = await coming;
  await first;
  coming = arrival();
  const again = seated();
  socket.destroy();
  // The other side's end has to have arrived before the pause begins.
  await expect.poll(() => chardev.isOpen).toBe(false);
  clock.advance(1000);
  (await coming).unref();
  await again;
});

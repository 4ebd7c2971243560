// A person, or a program, that gives lines and never reads what they say.

import { expect, it } from "vitest";
import { MemorySocket } from "../../../nbd/testing/memory-socket.ts";
import { systemClock } from "../../base/clock.ts";
import { endDaemon, startDaemon } from "../testing/daemon-in-process.ts";
import { HmpMonitor } from "./monitor.ts";
import { HMP_PROMPT } from "./session.ts";

const LINES = 20_000;
const UNREAD_MAX = 100_000;

it("costs no memory, and is answered when it begins to read", async () => {
  const daemon = await startDaemon([]);
  const socket = new MemorySocket();
  const peer = { input: socket, output: socket, close: () => socket.destroy() };
  new HmpMonitor(daemon).opened(peer);
  socket.setReads(false);
  for (let count = 0; count < LINES; count += 1000) {
    socket.feed(Buffer.from("help\n".repeat(1000)));
    for (let turns = 0; turns < 20; turns++) await systemClock.turn();
    expect(socket.writableLength).toBeLessThan(UNREAD_MAX);
  }
  expect(socket.receivedBytes).toBeLessThan(UNREAD_MAX);
  socket.setReads(true);
  const prompts = () =>
    socket.received.reduce((sum, text) => sum + text.toString().split(HMP_PROMPT).length - 1, 0);
  await expect.poll(prompts, { timeout: 25_000 }).toBeGreaterThan(LINES);
  // One that goes away while it is waited for leaves nothing behind.
  socket.setReads(false);
  socket.feed(Buffer.from("help\n".repeat(100)));
  await systemClock.turn();
  socket.destroy();
  await endDaemon(daemon);
});

// The end of a client's stream may be told before its last bytes are worked off: where a stream is read by
// events, and the server waits for room. What was sent before the end counts.

import { expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { silentLogger } from "../src/base/logger.ts";
import { BusyPoll } from "./busy-poll.ts";
import { Connection, type ConnectionHost } from "./connection.ts";
import { FailureLog } from "./failure-log.ts";
import { MemoryBackend } from "./testing/memory-backend.ts";
import { MemorySocket } from "./testing/memory-socket.ts";
import { compact, concat, OPTS, option, str, u16, u32 } from "./testing/peer.ts";

const MIB = 1 << 20;

function hostOf(backend: MemoryBackend, gone: () => void): ConnectionHost {
  const clock = new ManualClock();
  return {
    clock,
    busyPoll: new BusyPoll(clock, () => {}, 1),
    failures: new FailureLog(silentLogger, clock),
    handshakeMs: 0,
    closing: false,
    find: (name) => ({ name, backend }),
    list: () => [],
    entered: () => {},
    left: () => {},
    gone,
    note: () => {},
    watchLocalClient: () => undefined,
  };
}

it("answers what was sent before the client closed its side, however long that waits for room", async () => {
  const backend = new MemoryBackend({ size: MIB });
  const socket = new MemorySocket();
  let isGone = false;
  new Connection(
    socket as never,
    hostOf(backend, () => (isGone = true)),
  );
  socket.setReads(false);
  const count = 40;
  const reads = Array.from({ length: count }, (_, cookie) => compact({ type: 0, cookie, length: MIB }));
  socket.feed(concat(u32(3), option(OPTS.GO, str(""), u16(0)), ...reads));
  socket.finish();
  for (let turns = 0; turns < 10; turns++) await new Promise((resolve) => setImmediate(resolve));
  expect(backend.count("read")).toBeLessThan(count);
  socket.setReads(true);
  for (let turns = 0; turns < 1000 && !isGone; turns++) await new Promise((resolve) => setImmediate(resolve));
  expect(backend.count("read")).toBe(count);
  expect(socket.receivedBytes).toBeGreaterThan(count * MIB);
  expect(isGone).toBe(true);
});

import { describe, expect, it } from "vitest";
import { ManualClock } from "../src/base/clock.ts";
import { HeldBuffer } from "./held-buffer.ts";
import { Outgoing } from "./outgoing.ts";
import { Style } from "./protocol.ts";
import { Session } from "./session.ts";
import { MemoryBackend } from "./testing/memory-backend.ts";
import { compact } from "./testing/peer.ts";

const REQUESTS = 8;
const READ_BYTES = 512;
const REPLY_BYTES = 16 + READ_BYTES;

/** Sizes of what leaves while one read's requests are handled, each of them taking `requestMs`. */
function sentDuring(requestMs: number): number[] {
  const clock = new ManualClock();
  const backend = new MemoryBackend({
    size: 1 << 20,
    pace: (operation) => {
      operation();
      clock.advance(requestMs);
    },
  });
  const sent: number[] = [];
  const out = new Outgoing(
    (_pieces, bytes) => {
      sent.push(bytes / REPLY_BYTES);
      return true;
    },
    () => {},
  );
  const host = { clock, mayLend: () => false, requestFailed() {}, requestEnded() {}, drained() {} };
  const session = new Session(backend, { style: Style.SIMPLE, contexts: [] }, out, host);
  const requests = Array.from({ length: REQUESTS }, (_, index) =>
    compact({ type: 0, cookie: index, offset: index * READ_BYTES, length: READ_BYTES }),
  );
  const block = HeldBuffer.around(Buffer.concat(requests));
  expect(session.consume(block, 0, block.buffer.length)).toBe(block.buffer.length);
  sent.push(-1);
  out.flush();
  out.dispose();
  return sent;
}

describe("replies to the requests that one read brought", () => {
  it("leave together when the requests are quick", () => {
    expect(sentDuring(0.01)).toEqual([-1, REQUESTS]);
  });

  it("do not wait for requests that take long", () => {
    expect(sentDuring(0.11)).toEqual([2, 2, 2, 2, -1]);
    expect(sentDuring(0.25)).toEqual([1, 1, 1, 1, 1, 1, 1, 1, -1]);
  });
});

import { describe, expect, it } from "vitest";
import type { LentData } from "./backend.ts";
import { HeldBuffer, heldBufferCount } from "./held-buffer.ts";
import { Outgoing } from "./outgoing.ts";

/** A socket that takes a batch when told to, or, like a TCP socket with room, all of it at once. */
function stage(atOnce = false) {
  const batches: { text: string; pieces: number; written: () => void }[] = [];
  let roomCount = 0;
  const out = new Outgoing(
    (pieces, bytes, written) => {
      const text = Buffer.concat(pieces).toString("latin1");
      expect(text.length).toBe(bytes);
      batches.push({ text, pieces: pieces.length, written });
      return atOnce;
    },
    () => roomCount++,
  );
  const put = (text: string) => out.copy(Buffer.from(text));
  return { out, batches, put, rooms: () => roomCount };
}

describe("outgoing replies", () => {
  it("leave together, as one piece, and one batch at a time", () => {
    const before = heldBufferCount();
    const { out, batches, put, rooms } = stage();
    put("one,");
    put("two,");
    expect(out.unsentBytes).toBe(8);
    out.flush();
    put("three");
    out.flush();
    expect(batches.map(({ text, pieces }) => [text, pieces])).toEqual([["one,two,", 1]]);
    expect([out.unsentBytes, out.idle, rooms()]).toEqual([13, false, 0]);
    batches[0]!.written();
    expect(batches[1]!.text).toBe("three");
    batches[1]!.written();
    expect([out.idle, out.unsentBytes, rooms(), heldBufferCount()]).toEqual([true, 0, 2, before]);
  });

  it("keep a pending place free and send it when it is filled, between what came before and after", () => {
    const before = heldBufferCount();
    const { out, batches, put } = stage();
    put("a");
    out.reserve(4);
    const at = out.at;
    const block = out.detach(4);
    put("b");
    out.flush();
    put("c");
    block.buffer.write("LATE", at);
    out.append(block, at, 4);
    put("d");
    batches[0]!.written();
    batches[1]!.written();
    expect(batches.map(({ text }) => text)).toEqual(["ab", "cLATEd"]);
    expect(heldBufferCount()).toBe(before);
  });

  it("go on in a new block when one is full, and send the full one early", () => {
    const { out, batches } = stage();
    const total = 700;
    for (let i = 0; i < total; i++) {
      const block = out.reserve(1000);
      block.buffer.fill(i % 256, out.at, out.at + 1000);
      out.commit(1000);
    }
    expect(batches.length).toBe(1);
    out.flush();
    for (let i = 0; i < batches.length; i++) batches[i]!.written();
    const sent = Buffer.from(batches.map(({ text }) => text).join(""), "latin1");
    expect(sent.length).toBe(total * 1000);
    for (let i = 0; i < total; i++) expect(sent[i * 1000 + 999]).toBe(i % 256);
  });

  it("go on in a new block when the full one is sent at once", () => {
    const before = heldBufferCount();
    const { out, batches } = stage(true);
    const total = 1400;
    for (let i = 0; i < total; i++) {
      const pending = i % 10 === 9;
      const block = out.reserve(1000);
      const at = out.at;
      block.buffer.fill(i % 256, at, at + 1000);
      if (!pending) out.commit(1000);
      else out.append(out.detach(1000), at, 1000);
    }
    expect(batches.length).toBeGreaterThan(3);
    out.flush();
    const sent = Buffer.from(batches.map(({ text }) => text).join(""), "latin1");
    expect(sent.length).toBe(total * 1000);
    for (let i = 0; i < total; i++) expect([i, sent[i * 1000 + 999]]).toEqual([i, i % 256]);
    expect([out.idle, heldBufferCount()]).toEqual([true, before]);
  });

  it("take a message larger than a block", () => {
    const { out, batches } = stage();
    out.copy(Buffer.alloc(1_000_000, 1));
    out.flush();
    expect(batches[0]!.text.length).toBe(1_000_000);
  });

  it("give everything back when the connection is gone, in whatever state", () => {
    const before = heldBufferCount();
    const { out, batches, put } = stage();
    put("sent");
    out.flush();
    put("queued");
    out.reserve(10);
    const pending = out.detach(10);
    out.append(HeldBuffer.take(100), 0, 100);
    put("building");
    out.dispose();
    out.dispose();
    batches[0]!.written();
    expect(heldBufferCount()).toBe(before + 1);
    out.append(pending, 0, 10);
    out.flush();
    expect([heldBufferCount(), batches.length]).toEqual([before, 1]);
  });

  it("keep lent data in its place, one loan for each batch, and say what was sent in order", () => {
    const before = heldBufferCount();
    for (const atOnce of [true, false]) {
      const sent: [number, string | undefined][] = [];
      const log: string[] = [];
      const later: (() => void)[] = [];
      const out = new Outgoing(
        (pieces, bytes, written, lent) => {
          expect(Buffer.concat(pieces).length).toBe(bytes);
          log.push(`${Buffer.concat(pieces).toString()}${lent === undefined ? "" : nameOf(lent)}`);
          if (!atOnce) later.push(written);
          return atOnce;
        },
        () => {},
        (bytes, lent) => sent.push([bytes, lent === undefined ? undefined : nameOf(lent)]),
      );
      out.copy(Buffer.from("a"));
      out.appendLent(loan("LENT1"));
      out.copy(Buffer.from("bc"));
      out.append(HeldBuffer.take(512), 0, 0);
      out.appendLent(loan("LENT22"));
      out.appendLent(loan("LENT333"));
      out.copy(Buffer.from("d"));
      expect(out.unsentBytes).toBe(22);
      out.flush();
      while (later.length > 0) later.shift()!();
      expect(log).toEqual(["aLENT1", "bcLENT22", "LENT333", "d"]);
      expect(sent).toEqual([
        [6, "LENT1"],
        [8, "LENT22"],
        [7, "LENT333"],
        [1, undefined],
      ]);
      expect([out.idle, out.unsentBytes, heldBufferCount()]).toEqual([true, 0, before]);
    }
  });

  it("let go of lent data that was not sent when the connection is gone", () => {
    const loans = [loan("first"), loan("second"), loan("third")];
    const out = new Outgoing(
      () => false,
      () => {},
    );
    out.appendLent(loans[0]!);
    out.appendLent(loans[1]!);
    out.flush();
    out.dispose();
    out.dispose();
    out.appendLent(loans[2]!);
    expect(loans.map(({ released }) => released)).toEqual([1, 1, 1]);
  });
});

class TextLoan implements LentData {
  readonly text: string;
  released = 0;

  constructor(text: string) {
    this.text = text;
  }

  get bytes(): number {
    return this.text.length;
  }

  moveTo(): number {
    return 0;
  }

  take(): void {}

  release(): void {
    this.released++;
  }
}

function loan(text: string): TextLoan {
  return new TextLoan(text);
}

function nameOf(lent: LentData): string {
  return (lent as TextLoan).text;
}

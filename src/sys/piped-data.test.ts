import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { Prng } from "../base/prng.ts";
import { KiB, MiB } from "../base/units.ts";
import { pipeCalls } from "./pipe-calls.ts";
import { PipedData, PipePool } from "./piped-data.ts";

const BYTES = 5 * MiB + 1000;
const folder = mkdtempSync(join(tmpdir(), "strata-pipes-"));
const content = Buffer.alloc(BYTES);
for (let at = 0; at + 4 <= BYTES; at += 4) content.writeUInt32LE(at, at);
writeFileSync(join(folder, "file"), content);
const file = openSync(join(folder, "file"), "r");
afterAll(() => {
  closeSync(file);
  rmSync(folder, { recursive: true, force: true });
});

function pool() {
  const clock = new ManualClock();
  return { clock, pipes: new PipePool(pipeCalls(), clock) };
}

function contentOf(data: PipedData): Buffer {
  const buffer = Buffer.alloc(data.bytes);
  data.take(buffer);
  return buffer;
}

describe.skipIf(pipeCalls() === undefined)("data in pipes", () => {
  it("is that of the ranges, one behind the other, at any offsets", async () => {
    const { pipes } = pool();
    const prng = new Prng(11);
    for (let i = 0; i < 20; i++) {
      const data = new PipedData(pipes);
      const expected: Buffer[] = [];
      for (let part = prng.between(1, 4); part > 0; part--) {
        const bytes = prng.between(1, MiB + 100 * KiB);
        const offset = prng.below(BYTES - bytes);
        const taken = prng.chance(0.5)
          ? data.add(file, offset, bytes)
          : await data.addInPool(file, offset, bytes);
        expect(taken).toBe(true);
        expected.push(content.subarray(offset, offset + bytes));
      }
      const all = Buffer.concat(expected);
      expect(data.bytes).toBe(all.length);
      expect(contentOf(data).equals(all)).toBe(true);
    }
  });

  it("is not all there behind the end of a file: then it is let go of", async () => {
    const { pipes } = pool();
    const data = new PipedData(pipes);
    expect(data.add(file, BYTES - 100, 101)).toBe(false);
    expect(await data.addInPool(file, BYTES, 1)).toBe(false);
    expect(data.add(-1, 0, 10)).toBe(false);
    data.drop();
    expect([data.bytes, pipes.open]).toEqual([0, 0]);
  });

  it("takes no more pipes than are allowed, gives them back, and closes them when they are idle", () => {
    const { clock, pipes } = pool();
    const many: PipedData[] = [];
    for (;;) {
      const data = new PipedData(pipes);
      if (!data.add(file, 0, MiB)) break;
      many.push(data);
    }
    expect([many.length, pipes.open]).toEqual([16, 16]);
    for (const data of many) expect(contentOf(data).equals(content.subarray(0, MiB))).toBe(true);
    expect(pipes.open).toBe(16);
    clock.advance(5000);
    const data = new PipedData(pipes);
    expect(data.add(file, 0, MiB)).toBe(true);
    contentOf(data);
    clock.advance(5000);
    expect(pipes.open).toBe(1);
    clock.advance(5000);
    expect(pipes.open).toBe(0);
  });

  it("asks a kernel that refuses a pipe only now and then", () => {
    let asked = 0;
    const refusing = {
      ...pool().pipes.calls!,
      open: () => {
        asked++;
        return undefined;
      },
    };
    const pipes = new PipePool(refusing, new ManualClock());
    for (let i = 0; i < 2002; i++) expect(new PipedData(pipes).add(file, 0, 10)).toBe(false);
    expect(asked).toBe(2);
  });
});

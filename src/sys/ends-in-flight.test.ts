// Writes that the kernel has done in a thread of its own, and that we have not heard of yet.

import { openSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { KiB, MiB } from "../base/units.ts";
import { Descriptor } from "./descriptor.ts";
import { portableCalls } from "./portable-calls.ts";
import { diskFileOn } from "./testing/disk-file-on.ts";
import { LIBC, temporaryDirectory } from "./testing/places.ts";
import { StingyRing } from "./testing/stingy-ring.ts";

/** Of the file with the write: 1000 bytes, a gap of 10, and 300 KiB. */
const END = 1010 + 300 * KiB;

const directory = temporaryDirectory();
afterAll(() => directory.remove());

class CountingDescriptor extends Descriptor {
  syncs = 0;

  override datasync(): Promise<number> {
    this.syncs++;
    return super.datasync();
  }
}

describe("while a write past the end is in flight", () => {
  /** The kernel has done it, we do not know yet. */
  async function pastTheEnd(name: string) {
    let tell = () => {};
    const told = new Promise<void>((resolve) => {
      tell = resolve;
    });
    class LateRing extends StingyRing {
      override async write(...args: Parameters<StingyRing["write"]>): Promise<number> {
        const result = await super.write(...args);
        await told;
        return result;
      }
    }
    const path = join(directory.path, name);
    const descriptor = new CountingDescriptor(openSync(path, "w+"));
    const ring = new LateRing(MiB);
    const file = diskFileOn(path, { descriptor, calls: LIBC ?? portableCalls, ring: () => ring });
    await file.write(0, 1000, Buffer.alloc(1000, 1), 0);
    const writing = file.write(1010, 300 * KiB, Buffer.alloc(300 * KiB, 2), 0);
    await new Promise((resolve) => setImmediate(resolve));
    expect([file.size, statSync(file.path).size]).toEqual([1000, END]);
    return { file, descriptor, writing, tell };
  }

  it("zeros up to its beginning do not cut it off", async () => {
    const { file, writing, tell } = await pastTheEnd("zeros");
    await file.writeZeroes(512, 498, { unmap: true, cheapOnly: false });
    tell();
    await writing;
    expect([file.size, statSync(file.path).size]).toEqual([END, END]);
    const end = Buffer.alloc(1000);
    await file.read(300 * KiB, 1000, end, 0);
    expect(end.equals(Buffer.alloc(1000, 2))).toBe(true);
    await file.close();
  });

  it("a file that is made longer loses none of it", async () => {
    const { file, writing, tell } = await pastTheEnd("longer");
    const growing = file.truncate(2000 * KiB);
    expect(statSync(file.path).size).toBe(2000 * KiB);
    await growing;
    tell();
    await writing;
    expect(file.size).toBe(2000 * KiB);
    const other = await pastTheEnd("shorter than that");
    const cut = other.file.truncate(2000);
    await new Promise((resolve) => setImmediate(resolve));
    // What was asked for is less than the write makes it: that comes first.
    expect(statSync(other.file.path).size).toBe(END);
    other.tell();
    await other.writing;
    await cut;
    expect([other.file.size, statSync(other.file.path).size]).toEqual([2000, 2000]);
    await file.close();
    await other.file.close();
  });

  it("a sync does not count for it", async () => {
    const { file, descriptor, writing, tell } = await pastTheEnd("sync");
    await file.sync();
    await file.sync();
    expect(descriptor.syncs).toBe(1);
    tell();
    await writing;
    await file.sync();
    expect(descriptor.syncs).toBe(2);
    await file.close();
  });
});

// The mark of use in headers of other programs.

import { describe, expect, it } from "vitest";
import { writeU64 } from "../../base/bytes.ts";
import { KiB, MiB } from "../../base/units.ts";
import { FaultFile, HeldCalls } from "../../sys/fault-file.ts";
import { parseHeader } from "./header.ts";
import { newMemoryImage, openImage, writeAll } from "./testing/nodes.ts";

const CLUSTER = 4 * KiB;

describe("a header whose extensions end at the name, without END", () => {
  it.each([2, 3] as const)("can be read at every moment (version %d)", async (version) => {
    const options = { backingFile: "base-of-all.raw", version };
    const memory = await newMemoryImage({ size: MiB, clusterSize: CLUSTER, ...options });
    const area = memory.content(0, CLUSTER);
    const from = version === 2 ? 72 : area.readUInt32BE(100);
    area.fill(0, from);
    area.write(options.backingFile, from);
    writeU64(area, from, 8);
    memory.write(0, CLUSTER, area, 0);
    const file = new FaultFile(memory);
    const { node, driver } = await openImage(file);
    const held = new HeldCalls("sync");
    file.delays = held;
    await writeAll(node, 0, Buffer.alloc(CLUSTER, 1));
    let isClosed = false;
    const closing = driver.close().then(() => {
      isClosed = true;
    });
    while (!isClosed) {
      expect(parseHeader(memory.content(0, CLUSTER), memory.size).backingFile).toBe(options.backingFile);
      await new Promise((resolve) => setImmediate(resolve));
      held.releaseOne();
    }
    await closing;
    expect(parseHeader(memory.content(0, CLUSTER), memory.size).backingFile).toBe(options.backingFile);
  });
});

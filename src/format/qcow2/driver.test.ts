import { describe, expect, it } from "vitest";
import { KiB, MiB } from "../../base/units.ts";
import { checkImage } from "./check.ts";
import { hostImageFile } from "./image-file.ts";
import { newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

describe("a qcow2 image", () => {
  it("keeps what was written, over closing and opening", async () => {
    const host = await newMemoryImage({ size: 4 * MiB });
    const { node, driver } = await openImage(host);
    const content = Buffer.alloc(100 * KiB, 7);
    await writeAll(node, 0, content.subarray(0, 512));
    // The L2 table is there now: a first write to clusters finishes at once.
    expect(node.write(130 * KiB, content.length, content, 0)).toBeUndefined();
    await writeAll(node, 30 * KiB, content);
    expect(await readAll(node, 512, 30 * KiB - 512)).toEqual(Buffer.alloc(30 * KiB - 512));
    await node.flush();
    await writeAll(node, 3 * MiB, content);
    await driver.close();
    expect(await checkImage(hostImageFile(host))).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
    const again = await openImage(host, { readOnly: true });
    expect(await readAll(again.node, 30 * KiB, content.length)).toEqual(content);
    expect(await readAll(again.node, 3 * MiB, content.length)).toEqual(content);
    expect(await readAll(again.node, 230 * KiB, KiB)).toEqual(Buffer.alloc(KiB));
  });
});

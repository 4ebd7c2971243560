import { expect, it } from "vitest";
import { KiB, MiB } from "../../base/units.ts";
import { FaultFile } from "../../sys/fault-file.ts";
import { MemoryFile } from "../../sys/memory-file.ts";
import { checkImage } from "./check.ts";
import { hostImageFile } from "./image-file.ts";
import { newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

const CLUSTER = 4 * KiB;

it.each(["write", "sync"] as const)(
  "an image stays open for writing when a %s fails on the way back",
  async (kind) => {
    const host = await newMemoryImage({ size: 4 * MiB, clusterSize: CLUSTER });
    const file = new FaultFile(host);
    const { node, driver } = await openImage(file);
    await writeAll(node, 0, Buffer.alloc(CLUSTER, 1));
    file.fail({ kind, errno: "ENOSPC" });
    await expect(node.setWritable(false)).rejects.toThrow();
    expect(node.readOnly).toBe(false);
    await writeAll(node, MiB, Buffer.alloc(CLUSTER, 2));
    await node.flush();
    // As another program finds it, without what this one holds in memory.
    const { node: found } = await openImage(MemoryFile.of(host.content()), { readOnly: true });
    expect(await readAll(found, 0, CLUSTER)).toEqual(Buffer.alloc(CLUSTER, 1));
    expect(await readAll(found, MiB, CLUSTER)).toEqual(Buffer.alloc(CLUSTER, 2));
    await node.setWritable(false);
    await driver.close();
    expect(await checkImage(hostImageFile(host))).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
  },
);

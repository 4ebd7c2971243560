import { describe, expect, it } from "vitest";
import { KiB, MiB } from "../../base/units.ts";
import { DEBUG_EVENTS, type DebugEvent } from "../../block/debug-event.ts";
import type { Driver } from "../../block/driver.ts";
import { FaultFile } from "../../sys/fault-file.ts";
import type { MemoryFile } from "../../sys/memory-file.ts";
import { COPIED_HIGH } from "./l2-entry.ts";
import { fileNode, newMemoryImage, openImage, readAll, writeAll } from "./testing/nodes.ts";

/** Opens the image over a node that listens; what is heard stands between the calls that reach the file. */
async function listening(memory: MemoryFile, backing?: MemoryFile) {
  const heard: string[] = [];
  const file = new FaultFile(memory, {
    before: (kind) => {
      heard.push(`(${kind})`);
      return undefined;
    },
    after: () => undefined,
  });
  const below = fileNode(file);
  const driver = below.driver as Driver & { debugEvent?: (event: DebugEvent) => void };
  driver.debugEvent = (event) => heard.push(event);
  const image = await openImage(file, {
    file: below,
    ...(backing === undefined ? {} : { backing: fileNode(backing, { growable: false }) }),
  });
  const take = () => heard.splice(0);
  return { ...image, take };
}

/** Steps that have no place in this scenario: other nodes' own, and those that this driver does not have. */
const NOT_HERE: readonly DebugEvent[] = [
  "l2_update_compressed",
  "read_compressed",
  "write_compressed",
  "vmstate_load",
  "vmstate_save",
  "cluster_alloc_bytes",
  "cluster_alloc_space",
  "pwritev_rmw_head",
  "pwritev_rmw_after_head",
  "pwritev_rmw_tail",
  "pwritev_rmw_after_tail",
  "pwritev",
  "pwritev_zero",
  "pwritev_done",
  "empty_image_prepare",
  "l1_shrink_write_table",
  "l1_shrink_free_l2_clusters",
  "cor_write",
  "none",
];

describe("a fault filter below hears", () => {
  it("each step right before the call that it stands for", async () => {
    const base = await newMemoryImage({ size: MiB });
    base.write(0, MiB, Buffer.alloc(MiB, 9), 0);
    const memory = await newMemoryImage({ size: MiB, clusterSize: 4096 });
    const { node, driver, take } = await listening(memory, base);
    expect(take().filter((step) => step !== "(read)")).toEqual(["reftable_load"]);
    await writeAll(node, 100, Buffer.alloc(1000, 1));
    const written = take().filter((step) => !step.includes("sync"));
    expect(written).toEqual([
      ...["cluster_alloc", "refblock_load", "(read)", "cluster_alloc", "l2_alloc_write", "(zeroes)"],
      ...["l2_load", "(read)", "cluster_alloc", "cow_read", "read_backing_aio", "read_backing_aio"],
      ...["write_aio", "cow_write", "(write)"],
    ]);
    await node.flush();
    expect(take().filter((step) => step !== "(read)")).toEqual([
      // The marks of use, each durable by itself, are no step that has a name.
      ...["flush_to_os", "(write)", "(sync)", "(write)", "(sync)"],
      ...["refblock_update_part", "(write)", "(sync)"],
      ...["l2_update", "(write)", "l1_update", "(write)", "flush_to_disk", "(sync)"],
    ]);
    await readAll(node, 0, 512);
    await writeAll(node, 0, Buffer.alloc(512, 2));
    await node.flush();
    expect(take()).toEqual([
      ...["read_aio", "(read)", "write_aio", "(write)", "flush_to_os", "flush_to_disk", "(sync)"],
    ]);
    await driver.close();
  });

  it("every event that a rule may name", async () => {
    const memory = await newMemoryImage({ size: 4 * MiB, clusterSize: 512, refcountBits: 64 });
    const { node, driver, take } = await listening(memory, await newMemoryImage({ size: 4 * MiB }));
    await readAll(node, 0, 512);
    for (let at = 0; at < 4 * MiB; at += 256 * KiB) await writeAll(node, at, Buffer.alloc(256 * KiB, 5));
    await node.flush();
    await node.discard(KiB, 300 * KiB);
    await node.flush();
    await driver.image.frees.settled();
    await writeAll(node, 10 * KiB + 7, Buffer.alloc(100, 6));
    await readAll(node, 0, 64 * KiB);
    // As if a snapshot shared the table.
    const { l1 } = driver.image;
    l1.set(0, (l1.words[0]! & ~COPIED_HIGH) >>> 0, l1.words[1]!);
    await writeAll(node, 0, Buffer.alloc(100, 7));
    await node.truncate(8 * MiB);
    await node.flush();
    await driver.close();
    const heard = new Set(take());
    const missing = DEBUG_EVENTS.filter((event) => !heard.has(event) && !NOT_HERE.includes(event));
    expect(missing).toEqual([]);
  });
});

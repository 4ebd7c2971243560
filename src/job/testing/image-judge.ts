// The last word on images that nobody has open any more: opened anew by their links alone they show what the
// model says, and each passes the check.

import { chainOf } from "../../block/chain.ts";
import { Graph } from "../../block/graph.ts";
import { contentOf } from "../../block/testing/array-world.ts";
import { checkImage } from "../../format/qcow2/check.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import type { DiskModel } from "./disk-model.ts";
import type { MemoryHost } from "./memory-host.ts";

/**
 * @param files the chain as it was when it was closed, top first
 * @param faults whether calls of the host failed: then leaks are no fault of ours
 * @throws Error with words for the first thing that is wrong
 */
export async function judgeImages(
  host: MemoryHost,
  files: readonly string[],
  model: DiskModel,
  { faults }: { readonly faults: boolean },
): Promise<void> {
  const graph = new Graph();
  const opener = host.opener(graph);
  const options = { driver: "qcow2", "read-only": true, file: { driver: "file", filename: files[0]! } };
  const top = await opener.open(options);
  const linked = chainOf(top).map((node) => node.filename);
  // A link whose write failed may be on disk or not; the job says so, and either chain is complete.
  if (!faults && linked.join() !== files.join()) {
    throw new Error(`the links on disk are ${linked.join(" -> ")}, and should be ${files.join(" -> ")}`);
  }
  const wrong = model.readAll(await contentOf(top));
  if (wrong !== undefined) throw new Error(`the chain that was opened anew: ${wrong}`);
  await opener.closeUnused(top);
  for (const path of host.files.keys()) {
    if (path.endsWith(".qcow2")) await judgeImage(host, path, faults);
  }
}

async function judgeImage(host: MemoryHost, path: string, leaksAllowed: boolean): Promise<void> {
  const lines: string[] = [];
  const result = await checkImage(hostImageFile(host.file(path)), { tell: (line) => lines.push(line) });
  const bad = result.corruptions + result.checkErrors + (leaksAllowed ? 0 : result.leaks);
  if (bad > 0) throw new Error(`the check of ${path} finds: ${lines.slice(0, 5).join("; ")}`);
}

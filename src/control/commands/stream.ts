import path from "node:path";
import { BlockError } from "../../base/errors.ts";
import { chainOf, imageOf, isInChain } from "../../block/chain.ts";
import { isNodeName } from "../../block/graph.ts";
import { resolveBackingFile } from "../../block/link-options.ts";
import type { BlockNode } from "../../block/node.ts";
import { StreamJob } from "../../job/stream.ts";
import { type Command, command } from "../command.ts";
import type { Daemon } from "../daemon.ts";
import { onError } from "../qapi/job.ts";
import { bool, type Infer, int, str, struct } from "../qapi/types.ts";

const streamData = struct("BlockStreamArguments", "", {
  "?job-id": str,
  device: str,
  "?base": str,
  "?base-node": str,
  "?backing-file": str,
  "?backing-mask-protocol": bool,
  "?bottom": str,
  "?speed": int,
  "?on-error": onError,
  "?filter-node-name": str,
  "?auto-finalize": bool,
  "?auto-dismiss": bool,
});

export type StreamArguments = Infer<typeof streamData>;

/** Starts the job. The checks stand in QEMU's order. @throws BlockError in QEMU's words */
export async function startStream(daemon: Daemon, args: StreamArguments): Promise<void> {
  refuseTogether(args, "base", "base-node");
  refuseTogether(args, "base", "bottom");
  refuseTogether(args, "bottom", "base-node");
  const top = daemon.nodeOrDevice(args.device);
  const base = findBase(daemon, top, args);
  const chain = chainOf(top);
  const layers = base === undefined ? chain : chain.slice(0, chain.indexOf(base));
  for (const node of layers) node.refuseBlocked();
  const backingFile = args["backing-file"];
  if (base === undefined && backingFile !== undefined) {
    throw new BlockError("EINVAL", "backing file specified, but streaming the entire chain");
  }
  if (backingFile !== undefined) {
    const format = base === undefined ? undefined : imageOf(base).driverName;
    for (const image of layers) daemon.opener.refuseLink(image, backingFile, format);
  }
  checkFilterName(daemon, args["filter-node-name"]);
  // A device gives the job its name where nothing else does, as in QEMU; a node does not.
  const id = args["job-id"] ?? (daemon.graph.find(args.device) === undefined ? args.device : "");
  daemon.jobs.checkId(id);
  const settings = {
    id,
    speed: args.speed ?? 0,
    onError: args["on-error"] ?? "report",
    autoFinalize: args["auto-finalize"] ?? true,
    autoDismiss: args["auto-dismiss"] ?? true,
    ...(backingFile === undefined ? {} : { backingFile }),
  };
  if (settings.speed < 0) throw new BlockError("EINVAL", "Parameter 'speed' expects a non-negative value");
  const job = await StreamJob.create(daemon.graph, { top, base }, settings, daemon.jobs, daemon.clock);
  daemon.jobs.start(job);
  // Such a job has ended when the command is answered, as in the reference.
  if (job.hasNothingToDo && job.autoFinalize) await job.concluded;
}

function refuseTogether(args: StreamArguments, first: keyof StreamArguments, second: keyof StreamArguments) {
  if (args[first] === undefined || args[second] === undefined) return;
  throw new BlockError("EINVAL", `'${first}' and '${second}' cannot be specified at the same time`);
}

/** The first node that the job does not touch. */
function findBase(daemon: Daemon, top: BlockNode, args: StreamArguments): BlockNode | undefined {
  if (args.base !== undefined) return findBackingFile(top, args.base);
  if (args["base-node"] !== undefined) {
    const base = daemon.lookUp(undefined, args["base-node"]);
    if (base !== top && isInChain(top, base)) return base;
    throw new BlockError("EINVAL", `Node '${base.name}' is not a backing image of '${top.name}'`);
  }
  if (args.bottom === undefined) return undefined;
  const bottom = daemon.lookUp(undefined, args.bottom);
  if (bottom.filtered !== undefined) {
    throw new BlockError("EINVAL", `Node '${bottom.name}' is a filter, use a non-filter node as 'bottom'`);
  }
  if (!isInChain(top, bottom)) {
    throw new BlockError("EINVAL", `Node '${bottom.name}' is not in a chain starting from '${top.name}'`);
  }
  return bottom.backing;
}

/**
 * The backing image of `top` that has this file: the name as a link has it, or any path that leads to it. No
 * filter: the image that it shows. @throws BlockError EINVAL in QEMU's words
 */
export function findBackingFile(top: BlockNode, file: string): BlockNode {
  const wanted = path.resolve(file);
  for (let overlay = imageOf(top); overlay.backing !== undefined; ) {
    const backing = imageOf(overlay.backing);
    const link = overlay.details().backingFile;
    if (backing.filename === file || link === file || path.resolve(backing.filename) === wanted)
      return backing;
    if (isSameBesideOverlay(overlay, backing, file)) return backing;
    overlay = backing;
  }
  throw new BlockError("EINVAL", `Can't find '${file}' in the backing chain`);
}

/** A relative name also means what it means in a link: relative to the folder of the overlay. */
function isSameBesideOverlay(overlay: BlockNode, backing: BlockNode, file: string): boolean {
  try {
    return path.resolve(resolveBackingFile(overlay.filename, file)) === path.resolve(backing.filename);
  } catch {
    return false;
  }
}

/** There is no filter node here, but a name that could not be given is a mistake all the same. */
function checkFilterName(daemon: Daemon, name: string | undefined): void {
  if (name === undefined) return;
  if (!isNodeName(name))
    throw new BlockError("EINVAL", `Could not create node: Invalid node-name: '${name}'`);
  if (daemon.graph.find(name) === undefined) return;
  throw new BlockError("EEXIST", `Could not create node: Duplicate nodes with node-name='${name}'`);
}

export const STREAM_COMMANDS: readonly Command[] = [
  command({
    name: "block-stream",
    doc:
      "Copies into the image of `device` what it lacks and the images between it and the base hold, then makes the " +
      "base its backing image. Without a base, it stands alone afterwards. Guests go on meanwhile.",
    data: streamData,
    run: startStream,
  }),
];

import { BlockError } from "../../base/errors.ts";
import type { BlockNode } from "../../block/node.ts";
import { Permission } from "../../block/permissions.ts";
import { type Command, command } from "../command.ts";
import type { Daemon } from "../daemon.ts";
import { nodeInfos } from "../node-info.ts";
import { adaptNodeOptions } from "../node-options.ts";
import { blockdevOptions } from "../qapi/block.ts";
import { blockDeviceInfo } from "../qapi/results.ts";
import { any, array, bool, empty, type Infer, int, str, struct } from "../qapi/types.ts";
import { reopenNodes } from "../reopen.ts";

const resizeData = struct("BlockResizeArguments", "", { "?device": str, "?node-name": str, size: int });

async function resize(daemon: Daemon, args: Infer<typeof resizeData>): Promise<void> {
  const node = daemon.lookUp(args.device, args["node-name"]);
  if (args.size < 0) throw new BlockError("EINVAL", "Parameter 'size' expects a >0 size");
  node.refuseBlocked();
  const giveBack = daemon.graph.claimResize(node);
  try {
    await resizeNode(daemon, node, args.size);
  } finally {
    giveBack();
  }
}

async function resizeNode(daemon: Daemon, node: BlockNode, size: number): Promise<void> {
  const use = daemon.graph.use(node, {
    user: "an unnamed block device",
    role: "root",
    needs: Permission.RESIZE | Permission.WRITE,
    shares: Permission.CONSISTENT_READ | Permission.WRITE | Permission.WRITE_UNCHANGED,
    staysAtNode: true,
  });
  try {
    await node.quiesce();
    try {
      const done = node.driver.truncate(size);
      if (done !== undefined) await done;
    } finally {
      node.resume();
    }
  } finally {
    await daemon.graph.release(use);
  }
}

export const NODE_COMMANDS: readonly Command[] = [
  command({
    name: "blockdev-add",
    doc: "Opens a node with what is below it, and its backing chain where the image names one.",
    data: blockdevOptions,
    async run(daemon, options) {
      await daemon.nodes.add(adaptNodeOptions(options, daemon.logger));
    },
  }),
  command({
    name: "blockdev-del",
    doc: "Closes a node that was added and that nobody uses.",
    data: struct("BlockdevDelArguments", "", { "node-name": str }),
    run: (daemon, args) => daemon.nodes.remove(args["node-name"]),
  }),
  command({
    name: "blockdev-reopen",
    doc: "Gives nodes other options: read-only and backing can be changed, the others have to stay as they are.",
    data: struct("BlockdevReopenArguments", "", { options: array(blockdevOptions) }),
    run: (daemon, args) => reopenNodes(daemon, args.options),
  }),
  command({
    name: "query-named-block-nodes",
    doc: "Lists all nodes. With `flat`, their backing images are named but not described again inside of them.",
    data: struct("QueryNamedBlockNodesArguments", "", { "?flat": bool }),
    returns: array(blockDeviceInfo),
    run: (daemon, args) => nodeInfos(daemon.graph, daemon.nodes, args.flat ?? false),
  }),
  command({
    name: "query-block",
    doc: "Lists block devices of a machine: there is none, exports are told by query-block-exports.",
    data: empty,
    returns: array(any),
    run: () => [],
  }),
  command({
    name: "block_resize",
    doc: "Sets the length of a disk, in bytes.",
    data: resizeData,
    run: resize,
  }),
];

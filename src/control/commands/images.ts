import { BlockError } from "../../base/errors.ts";
import { imageOf, isInChain } from "../../block/chain.ts";
import type { BlockNode } from "../../block/node.ts";
import { type Command, command } from "../command.ts";
import { createImage } from "../create-image.ts";
import { CreateJob } from "../create-job.ts";
import type { Daemon } from "../daemon.ts";
import { createOptions } from "../qapi/block.ts";
import { any, type Infer, str, struct } from "../qapi/types.ts";

const changeData = struct("ChangeBackingFileArguments", "", {
  device: str,
  "image-node-name": str,
  "backing-file": str,
});

/** Writes another name into a backing link; the graph stays as it is. */
function changeBackingFile(daemon: Daemon, args: Infer<typeof changeData>): Promise<void> {
  return daemon.graph.exclusively(async () => {
    const top = daemon.nodeOrDevice(args.device);
    if (daemon.graph.parentsOf(top).length > 0 || top.blockers.size > 0) {
      throw new BlockError("EINVAL", "Need a root block node");
    }
    const image = daemon.lookUp(undefined, args["image-node-name"]);
    if (image.filtered !== undefined) {
      throw new BlockError(
        "ENOTSUP",
        `Could not change backing file to '${args["backing-file"]}': Operation not supported`,
      );
    }
    const { backing } = image;
    if (backing === undefined) {
      throw new BlockError("EINVAL", "not allowing backing file change on an image without a backing file");
    }
    if (!isInChain(top, image)) {
      throw new BlockError("EINVAL", `'${args.device}' and image file are not in the same chain`);
    }
    const format = imageOf(backing).driverName;
    daemon.opener.refuseLink(image, args["backing-file"], format);
    image.refuseBlocked();
    // No job begins meanwhile: the image is open for writing only as long as this takes.
    const blocker = {};
    image.blockers.set(blocker, "its backing link is being changed");
    try {
      await writeLink(daemon, image, args["backing-file"], format);
    } finally {
      image.blockers.delete(blocker);
    }
  });
}

async function writeLink(daemon: Daemon, image: BlockNode, file: string, format: string): Promise<void> {
  if (image.driver.changeBackingLink === undefined) {
    throw new BlockError("ENOTSUP", `Driver '${image.driverName}' has no backing link`);
  }
  const wasReadOnly = image.readOnly;
  await daemon.graph.setWritable(image, true);
  try {
    await image.quiesce();
    try {
      await image.driver.changeBackingLink(file, format);
    } finally {
      image.resume();
    }
  } finally {
    if (wasReadOnly) await daemon.graph.setWritable(image, false);
  }
}

export const IMAGE_COMMANDS: readonly Command[] = [
  command({
    name: "blockdev-create",
    doc: "Makes an image, as a job: query-jobs tells how it went, job-dismiss forgets it.",
    data: struct("BlockdevCreateArguments", "", { "job-id": str, options: createOptions }),
    run(daemon, { "job-id": id, options }) {
      daemon.jobs.checkId(id);
      daemon.jobs.start(new CreateJob(id, () => createImage(daemon, options), daemon.jobs, daemon.clock));
    },
  }),
  command({
    name: "change-backing-file",
    doc: "Writes another name into the backing link of an image.",
    data: changeData,
    run: changeBackingFile,
  }),
  command({
    name: "x-strata-query-counters",
    doc: "Tells what a node has served and what its driver counts: locks, caches.",
    data: struct("QueryCountersArguments", "", { "node-name": str }),
    returns: any,
    run(daemon, args) {
      const node = daemon.nodeOrDevice(args["node-name"]);
      return { node: { ...node.counters }, driver: { ...node.driverCounters() } };
    },
  }),
];

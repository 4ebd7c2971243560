import path from "node:path";
import type { Command } from "commander";
import { type CommandContext, examples } from "../command-context.ts";
import { findDaemon } from "../control-directory.ts";
import { type DaemonView, findNode, viewDaemon } from "../daemon-view.ts";
import { usageError } from "../failure.ts";
import { freeNodeName, nodeNameOf } from "../node-names.ts";
import { QmpClient } from "../qmp-client.ts";

interface SnapshotFlags {
  readonly format: string;
  readonly nodeName?: string;
  readonly control?: string;
}

export function addSnapshot(program: Command, context: CommandContext): void {
  program
    .command("snapshot <device> <file>")
    .description("put a new image on top of a disk while the guest works; what is below stays as it is now")
    .option("-f, --format <format>", "format of the new image", "qcow2")
    .option("--node-name <name>", "its node name; otherwise the file's")
    .option("--control <control>", "the daemon, where several run: its name or the path of its QMP socket")
    .addHelpText("after", examples("strata snapshot virtio0 monday.qcow2"))
    .action(async (device: string, file: string, flags: SnapshotFlags) => {
      if (flags.format === "raw") {
        throw usageError("a raw image cannot be an overlay: it has no backing link; use qcow2");
      }
      const { qmp } = await findDaemon(flags.control, context.environment);
      const client = await QmpClient.connect(qmp);
      try {
        const view = await viewDaemon(client);
        const node = findNode(view, device);
        const name = flags.nodeName ?? nameFor(file, view);
        await client.execute("blockdev-snapshot-sync", {
          "node-name": node["node-name"],
          "snapshot-file": path.resolve(file),
          "snapshot-node-name": name,
          format: flags.format,
        });
        context.terminal.out(
          `[${node["node-name"]}] <- [${name}]   ${file} takes the writes of ${device} now\n`,
        );
      } finally {
        client.close();
      }
    });
}

function nameFor(file: string, view: DaemonView): string {
  return freeNodeName(nodeNameOf(file), new Set(view.nodes.map((node) => node["node-name"])));
}

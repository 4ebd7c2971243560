import { BlockError } from "../../base/errors.ts";
import { type Command, command } from "../command.ts";
import type { Daemon } from "../daemon.ts";
import { array, empty, enumeration, type Infer, str, struct, union } from "../qapi/types.ts";
import { checkOverlayName, type Planner, planOnto, planSync, takeSnapshots } from "../snapshot.ts";

const snapshotData = struct("BlockdevSnapshot", "Which overlay goes on top of which node.", {
  node: str,
  overlay: str,
});

const syncData = struct(
  "BlockdevSnapshotSync",
  "An overlay to be made, or opened, and put on top of a node.",
  {
    "?device": str,
    "?node-name": str,
    "snapshot-file": str,
    "?snapshot-node-name": str,
    "?format": str,
    "?mode": enumeration("NewImageMode", ["existing", "absolute-paths"]),
  },
);

export function snapshotPlanner(daemon: Daemon, args: Infer<typeof snapshotData>): Planner {
  return planOnto(daemon.nodeOrDevice(args.node), daemon.nodeOrDevice(args.overlay));
}

export function syncPlanner(daemon: Daemon, args: Infer<typeof syncData>): Planner {
  const node = daemon.lookUp(args.device, args["node-name"]);
  // A device may leave its overlay unnamed, as in QEMU; a node may not.
  const nodeName =
    args["node-name"] === undefined && args["snapshot-node-name"] === undefined
      ? daemon.freeNodeName("overlay")
      : checkOverlayName(daemon, args["snapshot-node-name"]);
  return planSync({
    node,
    nodeName,
    file: args["snapshot-file"],
    format: args.format,
    existing: args.mode === "existing",
  });
}

const wrap = <const M extends Parameters<typeof struct>[2]>(name: string, members: M) =>
  struct(name, "", members);

const transactionAction = union(
  "TransactionAction",
  "One step of a transaction.",
  struct("TransactionActionBase", "", {
    type: enumeration("TransactionActionKind", ["abort", "blockdev-snapshot", "blockdev-snapshot-sync"]),
  }),
  "type",
  {
    abort: wrap("AbortWrapper", { data: empty }),
    "blockdev-snapshot": wrap("BlockdevSnapshotWrapper", { data: snapshotData }),
    "blockdev-snapshot-sync": wrap("BlockdevSnapshotSyncWrapper", { data: syncData }),
  },
);

function actionPlanner(daemon: Daemon, action: Infer<typeof transactionAction>): Planner {
  switch (action.type) {
    case "blockdev-snapshot":
      return snapshotPlanner(daemon, action.data);
    case "blockdev-snapshot-sync":
      return syncPlanner(daemon, action.data);
    case "abort":
      return async () => {
        throw new BlockError("ECANCELED", "Transaction aborted using Abort action");
      };
  }
}

export const SNAPSHOT_COMMANDS: readonly Command[] = [
  command({
    name: "blockdev-snapshot",
    doc: "Puts an overlay that was added on top of a node: who uses the node uses the overlay from then on.",
    data: snapshotData,
    run: (daemon, args) => takeSnapshots(daemon, [snapshotPlanner(daemon, args)]),
  }),
  command({
    name: "blockdev-snapshot-sync",
    doc: "Makes a new overlay and puts it on top of a node or device; with mode existing, the image is there already.",
    data: syncData,
    run: (daemon, args) => takeSnapshots(daemon, [syncPlanner(daemon, args)]),
  }),
  command({
    name: "transaction",
    doc: "Does all of the actions at one moment, or none. Snapshots are possible.",
    data: struct("TransactionArguments", "", {
      actions: array(transactionAction),
      "?properties": struct("TransactionProperties", "", {
        "?completion-mode": enumeration("ActionCompletionMode", ["individual", "grouped"]),
      }),
    }),
    run: (daemon, { actions }) =>
      takeSnapshots(
        daemon,
        actions.map((action) => actionPlanner(daemon, action)),
      ),
  }),
];

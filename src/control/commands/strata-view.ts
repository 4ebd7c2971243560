// Commands of our own: what a person wants to see of a chain and QMP has no words for.

import { formatNbdUri } from "../../../nbd/uri.ts";
import { reportChain } from "../chain-report.ts";
import { type Command, command } from "../command.ts";
import { array, bool, int, str, struct } from "../qapi/types.ts";

const cell = struct("StrataChainCell", "A part of the disk: bytes of data that an image holds there.", {
  data: int,
  seen: int,
});

const layer = struct("StrataChainLayer", "What one image of a chain holds; bytes.", {
  "node-name": str,
  filename: str,
  driver: str,
  "read-only": bool,
  "virtual-size": int,
  "actual-size": int,
  data: int,
  seen: int,
  shadows: int,
  cells: array(cell),
});

const chain = struct("StrataChain", "A chain, top first.", { "virtual-size": int, layers: array(layer) });

const device = struct("StrataDevice", "A node that is served.", {
  name: str,
  id: str,
  "node-name": str,
  writable: bool,
  "?uri": str,
});

export const STRATA_COMMANDS: readonly Command[] = [
  command({
    name: "x-strata-query-chain",
    doc: "What each image of a chain holds, what of it the guest sees, and what it hides below it.",
    data: struct("StrataQueryChain", "The top of the chain.", { device: str }),
    returns: chain,
    run: (daemon, args) => reportChain(daemon.nodeOrDevice(args.device)),
  }),
  command({
    name: "x-strata-query-devices",
    doc: "What is served, with the names that clients ask for, and where they find it.",
    data: struct("StrataQueryDevices", "Nothing.", {}),
    returns: array(device),
    run: (daemon) => {
      const [address] = daemon.exports.addresses;
      return daemon.exports.entries.map(({ id, name, backend }) => ({
        name,
        id,
        "node-name": backend.node.name,
        writable: !backend.readOnly,
        ...(address !== undefined && { uri: formatNbdUri({ address, exportName: name }) }),
      }));
    },
  }),
];

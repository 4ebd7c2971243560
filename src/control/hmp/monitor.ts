// The human monitor on a character device, over the daemon's QMP commands.

import type { Writable } from "node:stream";
import type { Frontend, Peer } from "../chardev/chardev.ts";
import type { Daemon } from "../daemon.ts";
import { runCommand } from "../dispatch.ts";
import type { JsonObject } from "../json-value.ts";
import { HmpSession } from "./session.ts";
import type { HmpTarget } from "./target.ts";

export class HmpMonitor implements Frontend {
  readonly #target: HmpTarget;

  constructor(daemon: Daemon) {
    this.#target = hmpTarget(daemon);
  }

  opened(peer: Peer): void {
    const { input, output } = peer;
    const session = new HmpSession(this.#target, (text) => {
      if (output === undefined || output.destroyed || output.write(text)) return undefined;
      return taken(output);
    });
    // Lines wait in the socket while others are carried out, not in the session.
    const feed = async (bytes: Buffer) => {
      input!.pause();
      session.received(bytes);
      await session.idle;
      input!.resume();
    };
    input?.on("data", (bytes: Buffer) => void feed(bytes));
    input?.resume();
  }
}

/** Done when a peer has taken what was written for it, or is gone. */
function taken(output: Writable): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      output.off("drain", done).off("close", done);
      resolve();
    };
    output.on("drain", done).on("close", done);
  });
}

/** The daemon as the human monitor sees it. */
export function hmpTarget(daemon: Daemon): HmpTarget {
  return {
    execute: async (command, args) => {
      // However many lines came at once, guests and other clients have a turn between two of them.
      await daemon.clock.turn();
      return runCommand(daemon, command, args as JsonObject);
    },
    devices: () =>
      daemon.exports.entries.map(({ id, name, backend }) => ({
        name,
        id,
        node: backend.node,
        readOnly: backend.readOnly,
      })),
    nodes: () => daemon.graph.nodes,
  };
}

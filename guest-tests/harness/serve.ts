// The usual set-up of a merge test: a chain, a copy of what its layers say, and a daemon that serves the top.

import { Chain, type ChainPlan } from "./chain.ts";
import { type Daemon, hmpArguments, IS_REFERENCE, nbdServerArguments, startDaemon } from "./daemon.ts";
import { scratchDirectory } from "./scratch.ts";

export interface Served {
  readonly directory: string;
  readonly chain: Chain;
  readonly daemon: Daemon;
  /** NBD URI of the top. */
  readonly uri: string;
}

export interface ServePlan extends ChainPlan {
  /** Name of the export: the guest's device. */
  readonly device?: string;
  /** Only the top is named; the rest follows from the links on disk. */
  readonly byLinks?: boolean;
  readonly nodeName?: (letter: string) => string;
  /** Further arguments of the daemon. */
  readonly more?: readonly string[];
  readonly where?: "inMemory" | "onDisk";
  /** Looks at the images before the daemon has them: copies are made here. */
  readonly before?: (chain: Chain) => Promise<void>;
}

/** Builds a chain and serves it. */
export async function serveChain(plan: ServePlan = {}): Promise<Served> {
  const directory = scratchDirectory(plan.where);
  const chain = await Chain.build(directory, plan);
  await plan.before?.(chain);
  return { directory, chain, ...(await serveAgain(chain, plan)) };
}

/** Starts a daemon on a chain that is there. */
export async function serveAgain(
  chain: Chain,
  plan: ServePlan = {},
): Promise<{ daemon: Daemon; uri: string }> {
  const nodeName = plan.nodeName ?? ((letter: string) => letter);
  const device = plan.device ?? "virtio0";
  const nodes = plan.byLinks ? chain.linkedArguments(nodeName(chain.top)) : chain.nodeArguments(nodeName);
  const daemon = await startDaemon(chain.directory, [
    ...(IS_REFERENCE ? [] : hmpArguments(chain.directory)),
    ...nbdServerArguments(chain.directory),
    ...nodes,
    ...exportArguments(nodeName(chain.top), device),
    ...(plan.more ?? []),
  ]);
  return { daemon, uri: daemon.uri(device) };
}

/** A writable export of a node under a name of its own. */
export function exportArguments(nodeName: string, device: string, more = "writable=on"): string[] {
  const id = `export-of-${device.replaceAll(" ", "-")}`;
  return ["--export", `type=nbd,id=${id},node-name=${nodeName},name=${device},${more}`];
}

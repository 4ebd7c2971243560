import type { BlockNode } from "../../block/node.ts";

/** What a node is served as. */
export interface Device {
  /** The export's name, as a client asks for it: virtio0. */
  readonly name: string;
  /** The export's id. */
  readonly id: string;
  readonly node: BlockNode;
  readonly readOnly: boolean;
}

/** What the human monitor needs of the daemon: the QMP commands, and names to find things by. */
export interface HmpTarget {
  /** Carries out a QMP command. @throws BlockError as QMP would answer it */
  execute(command: string, args: Record<string, unknown>): Promise<unknown>;
  devices(): readonly Device[];
  /** All nodes, oldest first. */
  nodes(): Iterable<BlockNode>;
}
